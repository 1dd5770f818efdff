"""From a model to a bundle (``export/export.py`` is the main job), and from a bundle to engines and answers."""
