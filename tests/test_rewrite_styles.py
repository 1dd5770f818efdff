"""Towers that compute q, k and v in one product, with tokens first or by Einsum, pruned as the reference does."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import attention_styles as st
import foreign_towers as ft
import numpy as np
import pytest
import torch
from pruned_towers import IN_TOWER, KEEP, agree, raised

from lmmprune.compiler.rewrite.rewrite import Request, rewrite
from lmmprune.compiler.verify.reference import Cut, see
from lmmprune.errors import GraphRefusal
from lmmprune.passes.methods import METHODS

# The newer exporter takes seconds for each.
BY_DYNAMO = [(st.Unbound, 23), (st.Einsum, 18), (st.TokensFirst, 23)]


@pytest.mark.parametrize("style", st.STYLES)
def test_kept_places_and_features_are_the_references(style: type[st.Attention]) -> None:
    data = st.exported(style, 17)
    for name in ("freepruner", "cls", "ficoco-v", "tome", "visionzip"):
        agree(data, "clip", name)
    agree(data, "clip", "prumerge", layer=-2)


@pytest.mark.parametrize("style", [st.Unbound, st.TokensFirst])
def test_every_method(style: type[st.Attention]) -> None:
    data = st.exported(style, 17)
    for name in IN_TOWER:
        agree(data, "clip", name, layer=-2 if METHODS[name].next_layer else 0)


@pytest.mark.parametrize(("style", "opset"), BY_DYNAMO)
def test_the_other_exporter(style: type[st.Attention], opset: int) -> None:
    data = st.exported(style, opset, dynamo=True)
    for name in ("freepruner", "tome"):
        agree(data, "clip", name, layer=-2)


@pytest.mark.parametrize("style", [st.Unbound, st.Einsum, st.TokensFirst])
def test_several_pictures_are_fixed(style: type[st.Attention]) -> None:
    data = st.exported(style, 14, batch=2)
    for name in ("freepruner", "tome"):
        agree(data, "clip", name)


@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize("style", st.STYLES)
def test_nothing_removed_is_the_same_tower(style: type[st.Attention], batch: int, tmp_path: Path) -> None:
    data, out = st.exported(style, 17, batch=batch), tmp_path / "out.onnx"
    report = rewrite(Request(source=ft.saved(tmp_path, data), output=out))
    assert (report.method, report.layer, report.has_cls, report.dropped) == (None, (3, 3), True, {})
    expected, found = ft.answers(data, ft.pixels(batch)), ft.answers(out.read_bytes(), ft.pixels(batch))
    assert list(found) == list(expected)
    for name, array in expected.items():
        np.testing.assert_allclose(found[name], array, atol=5e-6, rtol=1e-6)


@pytest.mark.parametrize("style", [style for style in st.STYLES if style is not st.Einsum])
def test_the_stream_has_pictures_first_and_weights_are_weights(style: type[st.Attention]) -> None:
    model = raised(st.exported(style, 17))
    operators = Counter(node.op_type for node in model.graph)
    # Per layer: four canonical transpositions; one more puts the patches behind each other.
    assert operators["Transpose"] == 4 * ft.LAYERS + 1
    assert operators["Attention"] == ft.LAYERS
    assert not {"Einsum", "Gemm", "Softmax", "Split"} & set(operators)
    for node in model.graph:
        assert not all(value is None or value.is_initializer() for value in node.inputs) or node.op_type == "Expand"


class PostNorm(torch.nn.Module):
    """A tower of PyTorch's own layers, whose norms stand behind the sums."""

    def __init__(self, *, batch_first: bool) -> None:
        super().__init__()
        torch.manual_seed(4)
        self.embed = torch.nn.Conv2d(3, ft.WIDTH, ft.PATCH, ft.PATCH)
        self.cls = torch.nn.Parameter(torch.randn(1, 1, ft.WIDTH))
        self.places = torch.nn.Parameter(torch.randn(1, ft.N + 1, ft.WIDTH))
        layer = torch.nn.TransformerEncoderLayer(ft.WIDTH, ft.HEADS, 48, 0.0, "gelu", batch_first=batch_first)
        self.encoder = torch.nn.TransformerEncoder(layer, ft.LAYERS, enable_nested_tensor=False)
        self.batch_first = batch_first
        with torch.no_grad():
            # Attention that prefers some tokens.
            for entry in self.encoder.layers:
                entry.self_attn.in_proj_weight.mul_(3)

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        x = self.embed(pixel_values).flatten(2).transpose(1, 2)
        x = torch.cat([self.cls.expand(len(x), -1, -1), x], 1) + self.places
        return self.encoder(x) if self.batch_first else self.encoder(x.transpose(0, 1)).transpose(0, 1)


@pytest.mark.parametrize("batch_first", [True, False])
@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
def test_norms_behind_the_sums(batch_first: bool, tmp_path: Path) -> None:
    tower, seen = PostNorm(batch_first=batch_first).eval(), {}
    source, out = tmp_path / "in.onnx", tmp_path / "out.onnx"
    names: dict[str, Any] = {"input_names": ["pixel_values"], "output_names": ["tokens"]}
    torch.onnx.export(tower, (ft.pixels(2),), source, dynamo=False, opset_version=17, **names)
    tower.encoder.layers[-1].self_attn.register_forward_pre_hook(lambda _, given: seen.update(x=given[0]))
    expected = tower(ft.pixels(2)).detach().numpy()
    _, weights = tower.encoder.layers[-1].self_attn(seen["x"], seen["x"], seen["x"])
    best = np.sort(weights[:, 0, 1:].topk(KEEP).indices.numpy(), axis=1)
    rewrite(Request(source=source, output=out, method="cls", keep=KEEP))
    said = ft.answers(out.read_bytes(), ft.pixels(2))
    np.testing.assert_array_equal(said["kept_indices"], best)
    rows = np.concatenate([np.zeros((2, 1), np.int64), 1 + best], axis=1)
    np.testing.assert_allclose(said["tokens"], np.take_along_axis(expected, rows[..., None], 1), atol=1e-5)
    report = rewrite(Request(source=source, output=out, method="tome", keep=KEEP, force=True))
    assert [site for site, _, _ in report.schedule] == [f"vision_layer_{layer}" for layer in range(ft.LAYERS)]


def test_positions_of_pairs(tmp_path: Path) -> None:
    """BEiT's: the score adds them, cuts inside the encoder would leave them as they were."""

    class Relative(st.Indexed):
        def __init__(self, old: Any) -> None:
            super().__init__(old)
            torch.manual_seed(8)
            self.pairs = torch.nn.Parameter(2 * torch.randn(1, self.heads, ft.N + 1, ft.N + 1))

        def weights(self, x: torch.Tensor) -> torch.Tensor:
            batch, tokens, _ = x.shape
            qkv = self.qkv(x).reshape(batch, tokens, 3, self.heads, self.width).permute(2, 0, 3, 1, 4)
            self.v = qkv[2]
            return (qkv[0] * self.width**-0.5 @ qkv[1].transpose(-2, -1) + self.pairs).softmax(-1)

        def mix(self, x: torch.Tensor) -> torch.Tensor:
            return self.out((self.weights(x) @ self.v).transpose(1, 2).reshape(x.shape))

    out = tmp_path / "out.onnx"
    source = ft.saved(tmp_path, st.exported(Relative, 17))
    tower, seen = st.Tower(ft.tower("clip"), Relative).eval(), {}
    last = tower.model.encoder.layers[-1]
    last.layer_norm1.register_forward_hook(lambda *given: seen.update(x=given[-1]))
    features = tower(ft.pixels(1))[0].detach().numpy()
    chances = last.self_attn.weights(seen["x"]).mean(1)[:, 0, 1:]
    best = np.sort(chances.topk(KEEP).indices.numpy(), axis=1)
    rewrite(Request(source=source, output=out, method="cls", keep=KEEP))
    said = ft.answers(out.read_bytes(), ft.pixels(1))
    np.testing.assert_array_equal(said["kept_indices"], best)
    np.testing.assert_allclose(said["last_hidden_state"][0, 1:], features[0, 1 + best[0]], atol=1e-5)
    for method, message in (
        ("tome", "no site 'vision_layer_0': the layers behind it add a number"),
        ("freepruner", "adds a number to"),
    ):
        with pytest.raises(GraphRefusal, match=message):
            rewrite(Request(source=source, output=out, method=method, keep=KEEP, force=True))


@pytest.mark.parametrize("style", [st.Unbound, st.TokensFirst])
def test_inspect_shows_the_sites(style: type[st.Attention], tmp_path: Path, cli: Any) -> None:
    path = ft.saved(tmp_path, st.exported(style, 17))
    assert "(for 'lmmprune rewrite'); 25 tokens at 'last_hidden_state', beside CLS" in cli("inspect", path)[1]
    (graph,) = json.loads(cli("inspect", path, "--json")[1])["graphs"]
    assert graph["anchors"] == {
        "tokens": ft.N,
        "patches_per_token": 1,
        "patches": "last_hidden_state",
        "has_cls": True,
        "layers": ft.LAYERS,
        "sites": ["vision_layer_0..2", "vision_output", "projector_output"],
        "command": "rewrite",
    }
    queries = [1, ft.HEADS, ft.N + 1, ft.WIDTH // ft.HEADS]
    assert [layer["queries"] for layer in graph["attention_layers"]] == [queries] * ft.LAYERS


def test_inspect_asks_for_an_open_size(tmp_path: Path, cli: Any) -> None:
    path = ft.saved(tmp_path, ft.exported("siglip"))
    code, out, _ = cli("inspect", path)
    assert (code, "no site for pruning: the input 'pixel_values'" in out, "give --image-size" in out) == (0, True, True)
    assert (
        "vision_output, projector_output (for 'lmmprune rewrite'); 25 tokens at 'last_hidden_state', no CLS"
        in (cli("inspect", path, "--image-size", ft.SIDE)[1])
    )
    code, _, err = cli("inspect", path, "--image-size", "big")
    assert (code, err.count("\n")) == (2, 1)


class Pooled(torch.nn.Module):
    """OpenAI's CLIP as it is: nothing but a projection of CLS leaves it."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(6)
        self.tower = st.Tower(ft.tower("clip"), st.TokensFirst)
        self.projection = torch.nn.Linear(ft.WIDTH, 8, bias=False)

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        return self.projection(self.tower(pixel_values)[1])


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
def test_a_tower_without_tokens_hands_out_those_of_a_layer(tmp_path: Path, cli: Any) -> None:
    source, out = tmp_path / "in.onnx", tmp_path / "out.onnx"
    names: dict[str, Any] = {"input_names": ["pixel_values"], "output_names": ["embedding"]}
    torch.onnx.export(Pooled().eval(), (ft.pixels(),), source, dynamo=False, opset_version=17, **names)
    code, _, err = cli("rewrite", source, "--keep", KEEP, "-o", out)
    assert (code, "found: embedding [1,8]: give the --layer to hand out, such as -2" in err) == (2, True)
    for layer, depth in ((-2, 2), (-1, 3)):
        report = rewrite(Request(source=source, output=out, method="cls", keep=KEEP, layer=layer, force=True))
        name = f"hidden_states.{depth}"
        assert report.features == (name, (1, 1 + KEEP, ft.WIDTH))
        assert list(report.dropped) == (["embedding"] if layer == -2 else [])
        seen = see(ft.as_llava("clip", layer), "cls", {}, [Cut("vision_output", KEEP)], ft.pixels())
        said = ft.answers(out.read_bytes(), ft.pixels())
        np.testing.assert_array_equal(said["kept_indices"], seen.kept["vision_output"])
        np.testing.assert_allclose(said[name][:, 1:], seen.features, atol=1e-4)
    np.testing.assert_allclose(said["embedding"], ft.answers(source.read_bytes(), ft.pixels())["embedding"], atol=1e-5)


@pytest.mark.parametrize("layer", [(), ("--layer", -2)])
def test_registers_are_refused(layer: tuple[object, ...], tmp_path: Path, cli: Any) -> None:
    class Registers(PostNorm):
        def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
            x = self.embed(pixel_values).flatten(2).transpose(1, 2)
            return self.encoder(torch.cat([self.cls, self.places[:, :4], x], 1))

    source = tmp_path / "in.onnx"
    names: dict[str, Any] = {"input_names": ["pixel_values"], "output_names": ["tokens"]}
    torch.onnx.export(
        Registers(batch_first=True).eval(), (ft.pixels(),), source, dynamo=False, opset_version=17, **names
    )
    code, _, err = cli("rewrite", source, "--keep", KEEP, *layer, "-o", tmp_path / "out.onnx")
    assert (code, "registers or a second class token can't be kept beside the patches" in err) == (2, True)
