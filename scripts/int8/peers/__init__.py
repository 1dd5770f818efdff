"""What compares our INT8 with other tools': each in a process of its own, one judge for all, and the tables."""
