"""What `inspect`, `methods` and `models` say, as JSON and as text."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import pytest
from exports import exported, exported_again

from lmmprune.passes.methods import METHODS, get_method

Cli = Callable[..., tuple[int, str, str]]


def graphs(cli: Cli, path: Path) -> list[dict[str, Any]]:
    code, out, _ = cli("inspect", path, "--json")
    assert code == 0
    return list(json.loads(out)["graphs"])


def test_an_unpruned_bundle_says_what_it_offers(cli: Cli) -> None:
    path = exported()[0]
    vision, decoder = graphs(cli, path)
    assert len(vision["attention_layers"]) == 5
    assert vision["attention_layers"][0]["queries"] == [1, 4, 145, 32]
    assert len(decoder["attention_layers"]) == 4
    assert vision["sites"] == decoder["sites"] == vision["cache"] == []
    assert vision["anchors"] | {"patches": ""} == {
        "tokens": 144,
        "patches_per_token": 1,
        "patches": "",
        "has_cls": True,
        "layers": 5,
        "sites": ["vision_layer_0..4", "vision_output", "projector_output"],
    }
    assert decoder["anchors"] == {
        "layers": 4,
        "heads": 4,
        "kv_heads": 2,
        "head_dim": 32,
        "sites": ["llm_input_0..3", "llm_layer_0..3"],
    }
    assert decoder["cache"] == [{"layers": [0, 1, 2, 3], "shape": [1, 2, "past", 32]}]
    _, out, _ = cli("inspect", path)
    assert "not pruned; sites vision_layer_0..4, vision_output, projector_output; 144 tokens at" in out
    assert "not pruned; sites llm_input_0..3, llm_layer_0..3; 4 layers of 4 heads on 2 key heads of width 32" in out
    assert "cache of layers 0..3: [1, 2, 'past', 32]" in out


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_a_pruned_vision_graph_says_where(dtype: str, cli: Cli) -> None:
    path = exported_again(ratio=0.5, dtype=dtype)[0]
    vision, decoder = graphs(cli, path)
    assert [row | {"nodes": 0} for row in vision["sites"]] == [
        {"site": "projector_output", "method": "divprune", "nodes": 0, "tokens_out": 72, "merges": False}
    ]
    assert vision["sites"][0]["nodes"] > 10
    assert vision["anchors"] is None
    assert decoder["sites"] == []
    _, out, _ = cli("inspect", path)
    assert re.search(r"projector_output, by divprune +72 +dropped", out)


def test_cuts_in_both_graphs_are_listed(cli: Cli) -> None:
    path, report = exported_again(method="ficoco-vl", ratio=0.5)
    vision, decoder = graphs(cli, path)
    schedule = report.manifest.schedule
    found = [
        (row["site"], row["tokens_out"], row["method"], row["merges"]) for row in (*vision["sites"], *decoder["sites"])
    ]
    # In the encoder tokens are dropped where merging would leave one target.
    assert found == [(stage.site, stage.tokens_out, "ficoco-vl", stage.in_decoder) for stage in schedule]
    assert {row["site"].split("_")[0] for row in vision["sites"]} == {"vision"}
    # Every layer but the first has a cache of its own length.
    assert [row["layers"] for row in decoder["cache"]] == [[0, 1], [2], [3]]
    assert [row["shape"][2] for row in decoder["cache"]] == ["past", "past_2", "past_3"]
    _, out, _ = cli("inspect", path)
    assert re.search(r"llm_layer_2, by ficoco-vl +\d+ +merged", out)
    assert "cache of layers 0..1: [1, 2, 'past', 32]; cache of layers 2: [1, 2, 'past_2', 32]" in out


@pytest.mark.parametrize(
    ("method", "said"),
    [
        ("fastv", "fastv, positions original, target"),
        ("ficoco-vl", "ficoco-vl, positions original, target"),
        ("freepruner", "freepruner, positions original, target"),
    ],
)
def test_positions_are_those_of_the_manifest(method: str, said: str, cli: Cli) -> None:
    path, report = exported_again(method=method, ratio=0.5)
    assert report.manifest.llm_positions in said
    assert said in cli("inspect", path)[1]


def test_a_graph_that_is_split_for_several_counts(cli: Cli) -> None:
    vision, decoder, *behind = graphs(cli, exported_again(method="inflection", buckets=(0.5, 0.75))[0])
    assert [(row["site"], row["tokens_out"]) for row in vision["sites"]] == [("vision_output", None)]
    assert [graph["sites"][0]["tokens_out"] for graph in behind] == [36, 72]
    assert decoder["sites"] == []


def test_a_graph_that_doesnt_fit_says_why(tmp_path: Path, cli: Cli) -> None:
    plain = "g (float[1,4] x) => (float[1,4] NAME) { NAME = Relu (x) }"
    for name, message in (("y", "no Attention node in the vision"), ("logits", "no Attention node in the decoder")):
        model = onnx.parser.parse_model('<ir_version: 10, opset_import: ["" : 23]>' + plain.replace("NAME", name))
        onnx.save(model, tmp_path / "x.onnx")
        (graph,) = graphs(cli, tmp_path / "x.onnx")
        assert message in graph["anchors"]["refusal"]
        _, out, _ = cli("inspect", tmp_path / "x.onnx")
        assert f"no site for pruning: {message}" in out


@pytest.mark.parametrize(("content", "message"), [(None, "doesn't exist"), (b"nothing", "isn't an ONNX file")])
def test_bad_files_are_one_line(content: bytes | None, message: str, tmp_path: Path, cli: Cli) -> None:
    path = tmp_path / "x.onnx"
    if content is not None:
        path.write_bytes(content)
    code, _, err = cli("inspect", path)
    assert code == 2
    assert message in err
    assert err.count("\n") == 1


def test_models(cli: Cli) -> None:
    _, out, _ = cli("models", "--json")
    assert {"tiny-llava", "llava-1.5-7b"} <= {row["name"] for row in json.loads(out)["aliases"]}
    code, out, _ = cli("models")
    assert code == 0
    assert "tiny-llava" in out


def test_methods_as_data(cli: Cli) -> None:
    _, out, _ = cli("methods", "--json")
    rows = {row["name"]: row for row in json.loads(out)}
    assert set(METHODS) <= set(rows)
    for name, row in rows.items():
        assert set(row) == {
            *("name", "sites", "schedule", "positions", "needs_cls", "parameters", "reference", "exactness"),
            *("published_positions", "schedule_sites"),
        }
        assert all(
            isinstance(row[key], str) and row[key]
            for key in set(row) - {"needs_cls", "parameters", "published_positions", "schedule_sites"}
        ), name
        assert name not in METHODS or row["schedule_sites"] == list(METHODS[name].movable), name
        assert row["positions"] == "original"
        assert row["published_positions"] in ("contiguous", "original", None)
        assert row["reference"] == "baseline" or re.fullmatch(r"arXiv \d{4}\.\d{5}(v\d)?", row["reference"])
        # What is printed can be given back with --set.
        options = {k: ",".join(map(str, v)) if isinstance(v, list) else str(v) for k, v in row["parameters"].items()}
        assert get_method(name, options) == METHODS[name]()
    assert rows["sparsevlm"]["parameters"] == {"layers": [2, 6, 15]}
    assert rows["cls"]["needs_cls"]
    assert not rows["ficoco-v"]["needs_cls"]
    assert rows["fastv"]["published_positions"] == "original"
    assert rows["cls"]["published_positions"] == "contiguous"
    assert rows["aim"]["sites"] == "vision_output, llm_input_14..21"


def test_methods_as_a_table_of_100_columns(cli: Cli) -> None:
    code, out, _ = cli("methods")
    assert code == 0
    lines = out.splitlines()
    assert max(map(len, lines)) <= 100
    for name in METHODS:
        assert any(line.split()[:1] == [name] for line in lines), name
    text = " ".join(out.split())
    for part in (
        "layers=2,6,15",
        "needs CLS",
        "positions original",
        "published:",
        "arXiv 2411.17686",
        "llm_layer_5..31",
    ):
        assert part in text


def test_the_methods_of_a_file_are_listed_too(tmp_path: Path, cli: Cli) -> None:
    file = tmp_path / "mine.py"
    file.write_text(
        "from dataclasses import dataclass\n"
        "from lmmprune.passes.methods import Method\n"
        "@dataclass(frozen=True, kw_only=True)\n"
        "class Mine(Method):\n"
        "    name, reference, exactness = 'mine', 'nobody', 'exact'\n"
    )
    _, out, _ = cli("methods", "--json", "--method-file", file)
    assert "mine" in {row["name"] for row in json.loads(out)}
    code, _, err = cli("methods", "--method-file", tmp_path / "none.py")
    assert (code, err.count("\n")) == (2, 1)
    assert "there is no such file" in err


def test_a_graph_that_does_not_hang_together_is_one_line(tmp_path: Path, refusal: Callable[..., str]) -> None:
    """It opens, and onnx's own reader is content; keys that come from nowhere are found where they are looked for."""
    bundle = exported_again(dtype="float16")[0]
    shutil.copytree(bundle, tmp_path, dirs_exist_ok=True)
    model = onnx.load(bundle / "decoder.onnx", load_external_data=False)
    made = {name: node for node in model.graph.node for name in node.output}
    attention = next(node for node in model.graph.node if node.op_type == "Attention")
    made[attention.input[1]].input[0] = ""
    onnx.save(model, tmp_path / "decoder.onnx")
    assert "doesn't hang together" in refusal("inspect", tmp_path / "decoder.onnx")
