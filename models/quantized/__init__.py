"""Checkpoints whose weights are integers already: what they say of it, how they pack them, what they are worth."""
