"""Training of the tiny LLaVA; the entry point is `scripts/tiny_llava/train_tiny_llava.py`."""
