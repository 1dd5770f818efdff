"""The cost of the prefill: the formula against published figures and traced graphs, and what `flops` prints."""

from __future__ import annotations

import functools
import json
import math
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import onnx_ir as ir
import pytest
from exports import TRACED, exported, exported_again

import lmmprune
from lmmprune.compiler.flops import report as flops_report
from lmmprune.compiler.flops.formula import TEXT_TOKENS, kv_bytes, layer_flops, prefill, uniform
from lmmprune.compiler.flops.graph import count_layers, trace_decoder_layers
from lmmprune.compiler.onnx_files.load_onnx import load_onnx
from lmmprune.errors import InputError, MissingExtraError
from lmmprune.models.facts import facts_of
from lmmprune.models.family import DecoderSpec
from lmmprune.models.source import resolve
from lmmprune.passes.graph.builder import SCORE
from lmmprune.passes.graph.count_flops import count_flops
from lmmprune.passes.graph.specialize import specialize
from lmmprune.passes.methods import METHODS
from lmmprune.passes.reduce.reduce_decoder import ReduceDecoder

Cli = Callable[..., tuple[int, str, str]]


def decoder(layers: int, width: int, mlp_width: int, heads: int, kv_heads: int | None = None) -> DecoderSpec:
    return DecoderSpec(
        layers=layers,
        width=width,
        mlp_width=mlp_width,
        heads=heads,
        kv_heads=kv_heads or heads,
        head_dim=width // heads,
        vocabulary=32064,
        max_positions=4096,
    )


VICUNA_7B = decoder(32, 4096, 11008, 32)
VICUNA_13B = decoder(40, 5120, 13824, 40)


@pytest.mark.parametrize(
    ("spec", "visual", "text", "expected", "published"),
    [
        (VICUNA_7B, 576, 60, 8.45, 8.5),
        (VICUNA_7B, 192, 60, 3.30, 3.3),
        (VICUNA_7B, 128, 60, 2.45, 2.4),
        (VICUNA_7B, 64, 60, 1.61, 1.6),
        (VICUNA_7B, 56, 60, 1.51, 1.5),
        (VICUNA_13B, 576, 512, 28.58, 28.6),
        (VICUNA_13B, 84, 512, 15.41, 15.4),
        (VICUNA_7B, 2880, 60, 42.6, 42.7),
        (VICUNA_7B, 320, 60, 5.00, 5.0),
        (VICUNA_7B, 160, 60, 2.87, 2.9),
    ],
)
def test_the_formula_gives_the_published_figures(
    spec: DecoderSpec, visual: int, text: int, expected: float, published: float
) -> None:
    cost = prefill(spec, uniform(spec, visual + text))
    digits = 1 if expected > 40 else 2
    assert round(cost.flops / 1e12, digits) == expected
    # Published with one decimal, some of them cut instead of rounded.
    assert cost.flops / 1e12 == pytest.approx(published, abs=0.1)
    n, d, m = visual + text, spec.width, spec.mlp_width
    assert cost.flops == spec.layers * (8 * n * d**2 + 4 * n**2 * d + 6 * n * d * m)


def test_the_cache_of_7b_is_333_megabytes() -> None:
    cost = prefill(VICUNA_7B, uniform(VICUNA_7B, 636))
    assert cost.kv_bytes == 4 * 636 * 32 * 4096
    assert round(cost.kv_bytes / 1e6, 1) == 333.4


def test_the_formula_needs_neither_torch_nor_onnx() -> None:
    heavy = "{'torch', 'onnx', 'onnx_ir', 'numpy'}"
    code = f"import sys, lmmprune.compiler.flops.formula; print(sorted({heavy} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_layers_may_see_different_numbers_of_tokens() -> None:
    spec = decoder(3, 64, 100, 4, kv_heads=2)
    cost = prefill(spec, [10, 10, 4.5])
    assert cost.flops_per_layer == tuple(layer_flops(spec, n) for n in (10, 10, 4.5))
    assert cost.flops == sum(cost.flops_per_layer)
    # Two of four heads: k and v take half of what q and o take.
    assert cost.flops_per_layer[0] == 4 * 10 * 64 * 64 + 4 * 10 * 64 * 32 + 4 * 10 * 10 * 64 + 6 * 10 * 64 * 100
    assert cost.kv_bytes == 2 * 2 * 2 * 16 * 24.5
    assert kv_bytes([3, 1], kv_heads=2, head_dim=16, bytes_per_value=4) == 2 * 4 * 32 * 4
    with pytest.raises(InputError, match="2 token counts were given, the decoder has 3 layers"):
        prefill(spec, [1, 2])
    with pytest.raises(InputError, match="can't see -1 tokens"):
        prefill(spec, [1, 2, -1])


@functools.cache
def traced(model: str) -> ir.Model:
    return trace_decoder_layers(resolve(model, weights="dummy", layers=2))


@pytest.mark.parametrize("model", ["llava-1.5-7b", "llava-1.5-13b", "tiny-llava"])
@pytest.mark.parametrize("tokens", [636, 124])
def test_a_traced_graph_costs_what_the_formula_says(model: str, tokens: int) -> None:
    spec = resolve(model, weights="dummy").decoder
    counted = count_layers(traced(model), tokens)
    assert counted.per_layer == (layer_flops(spec, tokens),) * 2
    assert counted.rest == 2 * spec.width * spec.vocabulary
    assert spec.layers * counted.per_layer[0] == prefill(spec, uniform(spec, tokens)).flops


def test_a_cut_between_attention_and_mlp_leaves_attention_its_tokens() -> None:
    spec = resolve("llava-1.5-7b", weights="dummy").decoder
    d, m, entered, left = spec.width, spec.mlp_width, 100, 60
    cost = prefill(spec, [left] * spec.layers, [entered] + [left] * (spec.layers - 1))
    assert cost.flops_per_layer[0] == 8 * entered * d**2 + 4 * entered**2 * d + 6 * left * d * m
    assert cost.flops_per_layer[1] == layer_flops(spec, left)
    assert cost.kv_bytes == 4 * d * (entered + left * (spec.layers - 1))


# One method for each kind of site, and those that cut at two.
CHARGED = ["uniform", "divprune", "ficoco-v", "fastv", "pyramiddrop", "ficoco-l", "ficoco-vl", "inflection"]


@pytest.mark.parametrize("name", CHARGED)
def test_a_pruned_graph_costs_what_the_formula_says(name: str) -> None:
    """To the last FLOP: what isn't marked as a score adds up to the formula and ``lm_head``."""
    source = resolve("tiny-llava")
    facts, text = facts_of(source), 20
    stages = METHODS[name]().plan(facts, 100)
    image = min((stage.keep for stage in stages if not stage.site.in_decoder), default=facts.tokens)
    model = TRACED(source).decoder.clone()
    ReduceDecoder(method=name, stages=stages, image_tokens=image, prefix=3)(model)
    nodes = list(specialize(model, seq=image + text).graph)
    charged = count_nodes([node for node in nodes if SCORE not in node.metadata_props])
    said = flops_report.model_report("tiny-llava", keep=100, text_tokens=text, method=name)
    head = 2 * source.decoder.width * source.decoder.vocabulary
    assert charged == said["prefill_flops"]["after"] + head
    # Scores cost something exactly where a method looks into the decoder.
    assert (count_nodes(nodes) > charged) == any(stage.site.in_decoder for stage in stages)


def count_nodes(nodes: list[ir.Node]) -> int:
    view = ir.GraphView([], [], nodes=nodes)
    return count_flops(ir.Model(view, ir_version=11))  # type: ignore[arg-type]  # onnx-ir documents this use of a view


def test_pyramiddrop_is_charged_for_what_it_computes_twice() -> None:
    spec = resolve("llava-1.5-7b", weights="dummy").decoder
    d = spec.width
    cost = prefill(spec, uniform(spec, 100), scoring={8: 200})
    assert cost.flops_per_layer[8] - layer_flops(spec, 100) == 2 * 200 * d**2 + 2 * d**2
    assert cost.flops_per_layer[7] == layer_flops(spec, 100)


def test_ficoco_l_is_charged_for_the_attention_that_it_needs(cli: Cli) -> None:
    found = json.loads(cli("flops", "--model", "llava-1.5-7b", "--method", "ficoco-l", "--ratio", 0.5, "--json")[1])
    # Layers 5.. let 25.07 tokens fewer go on each, down to one; a layer's attention still has what enters it.
    left = [576] * 5 + [max(1, math.floor(576 - i * 25.07 + 0.5)) for i in range(1, 28)]
    n, d, m = [tokens + 60 for tokens in left], 4096, 11008
    layers = [8 * i * d**2 + 4 * i**2 * d + 6 * o * d * m for i, o in zip([636, *n], n, strict=False)]
    assert round(sum(left) / 32) == 288
    assert found["prefill_flops"]["after"] == sum(layers)
    assert round(sum(layers) / 1e12, 3) == 4.677


def test_a_model_as_text(cli: Cli) -> None:
    code, out, _ = cli("flops", "--model", "llava-1.5-7b", "--keep", 192)
    assert code == 0
    rows = [line.split() for line in out.splitlines()]
    assert ["visual", "tokens", "576", "192", "0.333"] in rows
    assert ["with", "60", "text", "tokens", "636", "252", "0.396"] in rows
    assert ["prefill", "FLOPs", "8.45", "T", "3.30", "T", "0.390"] in rows
    assert ["key/value", "cache,", "16", "bit", "333.4", "MB", "132.1", "MB", "0.396"] in rows
    assert "1 multiply-accumulate = 2 FLOPs" in out


def test_a_model_as_json(cli: Cli) -> None:
    code, out, _ = cli("flops", "--model", "llava-1.5-13b", "--keep", 84, "--text", 512, "--json")
    assert code == 0
    data = json.loads(out)
    assert data["visual_tokens"] == {"before": 576, "after": 84}
    assert data["prefill_flops"]["after"] == prefill(VICUNA_13B, uniform(VICUNA_13B, 596)).flops
    assert len(data["layers"]) == 40
    assert sum(layer["flops"]["after"] for layer in data["layers"]) == data["prefill_flops"]["after"]
    assert "graph" not in data


def test_the_traced_layers_beside_the_formula(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    # The trace itself is shared with the tests above.
    monkeypatch.setattr("lmmprune.compiler.flops.graph.trace_decoder_layers", lambda source: traced(source.name))
    code, out, _ = cli("flops", "--model", "tiny-llava", "--ratio", 0.5, "--graph")
    assert code == 0
    assert out.count("equal") == 4
    _, out, _ = cli("flops", "--model", "tiny-llava", "--ratio", 0.5, "--graph", "--json")
    data = json.loads(out)
    assert [row["layer"] for row in data["graph"]] == [0, 1]
    assert all(row["flops"] == row["formula"] for row in data["graph"])
    assert all(row["ratio"] == {"before": 1.0, "after": 1.0} for row in data["graph"])


def test_a_bundle_is_counted_in_its_files(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    path, report = exported(ratio=0.5)
    code, out, _ = cli("flops", path, "--json")
    assert code == 0
    data = json.loads(out)
    assert data["flops"] == report.manifest.flops
    assert data["counted"] == {part: row["after"] for part, row in data["flops"].items()}
    # 4 layers, 2 heads of 32 for keys and values, float32.
    assert data["kv_dtype"] == "float32"
    assert data["kv_bytes"] == {"before": 4 * 2 * 4 * 64 * (144 + 60), "after": 4 * 2 * 4 * 64 * (72 + 60)}
    _, out, _ = cli("flops", path)
    assert out.count("equal") == 2
    assert f"{TEXT_TOKENS} text tokens" in out

    def missing(module: str, extra: str) -> None:
        raise MissingExtraError(f"this needs the package '{module}'")

    monkeypatch.setattr(flops_report, "require", missing)
    code, out, err = cli("flops", path)
    assert code == 0
    assert "equal" not in out
    assert err == "not counted in the files: this needs the package 'onnx_ir'\n"


@pytest.mark.parametrize("method", ["pyramiddrop", "ficoco-l"])
def test_the_files_of_a_bundle_hold_what_the_formula_charges(method: str, cli: Cli) -> None:
    path, report = exported_again(method=method, ratio=0.5)
    counted = json.loads(cli("flops", path, "--json")[1])["counted"]["prefill"]
    assert counted == report.manifest.flops["prefill"]["after"]
    graph = specialize(load_onnx(path / "decoder.onnx", weights=False), seq=144 + TEXT_TOKENS).graph
    scores = count_nodes([node for node in graph if SCORE in node.metadata_props])
    said = json.loads(cli("flops", "--model", "tiny-llava", "--method", method, "--ratio", 0.5, "--json")[1])
    spec = resolve("tiny-llava").decoder
    assert counted == said["prefill_flops"]["after"] + 2 * spec.width * spec.vocabulary + scores


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "give --model or a bundle's directory"),
        (["somewhere", "--model", "tiny-llava"], "exclude each other"),
        (["somewhere", "--keep", 0], "--keep goes with --model"),
        (["somewhere", "--graph"], "--graph goes with --model"),
        (["somewhere"], "'somewhere' doesn't exist"),
        (["--model", "llava-1.5-7"], "did you mean 'llava-1.5-7b'"),
        (["--model", "tiny-llava", "--ratio", 1], "0 <= ratio < 1"),
        (["--model", "tiny-llava", "--keep", 145], "give 1..144"),
        (["--model", "tiny-llava", "--ratio", 0.5, "--keep", 3], "exclude each other"),
        (["--model", "tiny-llava", "--layers", 1], "--layers goes with --graph"),
        (["--model", "tiny-llava", "--graph", "--layers", 5], "the decoder has 4 layers"),
        (["--model", "tiny-llava", "--text", -1], "--text"),
    ],
)
def test_mistakes_are_one_line(arguments: list[object], message: str, cli: Cli) -> None:
    code, out, err = cli("flops", *arguments)
    assert code == 2
    assert message in err
    assert err.count("\n") == 1
    assert out == ""


def test_a_schedule_of_ones_own(cli: Callable[..., tuple[int, str, str]], tmp_path: Path) -> None:
    file = tmp_path / "schedule.json"
    file.write_text('{"llm_input_2": 200, "llm_input_16": 60}')
    code, out, _ = cli("flops", "--model", "llava-1.5-7b", "--method", "fastv", "--schedule", file, "--json")
    found = json.loads(out)
    assert code == 0
    assert found["visual_tokens"]["after"] == (2 * 576 + 14 * 200 + 16 * 60) / 32
    assert [layer["tokens"]["after"] for layer in found["layers"]] == [636] * 2 + [260] * 14 + [120] * 16
    counts = {"llm_input_2": 200, "llm_input_16": 60}
    assert lmmprune.flops_of_model("llava-1.5-7b", schedule=counts, method="fastv") == found
    code, _, err = cli("flops", "--model", "llava-1.5-7b", "--keep", 3, "--schedule", file)
    assert (code, "--keep and --schedule exclude each other" in err) == (2, True)
