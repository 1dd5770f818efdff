"""From graphs of one question to graphs of several: rows that know nothing of each other."""
