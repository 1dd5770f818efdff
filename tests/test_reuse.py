"""What the decoder has read isn't read again, and changes no value: against PyTorch, for every kind of cut."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conversing import Talk, picture, reference
from exports import exported_again

from lmmprune.compiler.backends.session import Session
from lmmprune.compiler.bundle.bundle import Bundle
from lmmprune.compiler.compare.record import score_answer
from lmmprune.compiler.runtime.runtime import Runtime
from lmmprune.compiler.serve.prefixes import Prefixes
from lmmprune.errors import InputError
from lmmprune.models.registry import tiny_llava_dir

QUESTIONS = (
    "which digit is bottommost?",
    "what colour is it, and where does it stand in the picture, left or right?",
    "is it red?",
)
VARIANTS: dict[str, dict[str, Any]] = {
    "unpruned": {},
    "before the decoder": {"ratio": 0.5},
    "openvino": {"ratio": 0.5, "method": "fastv", "target": "openvino-cpu"},
    "numbered anew": {"ratio": 0.5, "positions": "contiguous"},
    "before the first layer": {"ratio": 0.5, "method": "cdpruner"},
    "one cut in the decoder": {"ratio": 0.5, "method": "fastv"},
    "cuts, numbered anew": {"ratio": 0.5, "method": "sparsevlm"},
    "many cuts": {"ratio": 0.5, "method": "ficoco-l"},
    "merged, then cuts": {"ratio": 0.5, "method": "aim"},
    "text cut too": {"ratio": 0.5, "method": "inflection", "options": (("prune_text", "2"),)},
}
FIXED = ("unpruned", "one cut in the decoder", "many cuts", "merged, then cuts")
CUT = ("one cut in the decoder", "text cut too")


def scene(name: str = "003") -> Any:
    return picture(tiny_llava_dir() / "examples" / f"scene_{name}.png")


def opened(**options: Any) -> tuple[Path, Runtime]:
    path = exported_again(**options)[0]
    return path, Runtime(Bundle.open(path), threads=1)


def talked(run: Runtime, questions: tuple[str, ...] = QUESTIONS, *, keep: bool = True) -> Talk:
    talk = Talk(run, [run.encode_image(scene())], run.hold() if keep else None)
    for question in questions:
        talk.ask(question, 4)
    return talk


def assert_close(found: np.ndarray, wanted: np.ndarray) -> None:
    assert np.abs(found - wanted).max() <= 1e-4 * np.abs(wanted).max()


@pytest.mark.parametrize(
    ("variant", "more"),
    [*((name, {}) for name in VARIANTS), *((name, {"static_cache": 200}) for name in FIXED)],
    ids=lambda value: value if isinstance(value, str) else "fixed" * bool(value),
)
def test_later_questions_get_the_logits_of_whole_runs(variant: str, more: dict[str, int]) -> None:
    path, run = opened(**VARIANTS[variant], **more)
    talk = talked(run)
    assert talk.reused[0] == 0
    for before, reused in zip(talk.ids, talk.reused[1:], strict=False):
        entered = len(before) - run.bundle.manifest.vision_tokens + run.bundle.manifest.image_tokens
        assert entered <= reused < entered + 4, "the earlier prompt, and what of its answer reads the same"
    for found, wanted in zip(talk.logits[1:], reference(path, talk), strict=True):
        assert_close(found, wanted)


@pytest.mark.parametrize("older", [False, True])
def test_behind_cuts_runs_are_as_long_as_the_graph_takes(older: bool) -> None:
    """Here one visual token stays: older graphs move the rows of a run behind the prefix and that one."""
    path, run = opened(**VARIANTS["one cut in the decoder"])
    manifest = run.bundle.manifest
    assert (manifest.prefix, manifest.schedule[0].tokens_out, manifest.longest_run) == (3, 1, 147)
    if older:
        run.bundle = dataclasses.replace(run.bundle, manifest=dataclasses.replace(manifest, long_turns=False))
    lengths: list[int] = []
    run._sessions = {"decoder": Watched(run._session("decoder"), lengths), **others(run)}
    talk = talked(run, QUESTIONS[:2])
    behind = [length for length in lengths if 1 < length < len(talk.ids[0])]
    assert (max(behind), len(behind) > 1) == ((4, True) if older else (sum(behind), False))
    assert sum(behind) > 20
    (wanted,) = reference(path, talk)
    assert_close(talk.logits[1], wanted)


def test_integers_are_those_of_whole_runs() -> None:
    _, run = opened(ratio=0.5, int8=True, calibration_samples=2)
    for found, wanted in zip(talked(run).logits, talked(run, keep=False).logits, strict=True):
        assert_close(found, wanted)


@pytest.mark.parametrize("more", [{}, {"static_cache": 200}], ids=["growing", "fixed"])
@pytest.mark.parametrize("method", ["freepruner", "v2drop"])
def test_another_question_keeps_the_picture_alone(method: str, more: dict[str, int]) -> None:
    """The cache is cut back to what both prompts begin with, also behind cuts; neither method asks the question."""
    _, run = opened(ratio=0.5, method=method, **more)
    talk = talked(run, QUESTIONS[:2])
    talk.words.clear()
    talk.ask(QUESTIONS[2], 4)
    first, third = talk.ids[0], talk.ids[2]
    same = next(i for i, (one, other) in enumerate(zip(first, third, strict=False)) if one != other)
    assert talk.reused[2] == same >= run.bundle.manifest.prefix + run.bundle.manifest.image_tokens
    alone = talked(run, QUESTIONS[2:], keep=False)
    assert alone.tokens[0] == talk.tokens[2]
    assert_close(talk.logits[2], alone.logits[0])


def test_text_that_was_cut_is_not_taken_back() -> None:
    _, run = opened(**VARIANTS["text cut too"])
    talk = talked(run, QUESTIONS[:1])
    talk.words.clear()
    talk.ask(QUESTIONS[1], 4)
    assert talk.reused == [0, 0]
    assert_close(talk.logits[1], talked(run, QUESTIONS[1:2], keep=False).logits[0])


def test_the_first_question_chooses(monkeypatch: pytest.MonkeyPatch) -> None:
    _, run = opened(**VARIANTS["before the first layer"])
    session, asked = run._session("selection"), []
    answer = session.run
    monkeypatch.setattr(session, "run", lambda feeds: asked.append(feeds) or answer(feeds))
    talk = talked(run)
    talk.words.clear()
    talk.ask(QUESTIONS[1], 2)
    assert len(asked) == 1
    talked(run, QUESTIONS[:2], keep=False)
    assert len(asked) == 3


@pytest.mark.parametrize("method", ["freepruner", "v2drop"])
def test_another_picture_is_read_anew(method: str) -> None:
    _, run = opened(ratio=0.5, method=method)
    talk = talked(run, QUESTIONS[:1])
    talk.words.clear()
    talk.pictures = [run.encode_image(scene("021"))]
    talk.ask(QUESTIONS[0], 4)
    # Behind a cut nothing of a picture is taken back, not even what stood before it.
    assert talk.reused == [0, run.bundle.manifest.prefix if method == "freepruner" else 0]
    assert np.abs(talk.logits[1] - talk.logits[0]).max() > 0.1
    assert_close(talk.logits[1][:1], run_alone(run, talk))


def run_alone(run: Runtime, talk: Talk) -> np.ndarray:
    alone = Talk(run, talk.pictures, None)
    alone.ask(QUESTIONS[0], 1)
    return alone.logits[0]


@pytest.mark.parametrize("more", [{}, {"static_cache": 200}], ids=["growing", "fixed"])
@pytest.mark.parametrize("options", [{}, {"ratio": 0.5, "method": "cdpruner"}], ids=["unpruned", "selected"])
def test_a_prefill_in_chunks_changes_no_value(options: dict[str, Any], more: dict[str, int]) -> None:
    path, whole = opened(**options, **more)
    talk, lengths = talked(whole, QUESTIONS[:2]), []
    for chunk in (7, 60):
        run = Runtime(Bundle.open(path), threads=1, prefill_chunk=chunk)
        run._sessions = {"decoder": Watched(run._session("decoder"), lengths), **others(run)}
        for found, wanted in zip(talked(run, QUESTIONS[:2]).logits, talk.logits, strict=True):
            assert_close(found, wanted)
        assert max(lengths) == chunk
        assert sum(lengths) >= len(talk.ids[0]) - whole.bundle.manifest.vision_tokens
        lengths.clear()


class Watched:
    """A session that tells how many tokens it is given."""

    def __init__(self, inner: Session, lengths: list[int]) -> None:
        self.upload, self.download = inner.upload, inner.download
        self._inner, self._lengths = inner, lengths

    def run(self, feeds: Any) -> Any:
        self._lengths.append(self.download(feeds["input_ids"]).shape[1])
        return self._inner.run(feeds)


def others(run: Runtime) -> dict[str, Session]:
    return {name: run._session(name) for name in run.bundle.manifest.graphs if name != "decoder"}


def test_a_server_keeps_none_where_the_question_chooses() -> None:
    for variant in ("one cut in the decoder", "before the first layer"):
        _, run = opened(**VARIANTS[variant])
        with pytest.raises(InputError, match=r"--conversations 1: .* cuts at llm_input_\d, where the question chooses"):
            Prefixes(run, 1)
        with Prefixes(run, 0).lend([], ["?"]) as held:
            assert held is None


def test_engines_that_take_several_tokens_at_once_only_at_the_beginning_say_so() -> None:
    fixed, cuts = {"static_cache": 200}, VARIANTS["one cut in the decoder"]
    for options, advice in (({}, "--static-cache N"), (fixed, ""), ({**fixed, **cuts}, "a method that cuts in front")):
        _, run = opened(**options)
        run.bundle = dataclasses.replace(
            run.bundle, manifest=dataclasses.replace(run.bundle.manifest, target="tensorrt-rtx")
        )
        if not advice:
            assert run.hold().tokens == 0
            continue
        with pytest.raises(InputError, match=f"engines for tensorrt-rtx take a whole .* export with {advice}"):
            run.hold()


def test_chunks_cut_through_several_pictures() -> None:
    path, whole = opened(images=3, ratio=0.5, method="freepruner")
    pictures = [whole.encode_image(scene(name)) for name in ("003", "021")]
    question = "is <image> brighter than <image>?"
    chunks = Runtime(Bundle.open(path), threads=1, prefill_chunk=50)
    found, wanted = (score_answer(run, pictures, question, [7, 8, 9]) for run in (chunks, whole))
    assert_close(found, wanted)


@pytest.mark.parametrize("variant", CUT)
def test_chunks_are_refused_behind_cuts(variant: str) -> None:
    path = exported_again(**VARIANTS[variant])[0]
    with pytest.raises(InputError, match=r"cuts at llm_input_2, where one run sees .* \(vispruner, divprune, cdp"):
        Runtime(Bundle.open(path), prefill_chunk=64)


def test_the_script_that_times_a_second_question(tmp_path: Path) -> None:
    file = Path(__file__).parents[1] / "scripts" / "llava7b" / "second_question.py"
    spec = importlib.util.spec_from_file_location("second_question", file)
    assert spec is not None
    assert spec.loader is not None
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    (tmp_path / "float32").symlink_to(opened()[0])
    words = [
        "--work",
        str(tmp_path),
        "--layers",
        "0",
        "--variant",
        "float32",
        "--rounds",
        "2",
        "--threads",
        "1",
        "--keep",
    ]
    script.main([*words, "-o", str(tmp_path / "found")], standalone_mode=False)
    row = json.loads((tmp_path / "found.json").read_text())["result"]["variants"]["float32"]
    assert len(row["kept_ms"]) == len(row["anew_ms"]) == 2
    assert 10 < row["read_tokens"] < row["prompt_tokens"] - 144
    assert f"| float32 | {row['prompt_tokens']} | {row['read_tokens']} |" in (tmp_path / "found.md").read_text()
