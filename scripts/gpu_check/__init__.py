"""What a machine with a GPU can do with lmmprune: one idea per file, one stage per process."""
