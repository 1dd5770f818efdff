"""``python -m lmmprune.compiler.cli``."""

from lmmprune.compiler.cli import main

main()
