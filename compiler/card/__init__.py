"""A bundle's model card: what it is, what was measured and how, and what wasn't."""
