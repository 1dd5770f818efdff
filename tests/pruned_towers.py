"""Prune a tower in an ONNX file, and compare it with the reference on the PyTorch module."""

from __future__ import annotations

import functools
import tempfile
from pathlib import Path

import foreign_towers as ft
import numpy as np
import onnx
import onnx_ir as ir
from one_picture import OF_ONE_PICTURE

from lmmprune.compiler.rewrite.canonicalize_foreign import canonicalize_foreign
from lmmprune.compiler.rewrite.rewrite import prune_tower
from lmmprune.compiler.verify.reference import Cut, rule_options, see
from lmmprune.facts import Facts
from lmmprune.passes.foreign.find_features import find_features, find_grid
from lmmprune.passes.methods import METHODS, Method, get_method

KEEP = 11
# A method that leaves its stages in the decoder out on request serves a tower alone, too.
IN_DECODER = [
    name for name, method in METHODS.items() if "llm" in method.sites and method.at_output_only is Method.at_output_only
]
IN_TOWER = [name for name in OF_ONE_PICTURE if name not in IN_DECODER]


@functools.cache
def raised(data: bytes, batch: int = 2) -> ir.Model:
    with tempfile.TemporaryDirectory() as folder:
        model = canonicalize_foreign(ft.saved(Path(folder), data), batch=batch, image_size=(ft.SIDE, ft.SIDE)).model
    return model


def pruned(data: bytes, name: str, layer: int = 0, keep: int = KEEP) -> tuple[onnx.ModelProto, list[Cut]]:
    """Return the pruned file of a tower and its cuts."""
    model = raised(data).clone()
    found = find_features(model, grid=find_grid(model), layer=layer or None)
    facts = Facts(tokens=ft.N, grid=found.grid, encoder_layers=found.depth, decoder_layers=32, has_cls=found.has_cls)
    method = get_method(name).at_output_only()
    stages = method.plan(facts, keep)
    prune_tower(model, method, stages, found)
    proto = ir.serde.serialize_model(model)
    onnx.checker.check_model(proto, full_check=True)
    return proto, [Cut(str(stage.site), stage.keep) for stage in stages]


def agree(data: bytes, kind: str, name: str, layer: int = 0) -> dict[str, np.ndarray]:
    """Compare a pruned file with the reference; return what it said."""
    llava = ft.as_llava(kind, layer)
    proto, cuts = pruned(data, name, layer)
    depth = ft.LAYERS if layer == 0 else ft.LAYERS + 1 + layer
    options = rule_options(name, get_method(name).at_output_only().parameters, depth)
    seen = see(llava, name, options, cuts, ft.pixels(2))
    said = ft.answers(proto, ft.pixels(2))
    for cut in cuts:
        output = "kept_indices" if len(cuts) == 1 else f"kept_indices.{cut.site}"
        np.testing.assert_array_equal(said[output], seen.kept[cut.site])
    first = int(kind == "clip")
    assert said["last_hidden_state"].shape == (2, first + KEEP, ft.WIDTH)
    np.testing.assert_allclose(said["last_hidden_state"][:, first:], seen.features, atol=1e-4, rtol=1e-4)
    return said


def allowed(kind: str, name: str, layer: int) -> bool:
    method = METHODS[name]
    return not (method.needs_cls and kind == "siglip") and not (method.next_layer and layer == 0)
