"""OpenVINO says of our graphs what ONNX Runtime says: every method, every precision; and what a session promises."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import openvino
import pytest
import runtime_fixtures as fx
from closeness import compare_outputs
from conftest import Call
from lowering import Arrays, in_precision, picture, prompt, said
from one_picture import OF_ONE_PICTURE
from towers import session

from lmmprune.compiler.backends.onnxruntime import OrtSession
from lmmprune.compiler.backends.open_sessions import open_sessions
from lmmprune.compiler.backends.openvino import OpenVinoSession, open_component
from lmmprune.compiler.backends.openvino_state import hold_cache
from lmmprune.compiler.bundle.bundle import Bundle
from lmmprune.compiler.lower.lower import lower
from lmmprune.compiler.runtime.kv_cache import KvCache
from lmmprune.compiler.runtime.open_picture import load_image
from lmmprune.compiler.runtime.runtime import Runtime
from lmmprune.compiler.targets.targets import TARGETS
from lmmprune.errors import BundleError, InputError

TARGET = TARGETS["openvino-cpu"]
EXAMPLE = Path(__file__).parents[1] / "models" / "tiny_llava" / "examples" / "scene_003.png"
PRECISIONS = {
    "float32": [],
    "float16": ["--dtype", "float16"],
    "bfloat16": ["--dtype", "bfloat16"],
    "int8": ["--int8"],
    "int4": ["--int4"],
}


def compiled(model: ir.Model) -> Any:
    """Return a graph in OpenVINO, as a function of arrays."""
    graph = openvino.compile_model(
        openvino.Core().read_model(ir.serde.serialize_model(model).SerializeToString()),
        "CPU",
        {"INFERENCE_PRECISION_HINT": "f32"},
    )
    names = [output.get_any_name() for output in graph.outputs]

    def run(feeds: Arrays) -> Arrays:
        found = graph({name: np.ascontiguousarray(value) for name, value in feeds.items()})
        return {name: np.array(found[name]) for name in names}

    return run


@pytest.mark.parametrize("method", OF_ONE_PICTURE)
def test_every_method_keeps_and_says_the_same(method: str) -> None:
    vision, decoder = in_precision(method, "float32")
    for model in (vision, decoder):
        lower(model, TARGET)
    feeds = {"pixel_values": picture()}
    wanted, found = session(vision)(feeds), compiled(vision)(feeds)
    pairs = [(wanted, found)]
    tokens = wanted["image_features"].shape[1]
    pairs += zip(
        said(session(decoder), prompt(decoder, wanted, tokens)),
        said(compiled(decoder), prompt(decoder, wanted, tokens)),
        strict=True,
    )
    for theirs, ours in pairs:
        same = compare_outputs(theirs, ours)
        assert max(one.relative for one in same) < 1e-4, same
        for name in theirs:
            if name.startswith("kept"):
                assert theirs[name].tolist() == ours[name].tolist()


@functools.cache
def exported(folder: Path, precision: str) -> Bundle:
    from lmmprune.compiler.cli import main

    out = folder / precision
    arguments = ["export", "--model", "tiny-llava", "--ratio", "0.5", "--target", "openvino-cpu", "-o", str(out)]
    with pytest.raises(SystemExit) as stop:
        main([*arguments, *PRECISIONS[precision]])
    assert stop.value.code == 0
    return Bundle.open(out)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("openvino")


@pytest.mark.parametrize("precision", PRECISIONS)
def test_a_bundle_answers_as_in_onnx_runtime(folder: Path, precision: str) -> None:
    bundle = exported(folder, precision)
    runtime = Runtime(bundle, threads=1)
    answer = runtime.answer(load_image(EXAMPLE), "which digit is white?", 8)
    assert answer.text == "five"
    sessions = open_sessions(bundle)
    assert {type(one) for one in sessions.values()} == {OpenVinoSession}
    if precision == "bfloat16":
        return  # ONNX Runtime's CPU provider has no products in it
    graphs = bundle.manifest.graphs.items()
    ort = Runtime(bundle, sessions={name: OrtSession(bundle.file(graph.file)) for name, graph in graphs})
    other = ort.answer(load_image(EXAMPLE), "which digit is white?", 8)
    assert other.text == answer.text
    assert answer.kept is not None
    assert other.kept is not None
    same = len({*other.kept.tolist()} & {*answer.kept.tolist()}) / answer.kept.size
    # A kernel in integers may round a near-tie the other way.
    assert same == 1 if precision in ("float32", "int4") else same > 0.9


def test_outputs_outlive_the_next_run(tmp_path: Path) -> None:
    bundle = fx.make_bundle(tmp_path / "out", keep=4)
    vision = OpenVinoSession(bundle.vision, expected=bundle.manifest.vision)
    pixels = [np.full(bundle.manifest.vision.inputs[0].shape, value, np.float32) for value in (0.1, 0.9)]
    first = vision.run({"pixel_values": vision.upload(pixels[0])})
    before = vision.download(first["image_features"]).copy()
    vision.run({"pixel_values": vision.upload(pixels[1])})
    assert (vision.download(first["image_features"]) == before).all()


def decoded(bundle: Bundle, session: OpenVinoSession, cache: KvCache[Any], ids: list[int]) -> Any:
    """Run tokens behind those that a cache holds; return the last one's logits."""
    given = next(tensor for tensor in bundle.manifest.decoder.inputs if tensor.name == "image_features")
    features: Any = np.zeros(given.shape, np.float32)  # type: ignore[arg-type]  # static
    positions = np.arange(cache.tokens, cache.tokens + len(ids), dtype=np.int64)[None]
    feeds = {"input_ids": np.array([ids], np.int64), "position_ids": positions, "image_features": features}
    uploaded = {name: session.upload(value) for name, value in feeds.items()}
    outputs = session.run(uploaded | cache.feeds(len(ids)))
    cache.take(outputs, tokens=len(ids))
    return session.download(outputs["logits"])


def test_the_cache_stays_in_its_request(folder: Path) -> None:
    bundle = exported(folder, "float32")
    session = open_component(bundle, "decoder")
    stateless = OpenVinoSession(bundle.decoder)
    caches = [KvCache(bundle.manifest, session.upload, session.download) for _ in range(2)]
    plain = [KvCache(bundle.manifest, stateless.upload, stateless.download) for _ in range(2)]
    said = []
    # Two answers in turns, one of which forgets its last tokens.
    for which, ids in ((0, [1, 5, 9, 7]), (1, [1, 8]), (0, [4]), (1, [2, 6]), (0, [3]), (1, [9])):
        if which and len(ids) == 1:
            for cache in (caches[1], plain[1]):
                cache.keep_first(3)
        said += [(decoded(bundle, session, caches[which], ids), decoded(bundle, stateless, plain[which], ids))]
    # Looked at last: what a run says outlives those behind it.
    for found, wanted in said:
        assert np.abs(found - wanted).max() < 1e-4 * np.abs(wanted).max()
    past = bundle.manifest.cache.past[0][0]
    held = caches[0].feeds(1)[past]
    assert np.allclose(session.download(held), plain[0].feeds(1)[past].data, atol=1e-5)
    decoded(bundle, session, caches[0], [2])
    with pytest.raises(ValueError, match="appended to by a later run"):
        session.download(held)
    with pytest.raises(BundleError, match=r"failed running 'decoder\.onnx'"):
        session.run({"input_ids": session.upload(np.zeros((1, 1), np.int64))})


@pytest.mark.parametrize("precision", ["float32", "int8", "int4"])
def test_attention_appends_to_its_cache(folder: Path, precision: str) -> None:
    bundle = exported(folder, precision)
    model = openvino.Core().read_model(bundle.decoder)
    hold_cache(openvino, model, bundle.manifest.cache.carried)
    run = openvino.compile_model(model, "CPU").get_runtime_model()
    kinds = [op.get_rt_info()["layerType"].astype(str) for op in run.get_ops()]
    assert kinds.count("ScaledDotProductAttention") == len(bundle.manifest.cache.past)


def test_what_it_refuses_is_a_line(tmp_path: Path, refusal: Any) -> None:
    bundle = fx.make_bundle(tmp_path / "out", keep=4)
    (tmp_path / "broken.onnx").write_bytes(b"no graph")
    with pytest.raises(BundleError, match=r"openvino .* can't load '.*broken.onnx': .*: export again") as found:
        OpenVinoSession(tmp_path / "broken.onnx")
    assert "\n" not in str(found.value)
    with pytest.raises(BundleError, match="they aren't of one export"):
        OpenVinoSession(bundle.vision, expected=bundle.manifest.decoder)
    with pytest.raises(InputError, match="threads"):
        OpenVinoSession(bundle.vision, threads=0)
    vision = OpenVinoSession(bundle.vision)
    with pytest.raises(BundleError, match=r"failed running 'vision.onnx': .*: export again") as found:
        vision.run({"pixel_values": vision.upload(np.zeros((1, 3, 2, 2), np.float32))})
    assert "\n" not in str(found.value)


def test_a_fixed_cache_is_refused_by_name(refusal: Any, tmp_path: Path) -> None:
    said = refusal(
        "export", "--model", "tiny-llava", "--static-cache", "300", "--target", "openvino", "-o", tmp_path / "out"
    )
    assert "target 'openvino-cpu' has no TensorScatter" in said


def test_the_doctor_knows_it(cli: Call) -> None:
    code, out, _ = cli("doctor", "--json")
    assert code == 0
    assert '"openvino-cpu"' in out
