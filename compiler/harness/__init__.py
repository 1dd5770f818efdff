"""Let lmms-eval ask a bundle in its own process. Without torch, but for what lmms-eval itself imports."""
