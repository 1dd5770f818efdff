"""Prune visual tokens inside the graph of a large multimodal model, quantize it, and compile it."""

__version__ = "0.1.0"
