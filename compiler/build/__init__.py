"""Compile the graphs of a bundle into engines."""
