"""What `inspect`, `methods` and `models` say, as JSON and as text."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from exports import exported

from lmmprune.compiler.cli import main


def call(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as end:
        main([str(argument) for argument in arguments])
    captured = capsys.readouterr()
    return int(end.value.code or 0), captured.out, captured.err


def test_an_unpruned_and_a_pruned_bundle(capsys: pytest.CaptureFixture[str]) -> None:
    sites = []
    for path in (exported()[0], exported(ratio=0.5)[0]):
        code, out, _ = call(capsys, "inspect", path, "--json")
        assert code == 0
        vision, decoder = json.loads(out)["graphs"]
        assert len(vision["attention_layers"]) == 5
        assert vision["attention_layers"][0]["queries"] == [1, 4, 145, 32]
        assert len(decoder["attention_layers"]) == 4
        sites.append(vision["site"])
    assert sites[0] | {"patches": ""} == {
        "site": "vision_output",
        "pruned": False,
        "tokens": 144,
        "patches": "",
        "has_cls": True,
    }
    assert (sites[1]["pruned"], sites[1]["method"], sites[1]["tokens_out"]) == (True, "freepruner", 72)
    code, out, _ = call(capsys, "inspect", exported(ratio=0.5)[0])
    assert "pruned to 72 tokens by freepruner" in out


@pytest.mark.parametrize(("content", "message"), [(None, "doesn't exist"), (b"nothing", "isn't an ONNX file")])
def test_bad_files_are_one_line(
    content: bytes | None, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "x.onnx"
    if content is not None:
        path.write_bytes(content)
    code, _, err = call(capsys, "inspect", path)
    assert code == 2
    assert message in err
    assert err.count("\n") == 1


def test_methods_and_models(capsys: pytest.CaptureFixture[str]) -> None:
    _, out, _ = call(capsys, "methods", "--json")
    assert {row["name"] for row in json.loads(out)} == {"freepruner", "cls", "random", "uniform"}
    _, out, _ = call(capsys, "models", "--json")
    assert {"tiny-llava", "llava-1.5-7b"} <= {row["name"] for row in json.loads(out)["aliases"]}
    for command in ("methods", "models"):
        code, out, _ = call(capsys, command)
        assert code == 0
        assert "freepruner" in out or "tiny-llava" in out
