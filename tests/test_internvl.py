"""InternVL: a tiny checkpoint against transformers, pruned ones against the PyTorch reference."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from random_shuffles import PATCH, save_internvl
from short_request import short_request
from verdicts import not_held
from whole_models import check_against_transformers

from lmmprune.compiler.assets.write_assets import write_assets
from lmmprune.compiler.export.export import export
from lmmprune.compiler.export.trace import shared_trace
from lmmprune.compiler.inspect.inspect_graph import inspect_graph
from lmmprune.compiler.verify.verify import verify
from lmmprune.errors import GraphRefusal, ModelError
from lmmprune.models.canonical import Canonical
from lmmprune.models.families import internvl
from lmmprune.models.source import Source, resolve
from lmmprune.passes.find.anchors import find_vision_anchors

Saved = tuple[Path, Any, Any, Callable[[Source], Canonical]]


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Saved:
    path = tmp_path_factory.mktemp("internvl")
    return path, *save_internvl(path, use_qk_norm=True), shared_trace()


def test_the_tower_has_cls_and_whole_squares(saved: Saved) -> None:
    source = resolve(str(saved[0]))
    vision = source.vision
    assert (vision.tokens, vision.grid, vision.merge, vision.layers, vision.has_cls) == (9, (3, 3), 2, 2, True)
    anchors = find_vision_anchors(saved[3](source).vision)
    assert (anchors.has_cls, anchors.tokens, anchors.depth) == (True, 9, 2)
    assert anchors.members is not None
    assert anchors.members[:4].tolist() == [[0, 1, 6, 7], [2, 3, 8, 9], [4, 5, 10, 11], [12, 13, 18, 19]]


def test_the_unpruned_bundle_is_transformers_model(saved: Saved, tmp_path: Path) -> None:
    path, model, processor, traced = saved
    export(short_request(model=str(path), output=tmp_path / "out", ratio=0.0), traced=traced)
    check_against_transformers(tmp_path / "out", model, processor, crop_to_patches=False)
    offered = inspect_graph(tmp_path / "out" / "vision.onnx")["anchors"]
    assert (offered["tokens"], offered["patches_per_token"], offered["has_cls"]) == (9, 4, True)
    assert offered["sites"] == ["vision_output", "projector_output"]


@pytest.mark.parametrize(
    ("method", "keep"),
    [
        ("freepruner", 4),
        ("cls", 3),
        ("vtc-cls", 5),
        # CLS is looked at but not kept, and others join.
        ("visionzip", 4),
        ("vispruner", 5),
        ("inflection", 5),
        ("divprune", 5),
        ("scope", 4),
        ("downsample", 5),
        ("aim", 4),
    ],
)
def test_pruned_bundles_keep_what_the_reference_keeps(saved: Saved, method: str, keep: int, tmp_path: Path) -> None:
    export(short_request(model=str(saved[0]), output=tmp_path / "out", method=method, keep=keep), traced=saved[3])
    checks = verify(tmp_path / "out", samples=2, model=str(saved[0]))
    assert not_held(checks) == {}
    worst = [float(x) for check in checks for x in re.findall(r"difference ([\d.e+-]+)", check.found)]
    assert len(worst) == 2
    assert max(worst) < 1e-5
    assert any("kept in" in check.name for check in checks)


def test_a_text_model_that_normalizes_queries_and_keys(tmp_path: Path) -> None:
    """InternVL3.5 has Qwen3's decoder."""
    save_internvl(tmp_path / "model", "qwen3")
    export(short_request(model=str(tmp_path / "model"), output=tmp_path / "out", method="fastv", keep=7))
    checks = verify(tmp_path / "out", samples=1, model=str(tmp_path / "model"))
    assert not_held(checks) == {}
    assert "kept in the decoder" in [check.name for check in checks]


def test_every_bucket_is_compared(saved: Saved, tmp_path: Path) -> None:
    export(
        short_request(model=str(saved[0]), output=tmp_path / "out", method="inflection", buckets=(0.3, 0.6)),
        traced=saved[3],
    )
    checks = {check.name: check for check in verify(tmp_path / "out", samples=2, model=str(saved[0]))}
    assert not_held(checks.values()) == {}
    assert checks["kept counts"].found == "visual tokens 9 -> 4 or 6"
    assert "dynamic counts" in checks


@pytest.mark.parametrize(
    ("method", "message"),
    [
        ("ficoco-v", "cuts inside the encoder, and this model makes each token of 2 x 2 patches"),
        ("prumerge", "reads the encoder layer behind the features, and this model's features come from the last one"),
    ],
)
def test_methods_that_dont_fit_are_refused(saved: Saved, method: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(GraphRefusal, match=message):
        export(short_request(model=str(saved[0]), output=tmp_path / "out", method=method, keep=5), traced=saved[3])
    assert not list(tmp_path.iterdir())


def test_norms_and_text_models_of_other_sizes(tmp_path: Path) -> None:
    """InternViT-6B's RMS norms, a last norm behind the layers, Llama text, squares of 4 x 4."""
    model, _ = save_internvl(tmp_path, "llama", side=8, merge=4, norm_type="rms_norm", use_mean_pooling=False)
    pixels = torch.randn(2, 3, 8 * PATCH, 8 * PATCH, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        found = internvl._features(model, pixels, False)
        expected = model.get_image_features(pixels, return_dict=True).pooler_output
    torch.testing.assert_close(found, expected)
    source = resolve(str(tmp_path))
    assert (source.vision.tokens, source.vision.merge) == (4, 4)
    assert source.config.text_config.model_type == "llama"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"vision_feature_layer": -2}, "vision_feature_layer is -2: InternVL is supported with -1"),
        ({"vision_feature_select_strategy": "full"}, "is 'full': InternVL is supported with 'default'"),
        ({"downsample_ratio": 1 / 3}, "24 x 24 pixels in patches of 4 x 4, and downsample_ratio is 0.33"),
        ({"downsample_ratio": 0.25}, "24 x 24 pixels in patches of 4 x 4, and downsample_ratio is 0.25"),
    ],
)
def test_other_features_are_refused(saved: Saved, changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    raw = json.loads((saved[0] / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(raw | changes))
    with pytest.raises(ModelError, match=message):
        _ = resolve(str(tmp_path), weights="dummy").vision


@pytest.mark.parametrize(
    ("alias", "layers", "width", "head_dim"), [("internvl3-1b", 24, 896, 64), ("internvl3.5-1b", 28, 1024, 128)]
)
def test_aliases_have_a_configuration(alias: str, layers: int, width: int, head_dim: int, tmp_path: Path) -> None:
    source = resolve(alias, weights="dummy")
    assert source.family is internvl.FAMILY
    assert (source.vision.tokens, source.vision.merge, source.vision.layers) == (256, 2, 24)
    assert (source.decoder.layers, source.decoder.width, source.decoder.head_dim) == (layers, width, head_dim)
    # The borrowed tokenizer has another placeholder.
    prompt = write_assets(source, tmp_path).prompt
    assert (prompt.image_token, prompt.template.count("<image>")) == ("<image>", 1)
