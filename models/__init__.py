"""Model families: what to trace, and where things are in it."""
