"""What pyproject.toml asks for: every package with both ends, the upper one behind what the tests ran with."""

from __future__ import annotations

from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

from lmmprune.caches import VARIABLE, cache_directory

tomllib = pytest.importorskip("tomllib", reason="Python 3.10 reads no TOML by itself")
ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
ASKED = [PROJECT["dependencies"], *PROJECT["optional-dependencies"].values()]
REQUIREMENTS = [Requirement(line) for lines in ASKED for line in lines]


def pins(name: str) -> dict[str, Version]:
    lines = (ROOT / name).read_text().splitlines()
    pairs = [line.split("==") for line in lines if line and not line.startswith("#")]
    return {canonicalize_name(package): Version(version) for package, version in pairs}


@pytest.mark.parametrize("requirement", REQUIREMENTS, ids=str)
def test_both_ends_are_given(requirement: Requirement) -> None:
    ends = {each.operator: Version(each.version) for each in requirement.specifier}
    assert set(ends) == {">=", "<"}
    tested = pins("constraints.txt").get(canonicalize_name(requirement.name))
    if tested is not None:
        assert ends[">="] <= tested
        assert ends["<"] == Version(str(tested.major + 1)), f"tested with {tested}"


@pytest.mark.parametrize("line", PROJECT["dependencies"])
def test_the_base_install_is_pinned_for_both_pythons(line: str) -> None:
    requirement = Requirement(line)
    for name in ("constraints.txt", "constraints-py310.txt"):
        if requirement.marker is None or "310" in name:
            assert pins(name)[canonicalize_name(requirement.name)] in requirement.specifier


def test_the_environment_says_where_caches_are(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv(VARIABLE, str(tmp_path))
    assert cache_directory("trace") == tmp_path / "trace"
    monkeypatch.delenv(VARIABLE)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "system"))
    assert cache_directory("trace") == tmp_path / "system" / "lmmprune" / "trace"
