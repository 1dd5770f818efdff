"""From canonical operators to those of one target: opset, types, attention, norms, rotations, cache."""
