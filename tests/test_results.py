import json
import sys
from pathlib import Path

import pytest

SCRIPTS = Path(__file__).parent.parent / "scripts"


@pytest.fixture
def results(monkeypatch):
    monkeypatch.syspath_prepend(str(SCRIPTS))
    import results

    return results


def test_a_page_is_made_with_how_and_what(results, tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", [str(SCRIPTS / "int8" / "int8_kernels.py"), "--rounds", "3"])
    results.write(tmp_path / "new" / "kernels", {"ms": [1, 2]}, "| a |\n|---|\n| 1 |\n")
    text = (tmp_path / "new" / "kernels.md").read_text(encoding="utf-8")
    assert text.startswith("# kernels\n\n<!-- result: kernels -->\n* Command: `python scripts/int8/int8_kernels.py")
    assert text.endswith("| 1 |\n<!-- end -->\n")
    record = json.loads((tmp_path / "new" / "kernels.json").read_text(encoding="utf-8"))
    assert record["result"] == {"ms": [1, 2]} == results.read(tmp_path / "new" / "kernels")
    assert record["run"]["command"] == "python scripts/int8/int8_kernels.py --rounds 3"
    assert record["run"]["versions"]["lmmprune"]
    assert record["run"]["date"] in text
    assert record["run"]["machine"] in text


def test_words_around_a_result_stay(results, tmp_path):
    page = tmp_path / "page.md"
    page.write_text(
        "# T\n\nbefore\n\n<!-- result: a -->\nold\n<!-- end -->\n\nbetween\n\n<!-- result: b -->\nB\n<!-- end -->\n"
    )
    results.write(tmp_path / "a", 1, "new", page=page)
    text = page.read_text(encoding="utf-8")
    assert "old" not in text
    assert "\nnew\n<!-- end -->\n\nbetween\n" in text
    assert text.startswith("# T\n\nbefore\n")
    assert text.endswith("<!-- result: b -->\nB\n<!-- end -->\n")
    results.write(tmp_path / "c", 1, "third", page=page)
    assert page.read_text(encoding="utf-8").startswith(text.rstrip())


def test_a_text_with_backslashes_is_written_as_it_is(results, tmp_path):
    results.write_part(tmp_path / "p.md", "x", "a\n")
    results.write_part(tmp_path / "p.md", "x", r"\1 \g<0>" + "\n")
    assert r"\1 \g<0>" in (tmp_path / "p.md").read_text(encoding="utf-8")
