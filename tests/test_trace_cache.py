"""Traces that are kept: the same bundle comes of them, for the same architecture and code; damage counts as none."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from checkpoints import copy_tiny
from packed_checkpoints import Kind, quantized
from short_request import short_request

from lmmprune.compiler.bundle.bundle import file_sha256
from lmmprune.compiler.export.export import export
from lmmprune.models import trace, trace_cache
from lmmprune.models.registry import tiny_llava_dir
from lmmprune.models.source import resolve


@pytest.fixture
def kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("LMMPRUNE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "trace"


@pytest.fixture
def traced(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The components that are traced from here on."""
    seen: list[str] = []
    for name in ("trace_vision", "trace_decoder"):
        old = getattr(trace, name)

        def spy(*given: Any, name: str = name, old: Any = old, **more: Any) -> Any:
            seen.append(name)
            return old(*given, **more)

        monkeypatch.setattr(trace, name, spy)
    return seen


def _files(bundle: Path) -> dict[str, str]:
    return {file.name: file_sha256(file) for file in bundle.iterdir() if file.suffix in (".onnx", ".data")}


def test_a_kept_trace_gives_the_same_bundle(kept: Path, traced: list[str], tmp_path: Path) -> None:
    exported = []
    for name, cache in (("first", True), ("second", True), ("alone", False)):
        request = short_request(model="tiny-llava", output=tmp_path / name, method="fastv", ratio=0.5, cache=cache)
        export(request)
        exported.append(_files(tmp_path / name))
    assert exported[0] == exported[1] == exported[2]
    assert traced == ["trace_vision", "trace_decoder"] * 2, "the second one is taken"
    assert len(list(kept.iterdir())) == 2
    assert sum(file.stat().st_size for file in kept.iterdir()) < 10**6, "no weights"


def test_the_layer_behind_the_features_makes_no_other_decoder(kept: Path, traced: list[str], tmp_path: Path) -> None:
    for method in ("divprune", "prumerge"):
        export(short_request(model="tiny-llava", output=tmp_path / method, method=method, ratio=0.5))
    assert traced == ["trace_vision", "trace_decoder", "trace_vision"]


def test_another_checkpoint_of_the_architecture_takes_it_with_its_own_weights(
    kept: Path, traced: list[str], tmp_path: Path
) -> None:
    other = copy_tiny(tmp_path / "other", tensors=lambda found: {name: value + 1 for name, value in found.items()})
    for model, name in ((str(tiny_llava_dir()), "mine"), (str(other), "theirs")):
        export(short_request(model=model, output=tmp_path / name))
    assert len(traced) == 2
    assert _files(tmp_path / "mine") != _files(tmp_path / "theirs")
    export(short_request(model=str(other), output=tmp_path / "alone", cache=False))
    assert _files(tmp_path / "alone") == _files(tmp_path / "theirs")


def _key(source: Any, **more: Any) -> str:
    return trace_cache.key_of(source, trace.fake_model(source), image_token_id=4, next_layer=False, **more)


def test_the_key_is_of_the_architecture_and_of_the_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = resolve("tiny-llava")
    key = _key(source)
    half = {name: {"dtype": "float16"} for name in ("config", "text")}
    assert _key(resolve(str(copy_tiny(tmp_path / "half", **half)))) == key, "types are the weights'"
    packed, _ = quantized(tmp_path / "packed", Kind(form="awq"))
    assert _key(resolve(str(packed))) == key, "and so are integers"
    other = [
        _key(resolve(str(copy_tiny(tmp_path / "theta", text={"rope_parameters": {"rope_theta": 2e4}})))),
        _key(resolve(str(copy_tiny(tmp_path / "layer", config={"vision_feature_layer": -3})))),
        trace_cache.key_of(source, trace.fake_model(source), image_token_id=5, next_layer=False),
    ]
    monkeypatch.setattr(trace_cache, "_code", lambda: "other code")
    other.append(_key(source))
    assert len({key, *other}) == 5


@pytest.mark.parametrize("damage", [b"", b"nothing", b"0" * 64 + b"\n" + b"x" * 100])
def test_a_damaged_file_counts_as_none(damage: bytes, kept: Path) -> None:
    trace_cache.save("key", "vision", b"a graph")
    assert trace_cache.load("key", "vision") == b"a graph"
    (file,) = kept.iterdir()
    file.write_bytes(damage)
    assert trace_cache.load("key", "vision") is None


def test_what_was_used_least_recently_goes_first(kept: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trace_cache, "LIMIT", 900)
    for age, name in ((30, "old"), (20, "used"), (10, "new")):
        trace_cache.save(name, "vision", b"x" * 200)
        os.utime(kept / f"{name}.vision", (1e9 - age, 1e9 - age))
    assert trace_cache.load("old", "vision") is not None, "is the newest now"
    trace_cache.save("last", "vision", b"x" * 200)
    assert sorted(file.name for file in kept.iterdir()) == ["last.vision", "new.vision", "old.vision"]


def test_a_disk_that_takes_nothing_is_no_failure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("LMMPRUNE_CACHE", str(tmp_path / "file"))
    trace_cache.save("key", "vision", b"a graph")
    assert trace_cache.load("key", "vision") is None


def test_packed_graphs_hold_no_paths_and_no_weights() -> None:
    from lmmprune.models.canonical import canonical_graphs

    graphs = canonical_graphs(resolve("tiny-llava"), image_token_id=4)
    packed = trace_cache.pack(graphs.decoder)
    assert str(tiny_llava_dir()).encode() not in packed
    assert len(packed) < 200_000
    model, origins = trace_cache.unpack(packed)
    assert json.dumps(sorted(origins)) == json.dumps(
        sorted(name for name, value in model.graph.initializers.items() if "weight" in str(value.name))
    )
    with pytest.raises(ValueError, match="not a packed graph"):
        trace_cache.unpack(packed[: len(packed) // 2])
