"""What a user would take instead: each runtime in a process of its own, all in turns on one machine."""
