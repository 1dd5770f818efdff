"""The sections of the fault campaign: one file each, with ``run(seconds, seed) -> list[Row]``."""
