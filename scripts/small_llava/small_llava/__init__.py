"""Scenes, questions and training of the small LLaVA; the entry point is `scripts/small_llava/train_small_llava.py`."""
