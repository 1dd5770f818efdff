"""List the packages that an install of lmmprune brings: a CycloneDX bill of materials, or their licences as a table.

python scripts/sbom.py                          # the base install with the extras cpu and export, CycloneDX on stdout
python scripts/sbom.py --extra cpu -o dist/lmmprune.cdx.json
python scripts/sbom.py --licences               # Markdown; exit code 1 where one isn't in LICENCES below

What is listed is what is installed here. LICENCES is signed off: each lets an Apache-2.0 program depend on it.
"""

from __future__ import annotations

import importlib.metadata
import json
import re
import sys
from pathlib import Path
from typing import Any

import click
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

LICENCES = ("Apache", "BSD", "ISC", "MIT", "MPL", "PSF", "Python Software Foundation")
"""Words of which one stands in every licence that is accepted."""
_NVIDIA = re.compile(r"nvidia|cuda|tensorrt")


def installed(extras: tuple[str, ...]) -> dict[str, importlib.metadata.Distribution]:
    """Return what lmmprune needs with some extras, by name; what isn't installed here is left out."""
    found: dict[str, importlib.metadata.Distribution] = {}
    todo = [("lmmprune", extras)]
    seen = set()
    while todo:
        name, wanted = todo.pop()
        if (name, wanted) in seen:
            continue
        seen.add((name, wanted))
        try:
            distribution = importlib.metadata.distribution(name)
        except importlib.metadata.PackageNotFoundError:
            continue
        found[name] = distribution
        for text in distribution.requires or ():
            need = Requirement(text)
            if need.marker is None or any(need.marker.evaluate({"extra": extra}) for extra in wanted or ("",)):
                todo.append((canonicalize_name(need.name), tuple(sorted(need.extras))))
    return dict(sorted(found.items()))


def licence(distribution: importlib.metadata.Distribution) -> str:
    """Return a package's licence in its own words, as short as they are."""
    about = distribution.metadata
    classified = [text.rsplit(" :: ", 1)[-1] for text in about.get_all("Classifier") or () if "License ::" in text]
    said = about.get("License-Expression") or " and ".join(classified) or (about.get("License") or "").strip()
    short = said.splitlines()[0][:80] if said else ""
    return short if short and short != "UNKNOWN" else "unknown"


def accepted(name: str, words: str) -> bool:
    """Return whether a licence is signed off; NVIDIA's packages are the user's own choice of an extra."""
    return any(word.lower() in words.lower() for word in LICENCES) or bool(_NVIDIA.search(name))


def bill(packages: dict[str, importlib.metadata.Distribution]) -> dict[str, Any]:
    """Return the bill of materials; lmmprune itself is what it is of."""
    components = [
        {
            "type": "library",
            "bom-ref": f"pkg:pypi/{name}@{one.version}",
            "name": name,
            "version": one.version,
            "purl": f"pkg:pypi/{name}@{one.version}",
            "licenses": [{"license": {"name": licence(one)}}],
        }
        for name, one in packages.items()
    ]
    own = next(component for component in components if component["name"] == "lmmprune")
    return {
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "version": 1,
        "metadata": {"component": {**own, "type": "application"}},
        "components": [component for component in components if component is not own],
    }


@click.command()
@click.option("--extra", "extras", multiple=True, default=("cpu", "export"), show_default=True, help="With this extra.")
@click.option("--licences", is_flag=True, help="Print a table of licences instead.")
@click.option("-o", "--output", type=click.Path(path_type=Path), help="Write it there.")
def main(extras: tuple[str, ...], licences: bool, output: Path | None) -> None:
    """Print the bill of materials."""
    packages = installed(extras)
    rows = {name: (one.version, licence(one)) for name, one in packages.items() if name != "lmmprune"}
    if licences:
        lines = ["| package | version | licence |", "|---|---|---|"]
        text = "\n".join([*lines, *(f"| {name} | {version} | {words} |" for name, (version, words) in rows.items())])
    else:
        text = json.dumps(bill(packages), indent=1)
    if output is None:
        click.echo(text)
    else:
        output.parent.mkdir(parents=True, exist_ok=True)
        output.write_text(text + "\n", encoding="utf-8")
    strange = [f"{name}: {words}" for name, (_, words) in rows.items() if not accepted(name, words)]
    for line in strange:
        click.echo(f"not signed off: {line}", err=True)
    sys.exit(bool(strange))


if __name__ == "__main__":
    main()
