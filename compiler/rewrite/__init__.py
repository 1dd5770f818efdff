"""Prune inside a graph that another exporter made."""
