"""What stays at each site, as the run-time tells it and ``lmmprune show`` draws it."""

from __future__ import annotations

import dataclasses
import itertools
import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
import runtime_fixtures as fx
from exports import exported
from PIL import Image
from random_llava import IMAGE_TOKEN
from random_models import SHAPES, canonical
from towers import Tower, run

from lmmprune.compiler.bundle.bundle import Bundle
from lmmprune.compiler.bundle.manifest import Manifest
from lmmprune.compiler.runtime.draw import MERGED
from lmmprune.compiler.runtime.image_features import SiteTokens
from lmmprune.compiler.runtime.open_picture import load_image
from lmmprune.compiler.runtime.runtime import Runtime
from lmmprune.passes.find.anchors import find_decoder_anchors
from lmmprune.passes.methods import METHODS, get_method
from lmmprune.passes.reduce.reduce_decoder import ReduceDecoder
from lmmprune.passes.reduce.reduce_vision import ReduceVision
from lmmprune.passes.reduce.stage import Stage

PICTURE = Path(__file__).parents[1] / "models" / "tiny_llava" / "examples" / "scene_003.png"
QUESTION = "how many digits are there?"

Show = Callable[..., tuple[int, str, str]]


@pytest.fixture
def show(cli: Show, tmp_path: Path) -> Show:
    return lambda *arguments: cli("show", *arguments, "-o", tmp_path / "x.png", "--force")


def bundle(method: str) -> tuple[Path, Manifest]:
    # FiCoCo-V's default drops on so small a grid, where each token would go into one other.
    options = {"options": (("targets", "quantile"),)} if method == "ficoco-v" else {}
    path, report = exported(method=method, ratio=0.5, **options)
    return path, report.manifest


def documents(show: Show, method: str, *more: object) -> tuple[dict[str, Any], Manifest]:
    path, manifest = bundle(method)
    code, out, err = show(path, "--image", PICTURE, "--json", *more)
    assert (code, err) == (0, "")
    return json.loads(out), manifest


def blue(picture: Path) -> int:
    return int((np.asarray(Image.open(picture)) == MERGED).all(-1).sum())


@pytest.mark.parametrize("method", ["ficoco-v", "ficoco-l"])
def test_every_site_of_the_schedule_is_listed(show: Show, method: str) -> None:
    document, manifest = documents(show, method)
    sites = document["sites"]
    assert [(row["site"], row["tokens_in"], row["tokens_out"]) for row in sites] == [
        (stage.site, stage.tokens_in, stage.tokens_out) for stage in manifest.schedule
    ]
    assert len(sites) > 1
    kept = [set(range(manifest.tokens_before)), *(set(row["kept"]) for row in sites)]
    assert all(after < before for before, after in itertools.pairwise(kept)), "what is gone stays away"
    for row in sites:
        assert len(row["kept"]) == len(set(row["kept"])) == len(row["received"]) == row["tokens_out"]
        assert 1 <= sum(row["received"]) <= row["tokens_in"] - row["tokens_out"], "each goes into one"
        assert row["drawn"]
        name = f"received.{row['site']}"
        (tensor,) = (t for t in (*manifest.vision.outputs, *manifest.decoder.outputs) if t.name == name)
        assert (tensor.dtype, tensor.shape) == ("int64", (1, row["tokens_out"]))
    before = [row for row in sites if row["site"].startswith("vision")]
    assert document["kept_indices"] == (before[-1]["kept"] if before else list(range(manifest.tokens_before)))
    assert document["prompt"] == (None if before else "What is in the picture?")


def test_the_drawing_has_a_panel_per_site(show: Show, tmp_path: Path) -> None:
    path, _ = bundle("ficoco-v")
    code, out, err = show(path, "--image", PICTURE)
    assert (code, err) == (0, "")
    assert "vision_layer_3  144 -> 108 visual tokens, others merged into" in out
    assert "vision_layer_4  108 -> 72 visual tokens, others merged into" in out
    with Image.open(tmp_path / "x.png") as image:
        assert image.width == 2 * 672 + 16
    assert blue(tmp_path / "x.png")


def test_one_site_alone(show: Show, tmp_path: Path) -> None:
    document, _ = documents(show, "ficoco-v", "--site", "vision_layer_4")
    assert [row["site"] for row in document["sites"]] == ["vision_layer_4"]
    with Image.open(tmp_path / "x.png") as image:
        assert image.width == 672
    path, _ = bundle("ficoco-v")
    code, out, err = show(path, "--image", PICTURE, "--site", "vision_layr_4")
    assert (code, out) == (2, "")
    assert "did you mean 'vision_layer_4'?" in err


def test_the_decoder_is_asked(show: Show) -> None:
    path, _ = bundle("ficoco-l")
    _, _, err = show(path, "--image", PICTURE)
    assert "asked: What is in the picture?" in err
    assert "--prompt" in err
    code, out, err = show(path, "--image", PICTURE, "--prompt", QUESTION)
    assert (code, err) == (0, "")
    assert "llm_layer_1  144 -> 96" in out
    mine, theirs = (documents(show, "ficoco-l", "--prompt", text)[0] for text in (QUESTION, "is the nine red?"))
    assert mine["prompt"] == QUESTION
    assert [row["kept"] for row in mine["sites"]] != [row["kept"] for row in theirs["sites"]]
    code, out, err = show(path, "--image", PICTURE, "--prompt", "word " * 600)
    assert (code, out) == (2, "")
    assert "too long" in err


def test_the_last_one_takes_in_all_others(show: Show) -> None:
    last = documents(show, "ficoco-l")[0]["sites"][-1]
    assert last["tokens_out"] == 1
    assert last["received"] == [True]


def test_places_inside_the_decoder_are_patches_of_the_picture() -> None:
    # Numbered anew, so that the places don't reach the decoder as positions.
    path, _ = exported(method="ficoco-l", ratio=0.5, positions="contiguous")
    runtime = Runtime(Bundle.open(path), threads=1)
    look, prompt = runtime.encode_image(load_image(PICTURE)), runtime.prompter.encode(QUESTION)
    assert look.sites == {}
    found = runtime.prefill_sites(look, prompt)
    # As if the encoder had handed over the patches in the opposite order.
    turned = runtime.prefill_sites(dataclasses.replace(look, kept=np.arange(144)[::-1]), prompt)
    for site, tokens in found.items():
        np.testing.assert_array_equal(turned[site].kept, 143 - tokens.kept)
        np.testing.assert_array_equal(turned[site].received, tokens.received)


def test_tokens_of_no_patch_are_counted(show: Show, tmp_path: Path) -> None:
    document, manifest = documents(show, "visionzip")
    (site,) = document["sites"]
    assert (site["site"], site["tokens_out"], len(site["kept"])) == ("vision_output", 72, 72)
    assert site["kept"].count(-1) == 1
    dominant = round(manifest.parameters["dominant_fraction"] * 72)
    assert not any(site["received"][:dominant]), "CLS and dominant patches take in nothing"
    assert any(site["received"][dominant:])
    assert blue(tmp_path / "x.png")


def test_eight_of_many_sites_are_drawn(show: Show, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = fx.make_bundle(tmp_path / "out", keep=4)
    (stage,) = made.manifest.schedule
    names = [f"vision_layer_{layer}" for layer in range(12)]
    schedule = [dataclasses.replace(stage, site=n, tokens_in=16 - i, tokens_out=15 - i) for i, n in enumerate(names)]
    made = fx.make_bundle(tmp_path / "many", keep=4, schedule=tuple(schedule))
    sites = {s.site: site(s.tokens_in, range(s.tokens_out)) for s in schedule}
    encode = Runtime.encode_image
    monkeypatch.setattr(
        Runtime, "encode_image", lambda self, image: dataclasses.replace(encode(self, image), sites=sites)
    )
    picture = fx.save_picture(tmp_path / "p.png", 3, 5)
    code, out, _ = show(made.path, "--image", picture)
    assert code == 0
    assert "8 of 12 sites, evenly chosen" in out
    assert out.count("visual tokens") == 12, "all of them are listed"
    _, out, _ = show(made.path, "--image", picture, "--json")
    drawn = [row["site"] for row in json.loads(out)["sites"] if row["drawn"]]
    assert len(drawn) == 8
    assert (drawn[0], drawn[-1]) == (names[0], names[-1])


def site(tokens_in: int, kept: Iterable[int]) -> SiteTokens:
    places = np.array(list(kept), np.int64)
    return SiteTokens(tokens_in=tokens_in, kept=places, received=np.zeros(len(places), bool))


def test_nothing_pruned_has_no_sites(show: Show, tmp_path: Path) -> None:
    made = fx.make_bundle(tmp_path / "out")
    picture = fx.save_picture(tmp_path / "p.png", 3)
    code, out, _ = show(made.path, "--image", picture)
    assert code == 0
    assert "16 -> 16 visual tokens" in out
    code, _, err = show(made.path, "--image", picture, "--site", "vision_output")
    assert code == 2
    assert "isn't pruned; leave out --site" in err


def test_graphs_that_say_nothing_of_a_site_are_refused(show: Show, tmp_path: Path) -> None:
    made = fx.make_bundle(tmp_path / "out", keep=4)
    (stage,) = made.manifest.schedule
    inside = dataclasses.replace(stage, site="llm_input_1", tokens_in=4, tokens_out=2, kept=None)
    made = fx.make_bundle(tmp_path / "old", keep=4, schedule=(stage, inside))
    code, out, err = show(made.path, "--image", fx.save_picture(tmp_path / "p.png", 3))
    assert (code, out) == (2, "")
    assert "don't say what 'llm_input_1' keeps: export again" in err


MERGING = ["aim", "ficoco-v", "prumerge", "prumerge+", "tome", "visionzip"]


@pytest.mark.parametrize("method", MERGING)
def test_received_tells_which_tokens_of_the_encoder_changed(method: str) -> None:
    tower = Tower(batch=2, patches=36, layers=3, next_layer=True, seed=4)
    stage = first(
        get_method(method, {"targets": "quantile"} if method == "ficoco-v" else {}).stages(tower.facts, 18),
        in_decoder=False,
    )
    before, after = tower.graph(), tower.graph()
    inside = stage.site.kind == "vision_layer"
    expose(before, f"res{stage.site.layer}" if inside else "patches")
    ReduceVision(method=method, stages=(stage,), grid=tower.grid)(after)
    expose(after, f"lmmprune.tokens.{stage.site}")
    feeds = {"pixel_values": tower.inputs()}
    (whole,) = run(before, feeds).values()
    whole = whole[:, 1:] if inside else whole
    found = run(after, feeds)
    kept, tokens = found["kept_indices"], found[f"lmmprune.tokens.{stage.site}"]
    received = found[f"received.{stage.site}"]
    assert received.dtype == np.int64
    assert received.any()
    for b, k in zip(*np.nonzero(kept >= 0), strict=True):
        same = np.array_equal(tokens[b, k], whole[b, kept[b, k]])
        assert received[b, k] == (not same), (b, k)


def test_received_tells_which_tokens_of_the_decoder_changed() -> None:
    shape, prefix, tail = SHAPES[0], 2, 3
    tokens = shape.facts.tokens
    stage = first(METHODS["ficoco-l"]().stages(shape.facts, tokens // 2), in_decoder=True)
    before, after = (canonical(shape)[1].clone() for _ in range(2))
    middle = find_decoder_anchors(before).layers[stage.site.layer].mid
    expose(before, str(middle.name))
    run_pass = ReduceDecoder(method="ficoco-l", stages=(stage,), image_tokens=tokens, prefix=prefix)
    run_pass(after)
    expose(after, f"lmmprune.tokens.{stage.site}")
    rng = np.random.default_rng(0)
    ids = np.array([[4] * prefix + [IMAGE_TOKEN] * tokens + [5, 6, 7][:tail]])
    width = next(value.shape[2] for value in after.graph.inputs if value.name == "image_features")
    feeds: dict[str, Any] = {
        "input_ids": ids,
        "position_ids": np.arange(ids.shape[1])[None],
        "image_features": rng.standard_normal((1, tokens, width)).astype(np.float32),
    }
    for value in after.graph.inputs:
        if value.name not in feeds:
            feeds[str(value.name)] = np.zeros((1, shape.kv_heads, 0, shape.head_dim), np.float32)
    whole = run(before, feeds)[str(middle.name)][0, prefix:]
    found = run(after, feeds)
    rows = found[f"lmmprune.tokens.{stage.site}"][0, prefix:]
    kept, received = found[f"kept_indices.{stage.site}"][0], found[f"received.{stage.site}"][0]
    assert received.any()
    for k, place in enumerate(kept):
        assert received[k] == (not np.array_equal(rows[k], whole[place])), k


def first(stages: Iterable[Stage], *, in_decoder: bool) -> Stage:
    mine = [stage for stage in stages if stage.site.in_decoder == in_decoder]
    return min(mine, key=lambda stage: stage.site.depth)


def expose(model: ir.Model, name: str) -> None:
    """Let a value be an output of the graph; the only one if the graph is not reduced."""
    value = next(output for node in model.graph for output in node.outputs if output.name == name)
    if not name.startswith("lmmprune"):
        model.graph.outputs.clear()
    model.graph.outputs.append(value)
