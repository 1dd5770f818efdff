"""ONNX files on disk: read, written, their weights streamed."""
