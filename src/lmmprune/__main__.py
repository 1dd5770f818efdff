"""``python -m lmmprune``."""

from lmmprune.compiler.cli import main

if __name__ == "__main__":
    main()
