"""Serve bundles over HTTP as OpenAI's chat API does. Without torch."""
