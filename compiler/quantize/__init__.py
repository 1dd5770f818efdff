"""Calibration: run the pruned float graphs on real pictures and prompts, and choose every activation's INT8 range."""
