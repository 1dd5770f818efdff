"""Write the tables of README and docs that say what the code has, or check that they do.

python scripts/docs_tables.py            # rewrite
python scripts/docs_tables.py --check    # exit 1 if a page says something else

A table stands between ``<!-- table: NAME -->`` and ``<!-- end -->``; NAME is one of ``TABLES``.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from lmmprune.compiler.measure.formats.table import FORMATS
from lmmprune.compiler.targets.boards import BOARDS, JETPACKS
from lmmprune.compiler.targets.targets import TARGETS, Target, resolve
from lmmprune.models.aliases import ALIASES
from lmmprune.models.family import Family
from lmmprune.models.registry import FAMILIES
from lmmprune.passes.methods import METHODS

ROOT = Path(__file__).resolve().parent.parent
_MARK = re.compile(r"(<!-- table: (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)
_CAUSAL = {"mask": "explicit mask", "upper_left": "upper left", "lower_right": "lower right"}


def methods() -> str:
    """Return the methods by where they cut, each with its paper, for a reader who looks for one."""
    at: dict[str, list[str]] = {where: [] for where in _PLACES}
    for name, method in METHODS.items():
        at[_place(method.sites)].append(_paper(method.reference, f"`{name}`"))
    return _table(["tokens go", "methods"], [[where, ", ".join(names)] for where, names in at.items()])


_PLACES = (
    "inside the vision encoder",
    "behind the vision encoder",
    "in front of the decoder, by the question",
    "between the decoder's layers",
    "in encoder and decoder",
)


def _place(sites: str) -> str:
    seen, read = any(word in sites for word in ("vision", "projector")), "llm_" in sites
    if seen and read:
        return _PLACES[4]
    if seen:
        return _PLACES[0] if "vision_layer" in sites else _PLACES[1]
    return _PLACES[2] if sites == "llm_input_0" else _PLACES[3]


def methods_in_full() -> str:
    """Return the methods with what they need, their parameters, and what is exact."""
    sections = []
    for name, method in METHODS.items():
        parameters = ", ".join(f"`{key}={_text(value)}`" for key, value in method().parameters.items())
        sections += [
            f"### `{name}`",
            "",
            f"* Cuts at: {method.sites}{'; needs CLS' if method.needs_cls else ''}",
            f"* Tokens left: {method.schedule}; positions {method.numbering()}",
            *([f"* Parameters: {parameters}"] if parameters else []),
            f"* What is exact: {method.exactness}",
            f"* Paper: {_paper(method.reference)}",
            "",
        ]
    return "\n".join(sections)


def families() -> str:
    """Return the families with where they can be cut and what they can't do."""
    sections = []
    for family in FAMILIES.values():
        sections += [
            f"### `{family.name}`",
            "",
            f"{family.title}, cut at {', '.join(f'`{site}`' for site in family.sites)}.",
            "",
            *(
                [f"* [Several pictures per prompt](../guide/several-pictures.md): {_images(family)}"]
                if family.several
                else []
            ),
            f"* [Conversations](../guide/conversations.md){_later(family)}",
            *(["* [Videos, as frames](../guide/video.md): `--frames`"] if family.video else []),
            *([f"* [Several sizes](../guide/several-sizes.md): {_views(family)}"] if _views(family) else []),
            *(
                ["* [Several questions at once](../guide/batches.md): `--batch`"]
                if family.arrange is None
                else ["* One question at a time: pictures are cut into tiles"]
            ),
            *(["* [Tiles, one of several grids per picture](../guide/tiles.md): `--tiles`"] if family.split else []),
            *(f"* {limit[0].upper()}{limit[1:]}" for limit in family.limits),
            *([f"* Layouts tried: {', '.join(f'`{name}`' for name in family.tried)}"] if family.tried else []),
            "",
        ]
    return "\n".join(sections)


def _later(family: Family) -> str:
    return ", with further pictures in later questions" if family.several else " about one picture"


def _images(family: Family) -> str:
    return "`--images`, `--joint`" if family.joint else "`--images`"


def _views(family: Family) -> str:
    return "`--image-size`, repeated" if family.sizes else "`--tiles`, several or `all`" if family.grids else ""


def aliases() -> str:
    """Return the short names of checkpoints."""
    rows = [
        [f"`{name}`", f"`{alias.family}`", f"`{alias.hub_id}`" if alias.hub_id else "comes with lmmprune", alias.note]
        for name, alias in ALIASES.items()
    ]
    return _table(["`--model`", "family", "checkpoint", "note"], rows)


def formats() -> str:
    """Return the public data sets that ``eval`` reads."""
    rows = [
        [f"`{name}`", _paper(form.reference, form.title), form.layout, form.reports, f"`{_one_line(form.template)}`"]
        for name, form in FORMATS.items()
    ]
    return _table(["`--format`", "set", "the folder holds", "figures", "asked as"], rows)


def targets() -> str:
    """Return the targets, for a reader who looks for one."""
    rows = [
        [f"`{target.name}`", ", ".join(f"`{name}`" for name in target.names[1:]) or "-", _builds(target)]
        for target in TARGETS.values()
    ]
    return _table(["target", "also called", "engines are built for"], rows)


def profiles() -> str:
    """Return what each target takes."""
    rows = [
        [
            f"`{target.name}`",
            ", ".join(f"`{name}`" for name in target.aliases) or "-",
            f"{target.opset} (reads {target.max_opset})",
            _CAUSAL[target.causal],
            target.int8,
            _int4(target),
            ", ".join(target.dtypes),
            _builds(target),
            ", ".join(sorted(target.native_ops)) or "none: primitives",
        ]
        for target in TARGETS.values()
    ]
    columns = ["target", "also", "opset", "is_causal", "INT8", "INT4 groups", "types", "builds for", "operators taken"]
    return _table(columns, rows)


def _int4(target: Target) -> str:
    form = "blocks" if target.nbits_level is None else "MatMulNBits"
    return f"{', '.join(map(str, target.int4_groups))} ({form})"


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


def _builds(target: Target) -> str:
    return " ".join(target.architectures) or ("the GPU present" if target.compiled else "no build")


def _paper(reference: str, text: str = r"\1") -> str:
    """Return a reference, or a text in its place, with its arXiv page; a baseline has none."""
    page, papers = re.subn(r"arXiv (\d{4}\.\d{5}(?:v\d+)?)", rf"[{text}](https://arxiv.org/abs/\1)", reference)
    return page if papers or text == r"\1" else text


def _one_line(text: str) -> str:
    return text.replace("\n", r"\n")


def _text(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [columns, ["---"] * len(columns), *rows]
    return "".join(f"| {' | '.join(cell.replace('|', '/') for cell in line)} |\n" for line in lines)


TABLES = {
    table.__name__: table
    for table in (methods, methods_in_full, families, aliases, formats, targets, profiles, jetsons, boards, dialects)
}


def pages() -> Iterator[Path]:
    """Yield the pages that may hold tables."""
    yield ROOT / "README.md"
    yield from sorted((ROOT / "docs").rglob("*.md"))


def fill(text: str) -> str:
    """Return a page's text with its tables as the data says."""
    return _MARK.sub(lambda match: f"{match[1]}{TABLES[match[2]]()}{match[3]}", text)


def main() -> int:
    """Rewrite or check the pages; return the exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--check", action="store_true")
    arguments = parser.parse_args()
    found: set[str] = set()
    failed = 0
    for page in pages():
        old = page.read_text(encoding="utf-8")
        found |= {match[2] for match in _MARK.finditer(old)}
        new = fill(old)
        if new != old and arguments.check:
            print(f"{page.relative_to(ROOT)} is not what the data says: python scripts/docs_tables.py", file=sys.stderr)
            failed = 1
        elif new != old:
            page.write_text(new, encoding="utf-8")
    if missing := sorted(set(TABLES) - found):
        print(f"no page holds the tables {', '.join(missing)}", file=sys.stderr)
        failed = 1
    return failed


if __name__ == "__main__":
    sys.exit(main())
