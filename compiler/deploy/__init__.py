"""Folders that build and time engines on a machine without lmmprune, and deployable folders for a board."""
