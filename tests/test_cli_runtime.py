"""run, bench, eval and show as the user meets them: output, exit codes, one line for every mistake."""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import runtime_fixtures as fx
from PIL import Image

Cli = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cli")
    fx.make_bundle(folder / "base")
    fx.make_bundle(folder / "pruned", keep=4)
    fx.make_bundle(folder / "rtx", target="tensorrt-rtx")
    fx.save_picture(folder / "p.png", 3, 5, 9, 15)
    (folder / "text.png").write_text("no picture")
    (folder / "bomb.png").write_bytes(fx.png_header(40_000, 40_000))
    row = {"image": "p.png", "prompt": "hi", "answer": "x", "kind": "k"}
    (folder / "q.jsonl").write_text(json.dumps(row) + "\n" + json.dumps({**row, "prompt": "ho"}))
    return folder


def test_run(cli: Cli, made: Path) -> None:
    common = ("run", made / "pruned", "--image", made / "p.png", "--prompt", "hi?", "--max-new-tokens", 6)
    code, out, err = cli(*common, "--stats")
    assert code == 0
    assert "image tokens 16 -> 4" in err
    assert "prefill" in err
    code, document, err = cli(*common, "--json")
    parsed = json.loads(document)
    assert (code, err) == (0, "")
    assert parsed["answer"] + "\n" == out
    assert len(parsed["tokens"]) == parsed["stats"]["new_tokens"] == 6
    assert parsed["kept_indices"] == [3, 5, 9, 15]


def test_run_draws_and_stops(cli: Cli, made: Path) -> None:
    def run(*options: object) -> dict[str, Any]:
        code, document, err = cli(
            "run",
            made / "pruned",
            "--image",
            made / "p.png",
            "--prompt",
            "hi?",
            "--max-new-tokens",
            20,
            "--json",
            *options,
        )
        assert (code, err) == (0, "")
        return json.loads(document)

    plain, drawn = run(), run("--temperature", 2, "--top-k", 50, "--top-p", 0.9, "--seed", 4)
    assert plain["stats"]["finish_reason"] == "length"
    assert drawn["tokens"] != plain["tokens"]
    assert run("--temperature", 2, "--top-k", 50, "--top-p", 0.9, "--seed", 4)["tokens"] == drawn["tokens"]
    assert run("--temperature", 0, "--seed", 4)["tokens"] == plain["tokens"]
    stop = plain["answer"][6:8]
    stopped = run("--stop", "never said", "--stop", stop)
    assert stopped["answer"] == plain["answer"][: plain["answer"].index(stop)]
    assert stopped["stats"]["finish_reason"] == "stop_string"


def test_bench(cli: Cli, made: Path, tmp_path: Path) -> None:
    chart = tmp_path / "chart.png"
    arguments = ("--image", made / "p.png", "--prompt", "hi", "--rounds", 2, "--new-tokens", 2, "--no-memory")
    code, out, err = cli("bench", made / "base", made / "pruned", *arguments, "--chart", chart)
    assert code == 0
    assert "16 -> 4" in out
    assert "1.00x" in out
    assert str(chart) in err
    assert Image.open(chart).width > 1000
    code, out, _ = cli("bench", made / "base", made / "pruned", *arguments, "--json")
    rows = json.loads(out)["rows"]
    assert [row["name"] for row in rows] == ["base", "pruned"]
    assert rows[1]["speedup"]["ttft_ms"]["median"] > 0


def test_eval(cli: Cli, made: Path, tmp_path: Path) -> None:
    written = tmp_path / "predictions.jsonl"
    code, out, _ = cli("eval", made / "pruned", "--data", made / "q.jsonl", "--predictions", written)
    assert code == 0
    assert "0.0%" in out
    predictions = [json.loads(line) for line in written.read_text().splitlines()]
    assert [row["prompt"] for row in predictions] == ["hi", "ho"]
    code, out, _ = cli("eval", made / "pruned", "--data", made / "q.jsonl", "--limit", 1, "--json")
    parsed = json.loads(out)
    assert (parsed["total"], parsed["correct"], parsed["image_tokens"]) == (1, 0, 4)


def test_eval_of_several_bundles(cli: Cli, made: Path, tmp_path: Path) -> None:
    written = tmp_path / "predictions.jsonl"
    both = ("eval", made / "base", made / "pruned", "--data", made / "q.jsonl")
    code, out, err = cli(*both, "--predictions", written)
    assert code == 0, err
    rows = [json.loads(line) for line in written.read_text().splitlines()]
    assert [(Path(row["bundle"]).name, row["prompt"]) for row in rows] == [
        (name, prompt) for name in ("base", "pruned") for prompt in ("hi", "ho")
    ]
    assert "points beside" in " ".join(out.split())
    # One is right about what it said itself, the other only where it says the same.
    said = {(Path(row["bundle"]).name, row["prompt"]): row["predicted"] for row in rows}
    lines = [
        {"image": str(made / "p.png"), "prompt": prompt, "answer": said["base", prompt]} for prompt in ("hi", "ho")
    ]
    (tmp_path / "own.jsonl").write_text("\n".join(map(json.dumps, lines)))
    both = ("eval", made / "base", made / "pruned", "--data", tmp_path / "own.jsonl")
    code, out, _ = cli(*both, "--json", "--min-accuracy", 0)
    base, pruned = json.loads(out)["bundles"]
    same = sum(said["base", prompt] == said["pruned", prompt] for prompt in ("hi", "ho"))
    assert (code, base["accuracy"], pruned["accuracy"]) == (0, 1, same / 2)
    assert base["difference"]["value"] == 0
    assert pruned["difference"]["value"] == same / 2 - 1
    code, out, err = cli(*both, "--min-accuracy", 0.99)
    assert (code, "pruned has" in err, "base has" in err) == (1, True, False)
    assert cli("eval", made / "base", made / "base", "--data", made / "q.jsonl")[0] == 2


def test_show(cli: Cli, made: Path, tmp_path: Path) -> None:
    code, out, _ = cli("show", made / "pruned", "--image", made / "p.png", "-o", tmp_path / "x.png")
    assert code == 0
    assert "16 -> 4" in out
    assert Image.open(tmp_path / "x.png").width >= 672
    code, out, _ = cli("show", made / "base", "--image", made / "p.png", "-o", tmp_path / "y.png", "--json")
    assert json.loads(out)["kept_indices"] == list(range(16))


P = ("--image", "{made}/p.png", "--prompt", "hi")
MISTAKES: dict[str, tuple[Sequence[str], str]] = {
    "no bundle": (("run", "{made}/none", *P), "doesn't exist"),
    "not a bundle": (("run", "{made}", *P), "not a bundle"),
    "wrong target": (("run", "{made}/rtx", *P), "lmmprune build DIR --target tensorrt-rtx"),
    "missing picture": (("run", "{made}/base", "--image", "{made}/q.png", "--prompt", "hi"), "there is no picture"),
    "text as picture": (("run", "{made}/base", "--image", "{made}/text.png", "--prompt", "hi"), "isn't a picture"),
    "bomb": (("run", "{made}/base", "--image", "{made}/bomb.png", "--prompt", "hi"), "scale it down"),
    "cold": (("run", "{made}/base", *P, "--temperature", "-1"), "temperature is -1: expected 0"),
    "top_p of nothing": (("run", "{made}/base", *P, "--temperature", "1", "--top-p", "0"), "0 < top_p <= 1"),
    "fewer than all": (("run", "{made}/base", *P, "--temperature", "1", "--top-k", "-1"), "top_k is -1: expected 0"),
    "a seed alone": (("run", "{made}/base", *P, "--seed", "1"), "seed says how to draw"),
    "an empty stop string": (("run", "{made}/base", *P, "--stop", ""), "stop string is empty"),
    "long prompt": (("run", "{made}/base", "--image", "{made}/p.png", "--prompt", "x" * 300), "too long"),
    "no prompt": (("run", "{made}/base", "--image", "{made}/p.png"), "--prompt"),
    "no tokens": (("run", "{made}/base", *P, "--max-new-tokens", "0"), "--max-new-tokens"),
    "bench wrong target": (("bench", "{made}/base", "{made}/rtx", *P), "exported for 'tensorrt-rtx'"),
    "bench nothing": (("bench", *P), "BUNDLES"),
    "bench one round": (("bench", "{made}/base", *P, "--rounds", "1"), "--rounds"),
    "bench chart": (("bench", "{made}/base", *P, "--chart", "{out}/x.foo"), "suffix"),
    "bench chart folder": (("bench", "{made}/base", *P, "--chart", "{out}/no/x.png"), "no directory"),
    "eval data": (("eval", "{made}/base", "--data", "{made}/none"), "JSON Lines"),
    "eval picture as data": (("eval", "{made}/base", "--data", "{made}/p.png"), "can't be read as text"),
    "eval output": (
        ("eval", "{made}/base", "--data", "{made}/q.jsonl", "--predictions", "{out}/no/x"),
        "no directory",
    ),
    "show suffix": (("show", "{made}/base", "--image", "{made}/p.png", "-o", "{out}/x.foo"), "suffix"),
    "show folder": (("show", "{made}/base", "--image", "{made}/p.png", "-o", "{out}/no/x.png"), "no directory"),
    "show picture": (("show", "{made}/base", "--image", "{made}/text.png", "-o", "{out}/x.png"), "isn't a picture"),
    "unknown command": (("shwo",), "did you mean 'show'"),
}


@pytest.mark.parametrize("case", MISTAKES)
def test_mistakes_are_one_line_and_exit_code_2(cli: Cli, made: Path, tmp_path: Path, case: str) -> None:
    arguments, message = MISTAKES[case]
    code, out, err = cli(*(argument.format(made=made, out=tmp_path) for argument in arguments))
    assert code == 2
    assert out == ""
    assert err.count("\n") == 1
    assert err.startswith("lmmprune: error: ")
    assert message in err
    assert os.listdir(tmp_path) == [], "nothing is left half-written"


@pytest.mark.parametrize("command", ["run", "bench", "eval", "show"])
def test_damaged_bundle(cli: Cli, tmp_path: Path, command: str) -> None:
    bundle = fx.make_bundle(tmp_path / "out")
    fx.save_picture(tmp_path / "p.png", 1)
    weights = bundle.path / "decoder.data"
    content = bytearray(weights.read_bytes())
    content[:4] = struct.pack("f", 1e9)
    weights.write_bytes(bytes(content))
    options: dict[str, Sequence[str]] = {
        "run": ("--image", "{}/p.png", "--prompt", "hi"),
        "bench": ("--image", "{}/p.png", "--prompt", "hi"),
        "eval": ("--data", "tiny-llava"),
        "show": ("--image", "{}/p.png", "-o", "{}/x.png"),
    }
    code, out, err = cli(command, bundle.path, *(option.format(tmp_path) for option in options[command]))
    assert (code, out) == (2, "")
    assert "'decoder.data'" in err
    assert "checksum" in err
    assert err.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "left"),
    [
        (("bench", "a", "b"), "nothing is left half-written"),
        (
            ("export", "--model", "m"),
            "nothing is left half-written (with --resume, what was written is kept to go on from)",
        ),
        (("export", "--resume"), "what was written is kept, the same command goes on from there"),
    ],
)
def test_interrupted(cli: Cli, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...], left: str) -> None:
    def stop(**_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("lmmprune.compiler.cli.app.main", stop)
    assert cli(*arguments) == (130, "", f"lmmprune: error: interrupted; {left}\n")
