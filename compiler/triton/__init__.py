"""Triton Inference Server: the model repository of a bundle, and the code that its Python models run."""
