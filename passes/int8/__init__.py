"""Quantize: smooth, insert Q/DQ by a scheme, and check what was inserted."""
