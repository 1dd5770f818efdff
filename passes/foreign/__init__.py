"""Bring another exporter's vision tower into canonical form, or say what it is that doesn't fit."""
