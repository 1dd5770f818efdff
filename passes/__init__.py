"""Graph passes on onnx-ir: find anchors, rewrite, compose into methods."""
