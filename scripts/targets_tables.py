"""Write the tables of docs/targets.md from the data that the code uses, or check that they are the same.

python scripts/targets_tables.py            # rewrite
python scripts/targets_tables.py --check    # exit 1 if they differ
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Sequence
from pathlib import Path

from lmmprune.compiler.targets.boards import BOARDS, JETPACKS
from lmmprune.compiler.targets.targets import TARGETS, resolve

PAGE = Path(__file__).parent.parent / "docs" / "targets.md"
_MARK = re.compile(r"(<!-- table: (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)


def profiles() -> str:
    """Return what each target takes."""
    rows = [
        [
            f"`{target.name}`",
            ", ".join(f"`{name}`" for name in target.aliases) or "-",
            f"{target.opset} (reads {target.max_opset})",
            ", ".join(sorted(target.native_ops)) or "none: primitives",
            {"mask": "explicit mask", "upper_left": "upper left", "lower_right": "lower right"}[target.causal],
            target.int8,
            ", ".join(target.dtypes),
            " ".join(target.architectures) or ("the GPU present" if target.compiled else "no build"),
        ]
        for target in TARGETS.values()
    ]
    columns = ["target", "also", "opset", "operators taken", "is_causal", "INT8", "types", "builds for"]
    return _table(columns, rows)


def jetsons() -> str:
    """Return what each board's software carries."""
    rows = [
        [f"`{alias}`", soft.release, resolve(alias).boards[alias], soft.cuda, soft.python, f"`{resolve(alias).name}`"]
        for alias, soft in JETPACKS.items()
    ]
    return _table(["`--for`, `--target`", "JetPack", "GPU", "CUDA", "Python", "target"], rows)


def boards() -> str:
    """Return the boards' memory."""
    return _table(["board", "GPU", "memory, GiB"], [[b.name, b.arch, f"{b.memory / 2**30:.0f}"] for b in BOARDS])


def dialects() -> str:
    """Return the flags of each target's trtexec."""

    def code(words: Sequence[str]) -> str:
        return " ".join(f"`{word}`" for word in words) or "the defaults"

    rows = [
        [
            f"`{target.name}`",
            f"`{dialect.program}`",
            code(dialect.build),
            code(dialect.time),
            "yes" if target.timing_cache else "no",
            f"`{dialect.decomposable}`" if dialect.decomposable else "-",
        ]
        for target in TARGETS.values()
        if (dialect := target.trtexec) is not None
    ]
    return _table(["target", "program", "build", "time", "timing cache", "attention without a kernel"], rows)


def _table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [columns, ["---"] * len(columns), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


TABLES = {"profiles": profiles, "jetsons": jetsons, "boards": boards, "dialects": dialects}


def main() -> int:
    """Rewrite or check the page; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true")
    arguments = parser.parse_args()
    old = PAGE.read_text(encoding="utf-8")
    new = _MARK.sub(lambda match: f"{match[1]}{TABLES[match[2]]()}{match[3]}", old)
    missing = [name for name in TABLES if f"<!-- table: {name} -->" not in old]
    if missing:
        print(f"{PAGE} lacks the tables {', '.join(missing)}", file=sys.stderr)
        return 1
    if arguments.check:
        if new != old:
            print(f"{PAGE} is not what the data says: python scripts/targets_tables.py", file=sys.stderr)
        return int(new != old)
    PAGE.write_text(new, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
