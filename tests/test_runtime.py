from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import runtime_fixtures as fx

from lmmprune.compiler.backends.onnxruntime import OrtSession
from lmmprune.compiler.backends.open_sessions import open_sessions
from lmmprune.compiler.bundle.bundle import Bundle
from lmmprune.compiler.bundle.manifest import Prompt, ScheduledSite
from lmmprune.compiler.runtime.runtime import Runtime
from lmmprune.errors import BundleError, InputError, LmmpruneError, MissingExtraError, TargetError

LOOK = (3, 5, 9, 15)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return fx.make_bundle(tmp_path_factory.mktemp("runtime") / "out", keep=4)


@pytest.fixture(scope="module")
def runtime(bundle: Bundle) -> Runtime:
    return Runtime(bundle)


def spelled(tokens: list[int]) -> str:
    return bytes(token for token in tokens if token < 256).decode(errors="replace")  # the others are special


def uncached(bundle: Bundle, question: str, steps: int) -> list[int]:
    """Generate by running the whole sequence again for every token, in a plain session: no cache, no binding."""
    vision = onnxruntime.InferenceSession(str(bundle.vision))
    decoder = onnxruntime.InferenceSession(str(bundle.decoder))
    half = bundle.manifest.precision.dtype
    pixels = np.asarray(fx.picture(*LOOK), np.float32).transpose(2, 0, 1)[None] / 127.5 - 1
    features, kept = vision.run(["image_features", "kept_indices"], {"pixel_values": pixels.astype(half)})
    ids = [fx.BOS, *b"USER: ", *[fx.IMAGE] * 4, *f"\n{question} ASSISTANT:".encode()]
    positions = list(range(len(ids)))
    if bundle.manifest.positions == "original":
        positions = [*range(7), *(7 + kept[0]).tolist(), *range(7 + 16, 7 + 16 + len(ids) - 11)]
    empty = np.zeros((1, fx.HEADS, 0, fx.HEAD_DIM), half)
    tokens: list[int] = []
    for _ in range(steps):
        feeds: dict[str, Any] = {name: empty for pair in bundle.manifest.cache.past for name in pair}
        feeds |= {"input_ids": np.array([ids]), "image_features": features, "position_ids": np.array([positions])}
        tokens.append(int(decoder.run(["logits"], feeds)[0][0, -1].argmax()))
        ids.append(tokens[-1])
        positions.append(positions[-1] + 1)
    return tokens


@pytest.mark.parametrize("positions", ["contiguous", "original"])
@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_generation_equals_the_uncached_loop(tmp_path: Path, positions: str, dtype: str) -> None:
    bundle = fx.make_bundle(tmp_path / "out", keep=4, positions=positions, dtype=dtype)
    answer = Runtime(bundle).answer(fx.picture(*LOOK), "hi?", 24)
    text = answer.text
    assert answer.tokens == uncached(bundle, "hi?", 24)
    assert len(set(answer.tokens)) > 5, "the fixture must not repeat itself"
    assert text == spelled(answer.tokens)
    assert answer.kept is not None
    assert answer.kept.tolist() == list(LOOK)


def test_positions_matter(tmp_path: Path, bundle: Bundle) -> None:
    original = fx.make_bundle(tmp_path / "out", keep=4, positions="original")
    assert uncached(original, "hi?", 8) != uncached(bundle, "hi?", 8)


def test_unpruned_bundle_has_no_indices(tmp_path: Path) -> None:
    answer = Runtime(fx.make_bundle(tmp_path / "out")).answer(fx.picture(1), "hi?", 3)
    _ = answer.text
    assert answer.kept is None
    assert (answer.stats.tokens_before, answer.stats.image_tokens) == (16, 16)


def test_stats(runtime: Runtime) -> None:
    answer = runtime.answer(fx.picture(*LOOK), "hi?", 5)
    stats = answer.stats  # generates the answer first
    assert (stats.tokens_before, stats.image_tokens, stats.new_tokens, stats.finish_reason) == (16, 4, 5, "length")
    assert stats.prompt_tokens == 1 + 4 + len("USER: \nhi? ASSISTANT:")
    assert min(stats.preprocess_ms, stats.vision_ms, stats.prefill_ms, stats.decode_ms) > 0
    assert stats.ttft_ms == stats.vision_ms + stats.prefill_ms
    assert stats.ms_per_token == stats.decode_ms / 4
    assert stats.as_dict()["ttft_ms"] == stats.ttft_ms


def test_one_token_has_no_time_per_token(runtime: Runtime) -> None:
    answer = runtime.answer(fx.picture(*LOOK), "hi?", 1)
    _ = answer.text
    assert answer.stats.ms_per_token is None
    assert answer.stats.decode_ms == 0


def test_stops_at_eos(tmp_path: Path, bundle: Bundle) -> None:
    tokens = uncached(bundle, "hi?", 24)
    end = next(token for index, token in enumerate(tokens) if index > 3 and token not in tokens[:index])
    index = tokens.index(end)
    prompt = Prompt(
        template=bundle.manifest.prompt.template,
        image_token="<image>",
        image_token_id=fx.IMAGE,
        eos_token_ids=(fx.EOS, end),
    )
    runtime = Runtime(fx.make_bundle(tmp_path / "out", keep=4, prompt=prompt))
    answer = runtime.answer(fx.picture(*LOOK), "hi?", 24)
    assert answer.text == spelled(tokens[:index])
    assert answer.tokens == tokens[: index + 1]
    assert answer.finish_reason == "stop"
    on = runtime.answer(fx.picture(*LOOK), "hi?", 24, stop_at_eos=False)
    _ = on.text
    assert on.tokens == tokens


def test_stops_where_the_positions_end(runtime: Runtime) -> None:
    answer = runtime.answer(fx.picture(*LOOK), "x" * 90, 50)
    _ = answer.text
    assert answer.finish_reason == "positions"
    assert answer.stats.prompt_tokens + answer.stats.new_tokens == 128


def test_prompt_too_long_is_refused_before_the_first_piece(runtime: Runtime) -> None:
    with pytest.raises(InputError, match="too long"):
        runtime.answer(fx.picture(1), "x" * 200, 5)


def test_questions_share_a_look(runtime: Runtime) -> None:
    look = runtime.encode_image(fx.picture(*LOOK))
    for question in ("a", "b", "a"):
        shared = runtime.answer(look, question, 6)
        alone = runtime.answer(fx.picture(*LOOK), question, 6)
        assert shared.text == alone.text


def test_interleaved_answers_do_not_disturb_each_other(runtime: Runtime) -> None:
    look = runtime.encode_image(fx.picture(*LOOK))
    alone = [runtime.answer(look, question, 8).text for question in ("a?", "bb?")]
    first, second = (runtime.answer(look, question, 8) for question in ("a?", "bb?"))
    for _ in zip(first, second, strict=False):
        pass
    assert first.tokens
    again = [runtime.answer(look, question, 8).text for question in ("a?", "bb?")]
    assert again == alone


@pytest.mark.parametrize("target", ["tensorrt-rtx", "tensorrt-10.3", "nonsense"])
def test_bundle_for_a_device_that_is_not_here(tmp_path: Path, target: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    with pytest.raises(LmmpruneError, match=rf"exported for '{target}'.*--target ort-cpu"):
        Runtime(fx.make_bundle(tmp_path / "out", target=target))


def test_provider_that_does_not_start_is_no_quiet_fall_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if "CUDAExecutionProvider" in onnxruntime.get_available_providers():
        pytest.skip("this onnxruntime has CUDA")
    # onnxruntime-gpu lists its provider on every machine; the session then comes up with the CPU's.
    real = onnxruntime.InferenceSession
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CUDAExecutionProvider"])
    monkeypatch.setattr(
        onnxruntime,
        "InferenceSession",
        lambda path, options, **_: real(path, options, providers=["CPUExecutionProvider"]),
    )
    with pytest.raises(TargetError, match="can't start its CUDAExecutionProvider here"):
        Runtime(fx.make_bundle(tmp_path / "out", target="ort-cuda"))


def test_cuda_bundle_without_cuda(tmp_path: Path) -> None:
    if "CUDAExecutionProvider" in onnxruntime.get_available_providers():
        pytest.skip("this onnxruntime has CUDA")
    with pytest.raises(TargetError, match=r"lmmprune\[gpu\]"):
        Runtime(fx.make_bundle(tmp_path / "out", target="ort-cuda"))


def test_missing_onnxruntime(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    import importlib

    real = importlib.import_module

    def absent(name: str, package: str | None = None) -> Any:
        if name == "onnxruntime":
            raise ModuleNotFoundError("No module named 'onnxruntime'", name="onnxruntime")
        return real(name, package)

    monkeypatch.setattr(importlib, "import_module", absent)
    with pytest.raises(MissingExtraError, match=r"pip install 'lmmprune\[cpu\]'"):
        Runtime(bundle)


def test_manifest_that_promises_other_token_counts(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match=r"image_features' has the shape \[1, 4, 8\]: expected \[1, 5, any\]"):
        fx.make_bundle(
            tmp_path / "out",
            keep=4,
            image_tokens=5,
            schedule=(ScheduledSite(site="vision_output", tokens_in=16, tokens_out=5),),
        )


def test_a_session_that_leaves_other_token_counts(bundle: Bundle) -> None:
    class Short:
        def __init__(self, inner: Any) -> None:
            self.upload, self.run, self._inner = inner.upload, inner.run, inner

        def download(self, value: Any) -> Any:
            return self._inner.download(value)[:, :3]

    sessions = open_sessions(bundle)
    runtime = Runtime(bundle, sessions={**sessions, "vision": Short(sessions["vision"])})
    with pytest.raises(BundleError, match="leaves 3 tokens, its manifest says"):
        runtime.answer(fx.picture(1), "hi", 3)


def test_indices_out_of_range(tmp_path: Path) -> None:
    bundle = fx.make_bundle(
        tmp_path / "out", keep=4, schedule=(ScheduledSite(site="vision_output", tokens_in=9, tokens_out=4),)
    )
    with pytest.raises(BundleError, match=r"aren't distinct patches of 0\.\.8"):
        Runtime(bundle).encode_image(fx.picture(*LOOK))


class Telling:
    """A session whose graph says that it kept other patches than it did."""

    def __init__(self, inner: Any, kept: list[int]) -> None:
        self.upload, self.run, self._inner, self._kept = inner.upload, inner.run, inner, kept

    def download(self, value: Any) -> Any:
        found = self._inner.download(value)
        return np.array([self._kept]) if found.dtype == np.int64 else found


def looking(bundle: Bundle, kept: list[int]) -> Runtime:
    sessions = open_sessions(bundle)
    return Runtime(bundle, sessions={**sessions, "vision": Telling(sessions["vision"], kept)})


@pytest.mark.parametrize("kept", [[9, 3, 15, 5], [-1, 3, 5, -1], [-1, -1, -1, -1]])
def test_places_in_any_order_or_none(bundle: Bundle, kept: list[int]) -> None:
    """Methods that merge order their tokens otherwise, and a sum of patches has the place of none (-1)."""
    look = looking(bundle, kept).encode_image(fx.picture(*LOOK))
    assert look.kept is not None
    assert look.kept.tolist() == kept


@pytest.mark.parametrize("kept", [[3, 5, 5, 9], [3, 5, 9, 16], [-2, 3, 5, 9]])
def test_places_that_cant_be(bundle: Bundle, kept: list[int]) -> None:
    with pytest.raises(BundleError, match=r"aren't distinct patches of 0\.\.15"):
        looking(bundle, kept).encode_image(fx.picture(*LOOK))


def test_a_question_shorter_than_what_is_pruned_of_it(tmp_path: Path) -> None:
    """The graph would drop the last token and answer from the picture's last patch."""
    stages = (
        ScheduledSite(site="vision_output", tokens_in=16, tokens_out=4),
        ScheduledSite(site="llm_input_1", tokens_in=4, tokens_out=2, text_removed=30),
    )
    runtime = Runtime(fx.make_bundle(tmp_path / "out", keep=4, schedule=stages))
    assert runtime.answer(fx.picture(*LOOK), "a question of more than thirty characters", 2).text
    with pytest.raises(InputError, match="30"):
        runtime.answer(fx.picture(*LOOK), "hi", 2)


def test_preprocessor_that_does_not_fit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fx, "PREPROCESSOR", fx.PREPROCESSOR.replace("[8, 8]", "[8, 9]"))
    with pytest.raises(BundleError, match=r"preprocessor\.json gives pictures of shape"):
        Runtime(fx.make_bundle(tmp_path / "out")).encode_image(fx.picture(1))


def test_overflow_is_refused(tmp_path: Path) -> None:
    bundle = fx.make_bundle(tmp_path / "out", keep=4)
    sessions = open_sessions(bundle)

    class Broken:
        def __init__(self, inner: Any) -> None:
            self.upload, self._inner = inner.upload, inner

        def run(self, feeds: Any) -> Any:
            return self._inner.run(feeds)

        def download(self, value: Any) -> Any:
            return np.full_like(self._inner.download(value), np.nan)

    session = Runtime(bundle, sessions={**sessions, "decoder": Broken(sessions["decoder"])})
    with pytest.raises(BundleError, match="overflows in float32"):
        _ = session.answer(fx.picture(1), "hi", 3).text
    assert session._caches.spare is None  # what isn't a number isn't lent to the next answer


def test_graph_that_onnxruntime_refuses(tmp_path: Path) -> None:
    path = tmp_path / "x.onnx"
    path.write_bytes(b"not a graph")
    with pytest.raises(BundleError, match=r"can't load .*x\.onnx") as caught:
        OrtSession(path)
    assert "\n" not in str(caught.value)


def test_wrong_inputs_are_one_line(bundle: Bundle) -> None:
    session = OrtSession(bundle.vision, threads=1)
    with pytest.raises(LmmpruneError, match=r"failed running 'vision\.onnx'") as caught:
        session.run({"pixel_values": session.upload(np.zeros((1, 3, 9, 9), np.float32))})
    assert "\n" not in str(caught.value)
    with pytest.raises(LmmpruneError, match=r"failed running 'vision\.onnx'"):
        session.run({"nonsense": session.upload(np.zeros(1, np.float32))})


def test_values_stay_valid_after_the_next_run(bundle: Bundle) -> None:
    session = OrtSession(bundle.vision)
    images = [np.full((1, 3, 8, 8), value, np.float32) for value in (0.25, 0.75)]
    first, second = (session.run({"pixel_values": session.upload(image)})["image_features"] for image in images)
    assert not np.array_equal(session.download(first), session.download(second))
    again = session.run({"pixel_values": session.upload(images[0])})["image_features"]
    np.testing.assert_array_equal(session.download(first), session.download(again))


def test_fixture_is_a_valid_model(bundle: Bundle) -> None:
    onnx.checker.check_model(str(bundle.decoder), full_check=True)
