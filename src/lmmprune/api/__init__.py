"""What ``import lmmprune`` hands on; the names are public there, not here."""
