"""Is a bundle what it says it is: checksums, promises, and parity with the PyTorch model."""
