"""Pictures of several sizes behind one decoder: answers as transformers gives them, what is chosen, what is refused."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Mapping
from pathlib import Path
from unittest import mock

import numpy as np
import onnx_ir as ir
import pytest
from hub_layouts import LAYOUTS, oracle
from hub_layouts.one_trace import one_trace
from huggingface_hub import constants
from PIL import Image
from short_request import short_request
from verdicts import not_held

from lmmprune.compiler.backends.open_sessions import open_sessions
from lmmprune.compiler.bundle.bundle import Bundle
from lmmprune.compiler.export.export import export
from lmmprune.compiler.export.trace import shared_trace
from lmmprune.compiler.runtime.runtime import Runtime
from lmmprune.compiler.verify.verify import verify

# Height and width. The first two hold equally many tokens, in other rows.
SIZES = {
    "Qwen2-VL-2B-Instruct": ((56, 112), (112, 56), (56, 56)),
    "Qwen2.5-VL-3B-Instruct": ((56, 112), (112, 56), (56, 56)),
    "Qwen3-VL-2B-Instruct": ((64, 96), (96, 64), (64, 64)),
}


class Made:
    """A layout on disk, and its exports."""

    def __init__(self, name: str, work: Path) -> None:
        self.layout, self.sizes = LAYOUTS[name], SIZES[name]
        self.folder = work / "checkpoint"
        self.folder.mkdir()
        self.layout.write(self.folder, self.layout.layers)
        self.work, self.traced = work, shared_trace()

    def bundle(self, **options: object) -> Path:
        out = self.work / ("out-" + "-".join(map(str, options.values())))
        given = {"image_size": self.sizes, **options}
        if not out.exists():
            with one_trace():
                export(short_request(model=str(self.folder), output=out, **given), traced=self.traced)
        return out

    def picture(self, height: int, width: int, seed: int = 3) -> Image.Image:
        return oracle.picture(dataclasses.replace(self.layout, picture=(width, height)), seed)

    def expected(self, pictures: Mapping[int, Image.Image]) -> oracle.Expected:
        """Ask transformers about pictures by their seeds."""
        first, *more = pictures
        with mock.patch.object(oracle, "picture", lambda _, seed: pictures[seed]):
            return oracle.expected(str(self.folder), self.layout, seed=first, more=more)


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    """Parts of a processor that the folder lacks are looked for nowhere else."""
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)


@pytest.fixture(scope="module", params=SIZES)
def made(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Made:
    return Made(request.param, tmp_path_factory.mktemp("sizes"))


def test_answers_are_transformers_own_at_every_size(made: Made) -> None:
    """Prompts, pixels and tokens; two pictures of different sizes in one prompt, too."""
    runtime = Runtime(Bundle.open(made.bundle(ratio=0.0, images=2)), threads=1)
    asked = [{3: size} for size in made.sizes] + [{3: made.sizes[2], 4: made.sizes[0]}]
    for row in asked:
        pictures = {seed: made.picture(*size, seed) for seed, size in row.items()}
        wanted = made.expected(pictures)
        encoded = [runtime.encode_image(picture) for picture in pictures.values()]
        answer = runtime.answer(encoded, oracle.QUESTION, oracle.NEW_TOKENS)
        _ = answer.text
        assert answer.tokens == wanted.tokens
        assert answer.stats.sizes == tuple(f"{height}x{width}" for height, width in row.values())
        assert answer.stats.prompt_tokens == len(wanted.prompt)
        if len(row) == 1:
            ((height, width),) = row.values()
            steps = runtime.preprocessor.for_view(encoded[0].view)
            pixels = oracle.as_pictures(wanted.pixels, (1, 3, height, width))
            np.testing.assert_array_equal(steps(pictures[3]), pixels)


def test_verify_holds_every_size_against_the_reference(made: Made) -> None:
    checks = verify(made.bundle(ratio=0.5, images=2), model=str(made.folder))
    assert not not_held(checks)
    found = {check.name: check.found for check in checks}
    assert found["kept indices"].startswith("IoU 1.0000 (lowest 1.0000)")
    counts = ", ".join(f"{n} -> {n // 2} at {name}" for n, name in tokens_of(made))
    assert found["kept counts"] == f"visual tokens {counts} of each of 1 to 2 pictures"


@pytest.mark.parametrize("made", ["Qwen3-VL-2B-Instruct"], indirect=True)
def test_a_choice_by_the_question_has_a_graph_for_each_size(made: Made) -> None:
    """With DeepStack's further features, and two pictures of different sizes in one prompt."""
    path = made.bundle(keep=4, images=2, method="cdpruner")
    checks = verify(path, model=str(made.folder))
    assert not not_held(checks)
    found = {check.name: check.found for check in checks}
    assert found["kept in the decoder"].startswith("IoU 1.0000 (lowest 1.0000)")
    # The smallest size has 4 tokens: there is nothing to choose.
    graphs = [f"selection{name}" for name in ("", "_96x64")]
    assert [name for name in Bundle.open(path).manifest.graphs if name.startswith("selection")] == graphs
    # What the first question chose stands for a conversation, at every size.
    sessions = open_sessions(Bundle.open(path))
    runtime = Runtime(Bundle.open(path), sessions=sessions)
    held, seen = runtime.hold(), runtime.encode_images([made.picture(64, 96), made.picture(96, 64)])
    _ = runtime.answer(seen, "what is it?", 3, held=held).text
    with contextlib.ExitStack() as stack:
        runs = [stack.enter_context(mock.patch.object(sessions[name], "run")) for name in graphs]
        again = runtime.answer(seen, "and where?", 3, held=held)
        _ = again.text
        assert not any(run.called for run in runs)
        assert again.stats.reused_tokens > again.stats.image_tokens


@pytest.mark.parametrize("made", ["Qwen2-VL-2B-Instruct"], indirect=True)
@pytest.mark.parametrize(
    "options",
    [{"target": "tensorrt-rtx", "dtype": "float16"}, {"int8": True, "calibration_samples": 3}],
    ids=["float16", "int8"],
)
def test_other_types_share_the_weights_and_nothing_that_depends_on_the_size(
    made: Made, options: dict[str, object]
) -> None:
    """Two sizes have constants of equal shapes and other values; integers are one and the same."""
    path = made.bundle(ratio=0.5, **options)
    assert not not_held(verify(path, model=str(made.folder)))
    first, *others = (weights_of(path / f"vision{name}.onnx") for name in ("", "_112x56", "_56x56"))
    for other in others:
        assert len(other) == len(first) >= 10
        assert other == first


def weights_of(graph: Path) -> dict[str, tuple[str, int]]:
    """Return where a graph's matrices lie."""
    found = {}
    for value in ir.load(graph).graph.initializers.values():
        tensor = value.const_value
        if isinstance(tensor, ir.ExternalTensor) and ("weight" in str(value.name) or "kernel" in str(value.name)):
            found[str(value.name)] = (str(tensor.location), int(tensor.offset or 0))
    assert {location for location, _ in found.values()} == {"vision.onnx.data"}
    return found


def tokens_of(made: Made) -> list[tuple[int, str]]:
    token = 32 if "Qwen3" in made.layout.name else 28
    return [(height * width // token**2, f"{height}x{width}") for height, width in made.sizes]
