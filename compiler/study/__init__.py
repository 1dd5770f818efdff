"""The study: method x ratio x precision, measured cell by cell, and one report on what pruning and INT8 each cost."""
