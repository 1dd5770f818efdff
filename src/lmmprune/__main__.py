"""``lmmprune`` and ``python -m lmmprune``."""

from __future__ import annotations

import sys


def main() -> None:
    """Run the command line; Ctrl-C while it is still being imported ends in the same line."""
    try:
        from lmmprune.compiler.cli import main as run
    except KeyboardInterrupt:
        print("lmmprune: error: interrupted; nothing is left half-written", file=sys.stderr)
        sys.exit(130)
    run()


if __name__ == "__main__":
    main()
