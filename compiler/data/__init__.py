"""Pictures and questions: to calibrate with, and to measure with."""
