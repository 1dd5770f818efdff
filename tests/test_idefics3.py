"""Idefics3 and SmolVLM: tiny checkpoints against transformers, pruned ones against the PyTorch reference."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from random_shuffles import PATCH, save_idefics3
from short_request import short_request
from verdicts import not_held
from whole_models import check_against_transformers, noise

from lmmprune.compiler.assets.image_processor import preprocessing
from lmmprune.compiler.assets.write_assets import write_assets
from lmmprune.compiler.bundle.bundle import Bundle
from lmmprune.compiler.cli import main
from lmmprune.compiler.export.export import export
from lmmprune.compiler.export.trace import shared_trace
from lmmprune.compiler.verify.verify import verify
from lmmprune.errors import GraphRefusal, ModelError
from lmmprune.models.canonical import Canonical
from lmmprune.models.families import idefics3
from lmmprune.models.source import Source, resolve
from lmmprune.passes.find.anchors import find_vision_anchors

Saved = tuple[Path, Any, Any, Callable[[Source], Canonical]]


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Saved:
    path = tmp_path_factory.mktemp("idefics3")
    return path, *save_idefics3(path, "idefics3"), shared_trace()


def test_the_graph_has_static_shapes_and_whole_squares(saved: Saved) -> None:
    source = resolve(str(saved[0]))
    vision = source.vision
    assert (vision.tokens, vision.grid, vision.merge, vision.layers) == (16, (4, 4), 2, 2)
    graphs = saved[3](source)
    kinds = Counter(node.op_type for node in graphs.vision.graph)
    assert kinds["Attention"] == 2
    assert not kinds.keys() & {"NonZero", "Where", "Range", "Shape", "ScatterND", "CumSum"}, "places are a constant"
    anchors = find_vision_anchors(graphs.vision)
    assert anchors.members is not None
    squares = np.arange(64).reshape(4, 2, 4, 2).transpose(0, 2, 1, 3).reshape(16, 4)
    assert anchors.members.tolist() == squares.tolist()


def test_the_unpruned_bundle_is_transformers_model(saved: Saved, tmp_path: Path) -> None:
    path, model, processor, traced = saved
    export(short_request(model=str(path), output=tmp_path / "out", ratio=0.0), traced=traced)
    check_against_transformers(tmp_path / "out", model, processor, do_image_splitting=False)


@pytest.mark.parametrize(
    ("method", "keep"),
    [
        *[("freepruner", 6), ("visionzip", 7), ("divprune", 5), ("scope", 6), ("downsample", 6), ("random", 4)],
        *[("aim", 8), ("cdpruner", 8), ("fastv", 12), ("ficoco-l", 8)],
    ],
)
def test_pruned_bundles_keep_what_the_reference_keeps(saved: Saved, method: str, keep: int, tmp_path: Path) -> None:
    report = export(
        short_request(model=str(saved[0]), output=tmp_path / "out", method=method, keep=keep), traced=saved[3]
    )
    assert report.manifest.grid == (4, 4)
    checks = verify(tmp_path / "out", samples=2, model=str(saved[0]))
    assert not_held(checks) == {}
    worst = [float(x) for check in checks for x in re.findall(r"difference ([\d.e+-]+)", check.found)]
    assert len(worst) == 2
    assert max(worst) < 1e-5
    assert any("kept in" in check.name for check in checks)


@pytest.mark.parametrize(
    ("method", "message"),
    [
        ("tome", "cuts inside the encoder, and this model makes each token of 2 x 2 patches"),
        ("cls", "needs a CLS token"),
        ("prumerge", "needs a CLS token"),
    ],
)
def test_methods_that_dont_fit_are_refused(saved: Saved, method: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(GraphRefusal, match=message):
        export(short_request(model=str(saved[0]), output=tmp_path / "out", method=method, keep=6), traced=saved[3])
    assert not list(tmp_path.iterdir())


def test_kept_tokens_are_drawn(saved: Saved, tmp_path: Path) -> None:
    export(short_request(model=str(saved[0]), output=tmp_path / "out", method="uniform", keep=4), traced=saved[3])
    noise(60, 40).save(tmp_path / "picture.png")
    drawn = tmp_path / "kept.png"
    with pytest.raises(SystemExit) as done:
        main(["show", str(tmp_path / "out"), "--image", str(tmp_path / "picture.png"), "-o", str(drawn)])
    assert done.value.code == 0
    assert Image.open(drawn).size[0] > 4 * PATCH
    assert Bundle.open(tmp_path / "out").manifest.tokens_before == 16


@pytest.mark.parametrize(("kind", "side", "merge"), [("smolvlm", 10, 2), ("idefics3", 25, 5), ("smolvlm", 19, 1)])
def test_features_are_transformers_where_positions_are_rounded(
    kind: str, side: int, merge: int, tmp_path: Path
) -> None:
    """In some grids the module puts neighbours at the same place."""
    model, _ = save_idefics3(tmp_path, kind, side=side, merge=merge)
    pixels = torch.randn(1, 3, side * PATCH, side * PATCH, generator=torch.Generator().manual_seed(0))
    idefics3._prepare(model)
    with torch.no_grad():
        found = idefics3._features(model, pixels, False)
        (expected,) = model.get_image_features(pixels[None], return_dict=True).pooler_output
    torch.testing.assert_close(found[0], expected, rtol=1e-5, atol=1e-5)
    places = model.model.vision_model.embeddings.places.tolist()
    assert (places == list(range(side * side))) == (side == 10)
    assert resolve(str(tmp_path)).vision.tokens == (side // merge) ** 2


def test_squares_must_fit(tmp_path: Path) -> None:
    save_idefics3(tmp_path, "smolvlm", side=9, merge=2)
    with pytest.raises(ModelError, match="scale_factor 2 doesn't divide the 9 patches of a row"):
        _ = resolve(str(tmp_path)).vision


@pytest.mark.parametrize(
    ("alias", "family", "layers", "text"),
    [("smolvlm-256m", "idefics3", 30, 576), ("smolvlm2-500m", "smolvlm", 32, 960)],
)
def test_aliases_have_a_configuration(alias: str, family: str, layers: int, text: int, tmp_path: Path) -> None:
    source = resolve(alias, weights="dummy")
    assert source.family.name == family
    assert (source.vision.tokens, source.vision.merge, source.vision.layers) == (64, 4, 12)
    assert (source.decoder.layers, source.decoder.width, source.decoder.head_dim) == (layers, text, 64)
    prompt = write_assets(source, tmp_path).prompt
    assert prompt.template.count("<image>") == 1


def test_other_processors_are_refused() -> None:
    from transformers.models.idefics3.image_processing_pil_idefics3 import Idefics3ImageProcessorPil

    raw = Idefics3ImageProcessorPil(size={"longest_edge": 64}, max_image_size={"longest_edge": 32}).to_dict()
    raw |= idefics3.FAMILY.processor
    steps = preprocessing(raw, (32, 32))
    assert (steps["longest_edge"], steps["resize"], steps["resample"]) == (64, {"height": 32, "width": 32}, "lanczos")
    assert "longest_edge" not in preprocessing(raw | {"do_resize": False}, (32, 32))
    for changes, message in (
        ({"do_image_splitting": True}, "has 'do_image_splitting' on"),
        ({"size": {"longest_edge": 8192}}, "first makes the longest edge 8192 pixels: expected 4096 at most"),
        ({"max_image_size": {"longest_edge": 16}}, r"makes \[16, 16\] pixels, the vision tower takes \[32, 32\]"),
    ):
        with pytest.raises(ModelError, match=message):
            preprocessing(raw | changes, (32, 32))
