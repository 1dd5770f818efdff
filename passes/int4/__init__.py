"""Quantize a decoder's weights to four bits, in groups along their inputs."""
