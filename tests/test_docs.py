"""The documentation says what the code says: tables, fields, messages, files, and how long the README is."""

import dataclasses
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import lmmprune
from lmmprune.compiler.bundle.manifest import Manifest
from lmmprune.compiler.targets.targets import TARGETS
from lmmprune.models.registry import FAMILIES
from lmmprune.passes.methods import METHODS

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
RESULTS = DOCS / "results"


def table(page: Path, name: str) -> str:
    found = re.search(rf"<!-- table: {name} -->\n(.*?)<!-- end -->", page.read_text(encoding="utf-8"), re.DOTALL)
    assert found is not None, f"{page} has no table '{name}'"
    return found[1]


def entries(text: str) -> list[str]:
    return re.findall(r"^(?:\||###) `([^`]+)`(?: \||$)", text, re.MULTILINE)


@pytest.mark.parametrize(
    ("page", "name", "expected"),
    [
        ("README.md", "targets", TARGETS),
        ("docs/reference/methods.md", "methods_in_full", METHODS),
        ("docs/reference/models.md", "families", FAMILIES),
        ("docs/reference/targets.md", "profiles", TARGETS),
    ],
)
def test_a_table_names_what_the_registry_has(page, name, expected):
    assert entries(table(ROOT / page, name)) == list(expected)


def test_the_readme_names_every_method_once():
    assert sorted(re.findall(r"`([^`]+)`", table(ROOT / "README.md", "methods"))) == sorted(METHODS)


def test_every_table_is_the_data():
    script = [sys.executable, str(ROOT / "scripts" / "docs_tables.py"), "--check"]
    done = subprocess.run(script, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_a_table_that_differs_is_found(tmp_path):
    sys.path.insert(0, str(ROOT / "scripts"))
    try:
        import docs_tables
    finally:
        sys.path.pop(0)
    page = "words\n<!-- table: boards -->\n| old |\n<!-- end -->\nmore\n"
    filled = docs_tables.fill(page)
    assert filled.startswith("words\n<!-- table: boards -->\n| board |")
    assert filled.endswith("<!-- end -->\nmore\n")
    assert docs_tables.fill(filled) == filled


def test_the_readme_is_one_screen():
    lines = (ROOT / "README.md").read_text(encoding="utf-8").splitlines()
    assert len(lines) <= 150
    assert max(len(line) for line in lines if not line.startswith(("|", "<img"))) <= 125


def fields(of: type) -> Iterator[str]:
    """Yield the fields of a record and of those within it."""
    for field in dataclasses.fields(of):
        yield field.name
        for name in re.findall(r"[A-Z]\w+", str(field.type)):
            inner = vars(sys.modules[of.__module__]).get(name)
            if dataclasses.is_dataclass(inner):
                yield from fields(inner)


def test_the_bundles_page_names_every_field():
    page = (DOCS / "reference" / "bundle.md").read_text(encoding="utf-8")
    said = set(re.findall(r"`(\w+)`", page))
    assert {name for name in fields(Manifest) if name not in said} == set()


def test_the_troubleshooting_page_quotes_messages_that_there_are():
    source = "".join(
        path.read_text(encoding="utf-8")
        for room in ("compiler", "models", "passes", "src/lmmprune")
        for path in sorted((ROOT / room).rglob("*.py"))
    )
    source = re.sub(r'"\s*\n\s*f?"', "", source)  # a message may go over several lines
    source = re.sub(r"\{[^{}\"]*\}", "", source)  # and hold values
    rows = re.findall(r"^\| `([^`]+)` \|", (DOCS / "guide" / "troubleshooting.md").read_text("utf-8"), re.MULTILINE)
    assert len(rows) >= 20
    assert [message for message in rows if message not in source] == []


def test_every_result_has_its_page_and_says_how_it_was_made():
    pages = "".join(page.read_text(encoding="utf-8") for page in RESULTS.glob("*.md"))
    for file in RESULTS.glob("*.json"):
        record = json.loads(file.read_text(encoding="utf-8"))
        assert f"({file.name})" in pages, f"no page names {file.name}"
        if f"<!-- result: {file.stem} -->" in pages:
            assert set(record["run"]) == {"command", "machine", "date", "versions"}
            assert record["run"]["command"].split()[0] == "python"


def test_every_result_is_in_the_list():
    index = (RESULTS / "index.md").read_text(encoding="utf-8")
    assert [page.name for page in RESULTS.glob("*.md") if f"({page.name})" not in index and page.stem != "index"] == []


def test_pictures_have_words_for_those_who_dont_see_them():
    for page in (ROOT / "README.md", *DOCS.rglob("*.md")):
        text = page.read_text(encoding="utf-8")
        for words in [*re.findall(r"!\[([^\]]*)\]\(", text), *re.findall(r"<img[^>]*alt=\"([^\"]*)\"", text)]:
            assert len(words) > 15, f"{page.name}: '{words}'"
        assert "<img" not in text or 'alt="' in text


def test_links_of_pages_outside_the_site_lead_somewhere():
    """Those of the site are checked by ``mkdocs build --strict``."""
    for page in (ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md"):
        for link in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text(encoding="utf-8").replace("\n", " ")):
            assert (ROOT / link).exists(), f"{page.name}: {link}"


def test_the_python_page_has_every_public_name():
    page = (DOCS / "reference" / "api.md").read_text(encoding="utf-8")
    modules = {"errors", "__version__"}
    assert set(re.findall(r"^::: lmmprune\.(\w+)$", page, re.MULTILINE)) == set(lmmprune.__all__) - modules


def test_the_map_names_every_room():
    page = (DOCS / "contributing.md").read_text(encoding="utf-8")
    rooms = [room.name for top in ("compiler", "passes") for room in (ROOT / top).iterdir() if list(room.glob("*.py"))]
    assert [room for room in rooms if not re.search(rf"\b{room}\b", page)] == []
