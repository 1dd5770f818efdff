"""Write what a script measured: OUTPUT.json, and its part of a page of docs/results.

A page's words are written by hand. What a script owns stands between ``<!-- result: NAME -->`` and ``<!-- end -->``,
NAME being that of the JSON file: how it was made (command, machine, date, versions), then its tables. The rest stays.
"""

from __future__ import annotations

import datetime
import importlib.metadata
import json
import re
import shlex
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import lmmprune
from lmmprune.compiler.targets.machine import detect_machine

ROOT = Path(__file__).resolve().parent.parent
# Module -> distribution, of those whose version changes what is measured.
_PACKAGES = {
    "onnxruntime": "onnxruntime",
    "tensorrt_rtx": "tensorrt-rtx-cu13",
    "tensorrt": "tensorrt",
    "torch": "torch",
    "transformers": "transformers",
}


def write(output: Path, result: Any, text: str, *, page: Path | None = None) -> None:
    """Write OUTPUT.json and the result's part of its page.

    Args:
        output: Path without a suffix; its last part is the result's name.
        result: What JSON can hold.
        text: The tables, in Markdown.
        page: The page that holds the part [OUTPUT.md].
    """
    run = how_it_was_made()
    output.parent.mkdir(parents=True, exist_ok=True)
    record = {"run": run, "result": result}
    output.with_suffix(".json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    write_part(page or output.with_suffix(".md"), output.name, f"{head(run, output.name)}\n\n{text.strip()}\n")


def read(output: Path) -> Any:
    """Return the result that ``write`` left in OUTPUT.json."""
    return json.loads(output.with_suffix(".json").read_text(encoding="utf-8"))["result"]


def write_part(page: Path, name: str, text: str) -> None:
    """Put a text between the marks of a name; a page or marks that aren't there are made."""
    old = page.read_text(encoding="utf-8") if page.is_file() else f"# {name}\n"
    part = f"<!-- result: {name} -->\n{text}<!-- end -->"
    marks = re.compile(rf"<!-- result: {re.escape(name)} -->.*?<!-- end -->", re.DOTALL)
    new = marks.sub(lambda _: part, old, count=1) if marks.search(old) else f"{old.rstrip()}\n\n{part}\n"
    page.write_text(new, encoding="utf-8")


def how_it_was_made() -> dict[str, Any]:
    """Return command, machine, date and versions of this process."""
    here = detect_machine()
    memory = f", {here.memory / 2**30:.0f} GiB" if here.memory else ""
    gpus = "".join(f", {gpu.name}" for gpu in here.gpus)
    program = Path(sys.argv[0]).resolve()
    script = str(program.relative_to(ROOT)) if program.is_relative_to(ROOT) else program.name
    used = {name: package for name, package in _PACKAGES.items() if name in sys.modules}
    return {
        "command": shlex.join(["python", script.removesuffix("/__main__.py"), *sys.argv[1:]]),
        "machine": f"{here.processor}, {here.cores} cores{memory}{gpus}, {here.system}",
        "date": datetime.datetime.now(tz=datetime.timezone.utc).date().isoformat(),
        "versions": {"lmmprune": lmmprune.__version__} | {name: _version(package) for name, package in used.items()},
    }


def head(run: Mapping[str, Any], name: str) -> str:
    """Return how a result was made as the list that its part of the page begins with."""
    versions = ", ".join(f"{package} {version}" for package, version in run["versions"].items())
    lines = [
        f"* Command: `{run['command']}`",
        f"* Machine: {run['machine']}",
        f"* Date: {run['date']}; {versions}",
        f"* Numbers: [{name}.json]({name}.json)",
    ]
    return "\n".join(lines)


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package).split("+")[0]
    except importlib.metadata.PackageNotFoundError:
        return "unknown"
