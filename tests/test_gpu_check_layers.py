"""Stages at LLaVA-7B's width of the check for GPU machines: timing and parity through either back end, what breaks."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import runtime_fixtures as fx
from engine_fixtures import add_engines, fake_gpu
from exports import exported_again

sys.path.insert(0, str(Path(__file__).parents[1] / "scripts"))

from gpu_check import layers, layers_parity, stages, table  # found through the line before
from gpu_check.settings import Settings, length  # as above

from lmmprune.compiler.backends.open_sessions import open_sessions  # as above
from lmmprune.compiler.bundle.bundle import Bundle  # as above
from lmmprune.errors import TargetError  # as above


def test_decoders_are_timed_through_either_back_end(tmp_path: Path) -> None:
    cpu = fx.make_bundle(tmp_path / "cpu")
    gpu = fx.make_bundle(tmp_path / "gpu", target="tensorrt-rtx")
    add_engines(gpu)
    prompt = length(0.5, fx.PATCHES)
    assert prompt == 8 + 60
    with fake_gpu() as trt:
        for bundle in (cpu, gpu):
            sessions = open_sessions(bundle)
            prefill, decode = layers.decoder_runs(bundle, sessions["decoder"], 0.5)
            first: Any = prefill()
            second: Any = decode()
            present = [sessions["decoder"].download(value["present_key_1"]) for value in (first, second)]
            assert [value.shape[2] for value in present] == [prompt, prompt + 1]
            vision: Any = layers.vision_run(bundle, sessions["vision"])()
            assert np.isfinite(sessions["vision"].download(vision["image_features"])).all()
    assert trt.executed == ["prefill", "decode", "only"]
    assert layers.weights_read(cpu) == 4 * (fx.HIDDEN * fx.HIDDEN + fx.HIDDEN * fx.VOCAB)


class Broken:
    """A session that raises behind its first runs, or adds to what it computes."""

    def __init__(self, session: Any, *, runs: int = 10**6, noise: float = 0.0) -> None:
        self._session, self._left, self._noise = session, runs, noise

    def run(self, feeds: Any) -> Any:
        self._left -= 1
        if self._left < 0:
            raise RuntimeError("an illegal | memory access")
        return self._session.run(feeds)

    def download(self, value: Any) -> Any:
        array = self._session.download(value)
        return array + self._noise * np.random.default_rng(3).standard_normal(array.shape).astype(array.dtype)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._session, name)


def layers_stage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, broken: dict[str, Any]) -> dict[str, Any]:
    """Run the stage on small bundles; ``broken``: type -> the error of its export, or what breaks its decoder."""

    def bundle_of(output: Path, **request: Any) -> Bundle:
        name = output.name.split("-1-")[1].replace("-", " ")
        if isinstance(broken.get(name), Exception):
            raise broken[name]
        return Bundle.open(output) if output.exists() else fx.make_bundle(output)

    def open_broken(bundle: Bundle) -> dict[str, Any]:
        loaded: dict[str, Any] = dict(open_sessions(bundle))
        how = broken.get(bundle.path.name.split("-1-")[1].replace("-", " "))
        return loaded if how is None else {**loaded, "decoder": Broken(loaded["decoder"], **how)}

    monkeypatch.setattr(layers, "bundle_of", bundle_of)
    monkeypatch.setattr(layers, "open_sessions", open_broken)
    monkeypatch.setattr(layers, "BUNDLES", {"float": {}, layers.PRUNED: {}, "int8": {}})
    stages.run("cpu-7b", Settings(work=tmp_path, quick=True, layers=1), tmp_path / "r.json")
    return {"seconds": 1.0, "layers": 1, "quick": True, **stages.read_json(tmp_path / "r.json")}


def test_a_stage_without_any_bundle_is_no_success(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    refused = {name: TargetError(f"no {name} | here") for name in ("float", layers.PRUNED, "int8")}
    stage = layers_stage(tmp_path, monkeypatch, refused)
    assert stage["status"] == "unavailable", "so that a later call tries again"
    assert stage["reason"] == (
        "nothing could be timed: float: no float | here; float pruned: no float pruned | here; int8: no int8 | here"
    )
    assert "| cpu-7b | int8 | no int8 \\| here |" in table.report({"cpu-7b": stage})


def test_a_variant_that_breaks_leaves_the_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stage = layers_stage(tmp_path, monkeypatch, {"int8": {"runs": 18}, layers.PRUNED: TargetError("not here")})
    assert stage["status"] == "ok"
    rows = {row["variant"]: row for row in stage["data"]["rows"]}
    assert rows.keys() == {"baseline", "pruned 0.5", "pruned 0.9", "int8", "pruned 0.5 + int8", "pruned 0.9 + int8"}
    assert rows["pruned 0.9"]["decode_ms"]["median"] > 0
    # 3 variants, 6 rounds: the prefills took all of its runs.
    assert rows["int8"]["prefill_ms"]["median"] > 0
    assert rows["int8"]["decode_ms"] is None
    reason = "RuntimeError: an illegal | memory access"
    parts = [f"{variant}, decode" for variant in ("int8", "pruned 0.5 + int8", "pruned 0.9 + int8")]
    assert stage["data"]["reasons"] == {
        layers.PRUNED: "not here",
        **dict.fromkeys([*parts, "int8, parity of decoder"], reason),
    }
    assert stage["data"]["vision_ms"].keys() == {"float", "int8"}
    text = table.report({"cpu-7b": stage})
    assert "| cpu-7b | int8, decode | RuntimeError: an illegal \\| memory access |" in text
    assert "| cpu-7b | 1 | float | 1.000000 | 0.000000 | 1.000000 | 0.000000 |" in text
    assert "| cpu-7b | 1 | int8 | 1.000000 | 0.000000 | - | - |" in text


def test_parity_is_of_both_back_ends(tmp_path: Path) -> None:
    gpu = fx.make_bundle(tmp_path / "gpu", target="tensorrt-rtx")
    add_engines(gpu)
    fixed, _ = exported_again(static_cache=240)
    with fake_gpu() as trt:
        for bundle in (gpu, Bundle.open(fixed)):
            sessions: Any = open_sessions(bundle)
            for found in (
                layers_parity.vision_parity(bundle, sessions["vision"]),
                layers_parity.decoder_parity(bundle, sessions["decoder"]),
            ):
                assert found["cosine"] > 0.999999
                assert found["relative"] < 1e-5
            for noise in (0.01, 1.0):
                broken: Any = Broken(sessions["decoder"], noise=noise)
                found = layers_parity.decoder_parity(bundle, broken)
                assert found["relative"] > noise / 10
                assert found["cosine"] < 1 - noise**2 / 1000
    assert trt.executed[:3] == ["only", "prefill", "decode"]


def test_decoders_with_a_fixed_cache_are_timed() -> None:
    folder, _ = exported_again(static_cache=240)
    bundle = Bundle.open(folder)
    session = open_sessions(bundle)["decoder"]
    for run in layers.decoder_runs(bundle, session, 0.5):
        first, again = (session.download(run()["present.0.key"]).copy() for _ in range(2))
        assert first.shape == (1, 2, 240, 32)
        np.testing.assert_array_equal(first, again, "each run writes to the same place")
