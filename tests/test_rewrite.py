"""Towers of other exporters, pruned: kept places and features equal the reference's on the PyTorch module."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import foreign_towers as ft
import numpy as np
import onnx
import pytest
import torch
from optimum_cli import exported_by_optimum
from pruned_towers import IN_TOWER, KEEP, agree, allowed

from lmmprune.compiler.rewrite.rewrite import Request, rewrite
from lmmprune.compiler.verify.reference import Cut, see
from lmmprune.errors import GraphRefusal
from lmmprune.passes.methods import METHODS

MATRIX = [(k, a, o) for k in ("clip", "siglip") for a in ("eager", "sdpa") for o in (17, 18)]


@pytest.mark.parametrize(("kind", "attention", "opset"), MATRIX)
def test_every_method_selects_as_the_reference_does(kind: str, attention: str, opset: int) -> None:
    data = ft.exported(kind, attention, opset)
    before = ft.answers(data, ft.pixels(2))
    for name in IN_TOWER:
        layer = -2 if METHODS[name].next_layer else 0
        if not allowed(kind, name, layer):
            continue
        said = agree(data, kind, name, layer)
        if kind == "clip" and "vision_layer" not in METHODS[name].sites and layer == 0:
            # CLS has seen every patch, and so has what is pooled from it.
            np.testing.assert_allclose(said["last_hidden_state"][:, 0], before["last_hidden_state"][:, 0], atol=1e-5)
            np.testing.assert_allclose(said["pooler_output"], before["pooler_output"], atol=1e-5)


@pytest.mark.parametrize("kind", ["clip", "siglip"])
def test_files_of_optimums_own_command(kind: str) -> None:
    data = exported_by_optimum(kind)
    expected = ft.answers(ft.exported(kind), ft.pixels(2))
    for name, array in ft.answers(data, ft.pixels(2)).items():
        np.testing.assert_allclose(array, expected[name], atol=1e-5, err_msg="optimum has the same weights")
    for name in IN_TOWER:
        layer = -2 if METHODS[name].next_layer else 0
        if allowed(kind, name, layer):
            agree(data, kind, name, layer)


@pytest.mark.parametrize("kind", ["clip", "siglip"])
@pytest.mark.parametrize("name", ["freepruner", "visionzip", "divprune", "tome", "ficoco-v"])
def test_another_layer_is_that_hidden_state(kind: str, name: str) -> None:
    data = ft.exported(kind, hidden_states=True)
    agree(data, kind, name, layer=-2)


OTHER_FORMS: dict[str, Any] = {
    "bmm": lambda: ft.exported("clip", "bmm"),
    "opset 14, norms decomposed": lambda: ft.exported("clip", "sdpa", 14),
    "opset 14, siglip": lambda: ft.exported("siglip", "eager", 14),
    "fixed batch": lambda: ft.exported("clip", "sdpa", 17, dynamic=False, batch=2),
    "bmm, fixed batch": lambda: ft.exported("clip", "bmm", 17, dynamic=False, batch=2),
    "weights transposed in the graph": lambda: ft.exported("siglip", "eager", 17, folded=False),
    "dynamo, siglip": lambda: ft.exported_by_dynamo("siglip", "sdpa"),
}


@pytest.mark.parametrize("form", OTHER_FORMS)
def test_other_forms_of_the_same_tower(form: str) -> None:
    kind = "siglip" if "siglip" in form or "transposed" in form else "clip"
    for name in ("freepruner", "tome", *(["prumerge"] if kind == "clip" else [])):
        agree(OTHER_FORMS[form](), kind, name, layer=-2)


@pytest.mark.parametrize(("kind", "attention", "opset"), MATRIX)
def test_nothing_removed_is_the_same_tower(kind: str, attention: str, opset: int, tmp_path: Path) -> None:
    data = ft.exported(kind, attention, opset)
    out = tmp_path / "out.onnx"
    report = rewrite(Request(source=ft.saved(tmp_path, data), output=out, image_size=(ft.SIDE, ft.SIDE)))
    assert (report.method, report.tokens, report.dropped) == (None, (ft.N, ft.N), {})
    expected, found = ft.answers(data, ft.pixels()), ft.answers(out.read_bytes(), ft.pixels())
    assert list(found) == list(expected)
    for name, array in expected.items():
        np.testing.assert_allclose(found[name], array, atol=2e-6, rtol=1e-6)


@pytest.mark.parametrize("kind", ["clip", "siglip"])
@pytest.mark.parametrize("dtype", [None, "float32"])
def test_half_precision(kind: str, dtype: str | None, tmp_path: Path) -> None:
    """The scores are computed in float32 from the same rounded weights."""
    out = tmp_path / "out.onnx"
    source = ft.saved(tmp_path, ft.exported(kind, "eager", half=True))
    rewrite(Request(source=source, output=out, method="uniform", keep=KEEP, dtype=dtype, image_size=(ft.SIDE, ft.SIDE)))
    proto = onnx.load(out)
    onnx.checker.check_model(proto, full_check=True)
    kinds = {tensor.data_type for tensor in proto.graph.initializer}
    assert (onnx.TensorProto.FLOAT16 in kinds) == (dtype is None)
    said = ft.answers(out.read_bytes(), ft.pixels(), np.float16 if dtype is None else np.float32)["last_hidden_state"]
    seen = see(ft.as_llava(kind, 0), "uniform", {}, [Cut("vision_output", KEEP)], ft.pixels())
    found, wanted = said[0, kind == "clip" :].astype(np.float32).ravel(), seen.features.ravel()
    # Half precision has eleven bits, through four layers.
    assert found @ wanted / np.linalg.norm(found) / np.linalg.norm(wanted) > 0.9999
    np.testing.assert_allclose(found, wanted, atol=0.06)


@pytest.mark.parametrize(("kind", "method"), [("clip", "tome"), ("siglip", "visionzip"), ("clip", "prumerge")])
def test_merged_tokens_go_on_in_half_precision(kind: str, method: str, tmp_path: Path) -> None:
    out = tmp_path / "out.onnx"
    source = ft.saved(tmp_path, ft.exported(kind, "eager", half=True))
    size = (ft.SIDE, ft.SIDE)
    rewrite(Request(source=source, output=out, method=method, keep=KEEP, layer=-2, image_size=size))
    onnx.checker.check_model(onnx.load(out), full_check=True)
    said = ft.answers(out.read_bytes(), ft.pixels(), np.float16)
    assert said["last_hidden_state"].dtype == np.float16
    assert said["last_hidden_state"].shape == (1, (kind == "clip") + KEEP, ft.WIDTH)
    assert np.isfinite(said["last_hidden_state"]).all()


def test_an_output_of_an_earlier_layer(tmp_path: Path) -> None:
    """What ``--layer -2`` would be, under its own name."""
    out, size = tmp_path / "out.onnx", (ft.SIDE, ft.SIDE)
    source = ft.saved(tmp_path, ft.exported("clip", hidden_states=True))
    name = f"hidden_states.{ft.LAYERS - 1}"
    for method in ("cls", "prumerge"):
        report = rewrite(
            Request(source=source, output=out, method=method, keep=KEEP, features=name, image_size=size, force=True)
        )
        assert report.features == (name, (1, 1 + KEEP, ft.WIDTH))
        assert {"last_hidden_state", "pooler_output"} <= set(report.dropped)
        said = ft.answers(out.read_bytes(), ft.pixels())
        seen = see(ft.as_llava("clip", -2), method, {}, [Cut("vision_output", KEEP)], ft.pixels())
        np.testing.assert_array_equal(said["kept_indices"], seen.kept["vision_output"])
        np.testing.assert_allclose(said[name][:, 1:], seen.features, atol=1e-4)


def test_a_lowered_tower_says_the_same(tmp_path: Path) -> None:
    source = ft.saved(tmp_path, ft.exported("clip"))
    said = []
    for target in ("ort-cpu", "tensorrt-10.3"):
        out = tmp_path / f"{target}.onnx"
        rewrite(Request(source=source, output=out, keep=KEEP, layer=-2, target=target, image_size=(ft.SIDE, ft.SIDE)))
        onnx.checker.check_model(onnx.load(out), full_check=True)
        said.append(ft.answers(out.read_bytes(), ft.pixels()))
    np.testing.assert_array_equal(said[0]["kept_indices"], said[1]["kept_indices"])
    np.testing.assert_allclose(said[0]["last_hidden_state"], said[1]["last_hidden_state"], atol=1e-5)


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
def test_a_projector_in_the_graph_sees_fewer_tokens(tmp_path: Path) -> None:
    """LLaVA's own: CLS dropped, features of the last layer but one, two layers behind them."""
    torch.manual_seed(1)
    model = ft.tower("clip", "sdpa")
    projector = torch.nn.Sequential(torch.nn.Linear(ft.WIDTH, 24), torch.nn.GELU(), torch.nn.Linear(24, 24))

    class Projected(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model, self.projector = model, projector

        def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
            return self.projector(self.model(pixel_values, output_hidden_states=True).hidden_states[-2][:, 1:])

    path, out = tmp_path / "in.onnx", tmp_path / "out.onnx"
    torch.onnx.export(
        Projected(), (ft.pixels(),), path, dynamo=False, opset_version=17, input_names=["pixel_values"],
        output_names=["image_features"],
    )  # fmt: skip
    llava = ft.as_llava("clip", -2)
    llava.model.multi_modal_projector = projector
    for name, site in (("cls", "vision_output"), ("divprune", "projector_output")):
        report = rewrite(Request(source=path, output=out, method=name, keep=KEEP, force=True))
        assert (report.features, report.layer) == (("image_features", (1, KEEP, 24)), (2, 2))
        seen = see(llava, name, {}, [Cut(site, KEEP)], ft.pixels())
        said = ft.answers(out.read_bytes(), ft.pixels())
        np.testing.assert_array_equal(said["kept_indices"], seen.kept[site])
        np.testing.assert_allclose(said["image_features"], seen.features, atol=1e-4)
    with pytest.raises(GraphRefusal, match=r"--layer 1: more than a norm lies between the tower and 'image_features'"):
        rewrite(Request(source=path, output=out, keep=KEEP, layer=1, force=True))
