"""The small real LLaVA of this repository: its scenes, questions and weights."""
