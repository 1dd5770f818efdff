"""Training of the tiny LLaVA; the entry point is `scripts/train_tiny_llava.py`."""
