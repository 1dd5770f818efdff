"""What a library raises below a step is one line: the part, the cause, what to try; our own mistakes stay ours."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from lmmprune.errors import BundleError, InputError, ModelError, below

Cli = Callable[..., tuple[int, str, str]]


def _library(message: str = "no dice") -> None:
    json.loads(message)


def test_a_librarys_exception_is_one_line() -> None:
    line = r"^baking failed \(JSONDecodeError: Expecting value: .*\): eat it raw; -v shows"
    with pytest.raises(ModelError, match=line), below("baking", "eat it raw"):
        _library()


def test_the_cause_behind_the_steps_of_an_exporter_is_shown() -> None:
    def export() -> None:
        try:
            _library()
        except ValueError as error:
            raise RuntimeError("Failed in step 1/3.\nMany\nlines of advice.") from error

    with pytest.raises(BundleError, match=r"baking failed .JSONDecodeError"), below("baking", "x", kind=BundleError):
        export()


def test_long_messages_are_cut_between_words() -> None:
    def fail() -> None:
        raise RuntimeError("word\n" * 200)

    with pytest.raises(ModelError) as caught, below("baking", "eat it raw"):
        fail()
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 400
    assert "word …): eat it raw" in str(caught.value)


def test_our_own_lines_and_our_own_mistakes_pass() -> None:
    from lmmprune.stored import bytes_of

    with pytest.raises(InputError, match=r"^as it was$"), below("baking", "x"):
        raise InputError("as it was")
    # The innermost line that runs is ours.
    with pytest.raises(AttributeError), below("baking", "x"):
        bytes_of(None)  # type: ignore[arg-type]
    with pytest.raises(KeyboardInterrupt), below("baking", "x"):
        raise KeyboardInterrupt


@pytest.mark.parametrize("verbose", [False, True])
def test_a_trace_that_fails_is_one_line(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, verbose: bool
) -> None:
    import torch

    monkeypatch.setattr(torch.onnx, "export", lambda *given, **more: _library())
    words = ["export", "--model", "tiny-llava", "--no-cache", "-o", tmp_path / "out", *(["-v"] if verbose else [])]
    code, out, err = cli(*words)
    assert code == 2
    assert not out
    last = err.strip().splitlines()[-1]
    assert last.startswith(
        f"lmmprune: error: tracing the vision tower with torch {torch.__version__} failed (JSONDecode"
    )
    assert ("Traceback" in err) == verbose
    assert len(err.strip().splitlines()) == 1 or verbose
    assert not list(tmp_path.iterdir())


def test_our_own_mistakes_are_shown_whole(cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def slip(*given: object) -> None:
        raise AssertionError("a slip")

    monkeypatch.setattr("lmmprune.compiler.export.export.write_assets", slip)
    code, _, err = cli("export", "--model", "tiny-llava", "-o", tmp_path / "out")
    assert code == 1
    assert "Traceback" in err
    assert err.strip().splitlines()[-1] == (
        "lmmprune: error: this is a mistake of lmmprune, not yours: please report it with the lines above"
    )
