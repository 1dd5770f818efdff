"""Proof that INT8 was taken: which kernel computes each weight of a bundle, how long it takes, and why one is float."""
