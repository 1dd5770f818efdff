"""The main job: from a model to a bundle."""
