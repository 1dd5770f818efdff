"""The version, apart from the public face, so that reading it imports nothing else."""

__version__ = "0.1.0"
