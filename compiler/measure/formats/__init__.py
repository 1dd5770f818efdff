"""Public data sets: the layout of their files, how they are asked, and how they are scored; one file each."""
