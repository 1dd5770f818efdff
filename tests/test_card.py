"""The model card says what the manifest and the results say, of this bundle and no other, and what nobody measured."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import runtime_fixtures as fx
from format_folders import pope
from markdown_it import MarkdownIt

import lmmprune
from lmmprune.compiler.bundle.bundle import Bundle
from lmmprune.compiler.card.card import make_card
from lmmprune.compiler.card.markdown import code, plain
from lmmprune.compiler.cli import main
from lmmprune.errors import InputError

Cli = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("card")
    fx.make_bundle(home / "full", max_positions=512)
    # A method that there is, so that its paper is found.
    fx.make_bundle(home / "half", keep=8, max_positions=512, method="visionzip", parameters={"dominant": 0.8})
    fx.save_picture(home / "p.png", 3)
    rows = [
        {"image": "p.png", "prompt": prompt, "answer": "x", "kind": kind}
        for prompt, kind in (("a", "one|two"), ("b", "other"))
    ]
    (home / "q.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    pope(home / "pope")
    return home


@pytest.fixture(scope="module")
def results(home: Path) -> dict[str, dict[str, Any]]:
    """Measure both bundles in every way; what the commands print."""
    bundles = (home / "full", home / "half")
    asked = ("--data", home / "q.jsonl", "--max-new-tokens", 3)
    commands: dict[str, tuple[object, ...]] = {
        "eval": ("eval", *bundles, *asked),
        "one": ("eval", home / "half", *asked),
        "pope": ("eval", *bundles, "--data", home / "pope", "--format", "pope", "--max-new-tokens", 2),
        "compare": ("compare", *bundles, *asked, "--rounds", 2, "--forget-answers"),
        "bench": (
            *("bench", *bundles, "--image", home / "p.png", "--prompt", "hi"),
            *("--rounds", 2, "--new-tokens", 2, "--no-memory"),
        ),
    }
    found = {}
    for name, words in commands.items():
        with pytest.MonkeyPatch.context() as patch:
            said: list[str] = []
            patch.setattr("click.echo", lambda text="", said=said, **_: said.append(str(text)))
            with pytest.raises(SystemExit) as ended:
                main([str(word) for word in (*words, "--json")])
        assert ended.value.code == 0, said
        (home / f"{name}.json").write_text(said[-1])
        found[name] = json.loads(said[-1])
    return found


def tables(markdown: str) -> dict[str, list[list[str]]]:
    """Return the rows of the tables below each heading, as a Markdown parser reads them."""
    found: dict[str, list[list[str]]] = {}
    heading = ""
    tokens = MarkdownIt("commonmark").enable("table").parse(markdown)
    for before, token in zip([None, *tokens], tokens, strict=False):
        if token.type == "inline" and before is not None:
            if before.type == "heading_open":
                heading = token.content
            elif before.type in ("td_open", "th_open"):
                found.setdefault(heading, [[]])[-1].append(token.content)
        elif token.type == "tr_open":
            found.setdefault(heading, []).append([])
    return {name: [row for row in rows if row] for name, rows in found.items()}


def test_the_bundle_by_itself(home: Path) -> None:
    bundle = Bundle.open(home / "half")
    card = make_card(bundle)
    found = tables(card.markdown)
    assert card.markdown.startswith("# synthetic: 8 of 16 visual tokens by visionzip, float32, for ort-cpu\n")
    assert found["Tokens"][1:] == [["`vision_output`", "16", "8", "0"]]
    assert "[arXiv 2412.04467](https://arxiv.org/abs/2412.04467)" in card.markdown, "the paper of VisionZip"
    assert "`dominant=0.8`" in card.markdown
    # Every file with the checksum that its bytes have, and one checksum over all of them.
    files = {row[0]: row[2] for row in found["Numbers and size"] if len(row) == 3 and row[0] != "file"}
    assert files == {
        f"`{name}`": f"`{hashlib.sha256((home / 'half' / name).read_bytes()).hexdigest()}`"
        for name in bundle.manifest.files
    }
    whole = "".join(f"{digest[1:-1]}  {name[1:-1]}\n" for name, digest in sorted(files.items()))
    assert ["SHA-256 of all files", f"`{hashlib.sha256(whole.encode()).hexdigest()}`"] in found["What it is"]
    assert "made up: it measures speed and size only" in card.markdown, "its weights are dummies"
    assert str(home) not in card.markdown
    assert card.measured == ()
    for command in ("eval", "compare", "bench"):
        assert any(f"`lmmprune {command}`" in line for line in card.missing)
    assert any("--format pope" in line and "--format refcoco" in line for line in card.missing)
    assert all(f"* {line}\n" in card.markdown for line in card.missing)


def test_an_unpruned_bundle_is_faithful_to_itself(home: Path) -> None:
    card = make_card(Bundle.open(home / "full"))
    assert "all 16 visual tokens stay" in card.markdown
    assert "## Method" not in card.markdown
    assert not any("faithful" in line or "loses first" in line for line in card.missing)


def test_what_was_measured_is_told_as_it_was_printed(home: Path, results: dict[str, Any], cli: Cli) -> None:
    given = [
        *("--eval", home / "eval.json", "--eval", home / "pope.json"),
        *("--compare", home / "compare.json", "--bench", home / "bench.json"),
    ]
    code_, out, err = cli("card", home / "half", *given, "-o", home / "CARD.md", "--force")
    assert (code_, out, err) == (0, "", f"card written to {home / 'CARD.md'}\n")
    text = (home / "CARD.md").read_text()
    found = tables(text)
    right = {row[0]: row[1:] for row in found["Right answers: `q.jsonl`"]}
    own = results["eval"]["bundles"][1]
    assert right["all"][:2] == ["2", f"{100 * own['accuracy']:.1f} %"]
    less = own["difference"]
    assert right["all"][3] == f"{100 * less['value']:+.1f} ({100 * less['low']:+.1f} .. {100 * less['high']:+.1f})"
    assert {*right} == {"questions", "all", "one|two", "other"}
    figures = {row[0]: row for row in found["Right answers: POPE"]}
    assert {*figures} == {"figure", "F1", "accuracy", "precision", "recall", "yes"}
    f1 = results["pope"]["bundles"][1]["figures"]["F1"]
    assert figures["F1"][1:3] == [f"{100 * f1['value']:.1f} %", f"{100 * f1['low']:.1f} .. {100 * f1['high']:.1f}"]
    measures = results["compare"]["others"][0]["measures"]
    faithful = {row[0]: row[1:] for row in found["Faithfulness"]}
    assert faithful["divergence per token, nats"][0] == f"{measures['kl']['value']:.4g}"
    assert faithful["answers equal, token for token"][0] == f"{100 * measures['exact']['value']:.1f} %"
    row, first = results["bench"]["rows"][1], results["bench"]["rows"][0]
    times = {cells[0]: cells[1:] for cells in found["Time and memory"]}
    assert times["vision"][0] == f"{row['times']['vision_ms']['median']:.2f} ms"
    assert times["vision"][2].startswith(f"{row['intervals']['vision_ms']['value']:.2f} (")
    assert f"Beside `{first['name']}`" in text
    assert str(home) not in text, "a card is read elsewhere"


def test_what_is_measured_is_no_longer_missing(home: Path, results: dict[str, Any]) -> None:
    card = lmmprune.card(
        home / "half",
        evaluations=[home / "one.json", results["pope"]],
        comparisons=[results["compare"]],
        benches=[results["bench"]],
    )
    assert card.measured == ("answers", "faithfulness", "format pope", "time")
    assert [re.findall(r"`lmmprune (\w+)`", line) for line in card.missing] == [["bench"], [], []], "memory alone"
    assert "--format pope" not in card.missing[1]
    assert "--format textvqa" in card.missing[1]
    base = lmmprune.card(home / "full", comparisons=[results["compare"]])
    assert base.measured == ("time",)
    assert "Others were compared with it" in base.markdown


def test_memory_is_told(home: Path, results: dict[str, Any]) -> None:
    rows = [{**row, "memory": {"peak": 3 * 2**20, "base": 2**20, "device": 2**30}} for row in results["bench"]["rows"]]
    card = lmmprune.card(home / "half", benches=[{**results["bench"], "rows": rows}])
    assert "3.0 MiB (1.0 MiB before it loads the bundle), and 1.0 GiB of the GPU's" in card.markdown
    assert "memory" in card.measured


def test_a_result_is_found_wherever_the_bundle_lies(home: Path, results: dict[str, Any], tmp_path: Path) -> None:
    moved = fx.make_bundle(tmp_path / "elsewhere", keep=8, max_positions=512, created="2027-01-01T00:00:00Z").path
    assert lmmprune.card(moved, evaluations=[results["one"]]).measured == ("answers",)


def changed(found: dict[str, Any], **fields: Any) -> dict[str, Any]:
    return {**found, **fields}


@pytest.mark.parametrize(
    ("option", "made", "message"),
    [
        ("--eval", lambda found: changed(found["one"], sha256="0" * 64), "says nothing of .*only of half: was it"),
        ("--eval", lambda found: changed(found["one"], sha256=""), "doesn't say by checksums .*measure again"),
        ("--eval", lambda found: found["compare"], "doesn't say by checksums|isn't what 'lmmprune eval --json' prints"),
        ("--eval", lambda found: {**found["one"], "kinds": 3}, "isn't what 'lmmprune eval --json' prints"),
        ("--compare", lambda found: found["bench"], "isn't what 'lmmprune compare --json' prints .*'base'"),
        ("--bench", lambda found: found["compare"], "isn't what 'lmmprune bench --json' prints .*'rows'"),
        ("--bench", lambda found: [], "holds no object"),
        ("--bench", lambda found: None, r"can't be read"),
    ],
)
def test_results_that_arent(
    option: str,
    made: Callable[[dict[str, Any]], Any],
    message: str,
    home: Path,
    results: dict[str, Any],
    refusal: Callable[..., str],
    tmp_path: Path,
) -> None:
    document = made(results)
    (tmp_path / "x.json").write_text("{" if document is None else json.dumps(document))
    assert re.search(message, refusal("card", home / "half", option, tmp_path / "x.json"))


def test_cards_are_not_replaced_silently(home: Path, refusal: Callable[..., str], tmp_path: Path) -> None:
    (tmp_path / "CARD.md").write_text("mine")
    assert "--force to replace it" in refusal("card", home / "half", "-o", tmp_path / "CARD.md")
    assert "there is no directory" in refusal("card", home / "half", "-o", tmp_path / "no" / "CARD.md")
    assert "add -o FILE" in refusal("card", home / "half", "--force")
    assert "doesn't exist" in refusal("card", tmp_path / "none")


def test_a_card_as_json(home: Path, cli: Cli) -> None:
    code_, out, _ = cli("card", home / "full", "--json")
    found = json.loads(out)
    assert code_ == 0
    assert found == json.loads(json.dumps(dataclasses.asdict(make_card(Bundle.open(home / "full")))))
    assert cli("card", home / "full")[1] == found["markdown"]


def test_words_of_others_are_no_markup(tmp_path: Path) -> None:
    name = "x|y <b>*z*</b> [l](u) `c` # h"
    bundle = fx.make_bundle(tmp_path / "it's `my` out", keep=4, model=name)
    text = make_card(bundle).markdown
    assert "lmmprune run 'it'\"'\"'s `my` out' --image" in text
    html = MarkdownIt("commonmark", {"html": True}).enable("table").render(text)
    assert "<b>" not in html
    assert "<a " not in html
    assert "<em>" not in html
    assert html.count("<h1>") == 1
    assert plain("a|b") == "a\\|b"
    assert code("a`b|c") == "`a'b/c`"


def test_a_method_from_outside(tmp_path: Path) -> None:
    bundle = fx.make_bundle(tmp_path / "out", keep=4)
    assert "Paper: unknown here, it is a method from outside" in make_card(bundle).markdown


def test_a_result_must_be_of_this_bundle_from_python(home: Path, results: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=r"what 'eval' measured says nothing of .*full"):
        lmmprune.card(home / "full", evaluations=[results["one"]])
