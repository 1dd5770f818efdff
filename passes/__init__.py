"""Rewrites of graphs, on onnx-ir: ``reduce`` cuts tokens, ``methods`` says which, one file per method."""
