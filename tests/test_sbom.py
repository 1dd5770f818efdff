"""The bill of materials names what an install brings, and nothing in it has a licence that isn't signed off."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

SCRIPTS = Path(__file__).parents[1] / "scripts"


@pytest.fixture
def sbom(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(SCRIPTS)
    import sbom

    return sbom


def test_the_bill_names_all_dependencies(sbom: Any) -> None:
    done = CliRunner().invoke(sbom.main, ["--extra", "cpu"])
    assert done.exit_code == 0, done.stderr
    bill = json.loads(done.stdout)
    assert (bill["bomFormat"], bill["metadata"]["component"]["name"]) == ("CycloneDX", "lmmprune")
    names = {component["name"] for component in bill["components"]}
    assert {"numpy", "pillow", "tokenizers", "cattrs", "attrs", "onnxruntime"} <= names
    assert not {"torch", "transformers", "lmmprune"} & names
    assert all(component["version"] in component["purl"] for component in bill["components"])


def test_all_licences_are_signed_off(sbom: Any) -> None:
    packages = sbom.installed(("cpu", "export"))
    assert "torch" in packages
    strange = {name: words for name, one in packages.items() if not sbom.accepted(name, words := sbom.licence(one))}
    assert set(strange) <= {"lmmprune"}
    assert not sbom.accepted("x", "GPL-3.0-only")
    assert not sbom.accepted("x", "unknown")
