"""Videos as frames: pixels, prompts and answers as transformers gives them, and what each view keeps.

transformers' video processors want torchvision, which lies apart (``video-requirements.txt``): it would change what the
other tests hold against. One process of its own asks them everything.
"""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from clips import make_clip
from exports import exported_again
from hub_layouts import LAYOUTS, oracle
from hub_layouts.one_trace import one_trace
from numpy.typing import NDArray
from short_request import short_request
from verdicts import not_held

import lmmprune
from lmmprune.compiler.bundle.bundle import Bundle
from lmmprune.compiler.bundle.video import SAMPLINGS
from lmmprune.compiler.compare.record import score_answer
from lmmprune.compiler.export.export import export
from lmmprune.compiler.export.trace import shared_trace
from lmmprune.compiler.runtime.open_video import load_clip, sample_places
from lmmprune.compiler.runtime.runtime import Runtime
from lmmprune.compiler.triton.models import configs
from lmmprune.compiler.verify.verify import verify
from lmmprune.errors import InputError, TargetError
from lmmprune.models.families.pooled import shares

HOME = Path(sys.prefix) / "videos"
"""The package of ``video-requirements.txt``, where it is installed."""
FRAMES = 4
ONEVISION, INTERNVL = "llava-onevision-qwen2-0.5b-ov-hf", "InternVL3-1B-hf"
QWEN2, QWEN2_5, QWEN3 = "Qwen2-VL-2B-Instruct", "Qwen2.5-VL-3B-Instruct", "Qwen3-VL-2B-Instruct"
MODELS = (ONEVISION, INTERNVL, QWEN2, QWEN2_5, QWEN3)
# Frames in a second: of the slow one the frames' numbers in time pass those of the text behind them.
RATES = {"clip": Fraction(6), "slow": Fraction(1, 5)}
# Of 255: what pillow's resizing of a picture and torchvision's of its bytes differ by.
LEVELS = 2


class Made:
    """Layouts on disk, their exports, and what transformers said."""

    def __init__(self, work: Path) -> None:
        self.work, self.traced = work, shared_trace()
        self.said: Mapping[str, NDArray[Any]] = {}
        for name in MODELS:
            self.folder(name).mkdir()
            LAYOUTS[name].write(self.folder(name), LAYOUTS[name].layers)
            for clip, rate in RATES.items():
                make_clip(self.clip(name, clip), size=self.size(name), rate=rate, still=3)

    def folder(self, name: str) -> Path:
        return self.work / name

    def clip(self, name: str, clip: str = "clip") -> Path:
        return self.work / f"{name}-{clip}.mp4"

    def size(self, name: str) -> tuple[int, int]:
        height, width = LAYOUTS[name].export.get("image_size", (64, 96))
        return width, height

    def ask(self) -> None:
        cases = [
            {
                "name": f"{name}-{clip}",
                "model": str(self.folder(name)),
                "video": str(self.clip(name, clip)),
                "question": oracle.QUESTION,
                "frames": FRAMES,
                "new_tokens": oracle.NEW_TOKENS,
                "processor": dict(LAYOUTS[name].processor),
                # Qwen3-VL's has a rate of its own, which excludes a number.
                "call": {"fps": None} if name == QWEN3 else {},
            }
            for name in MODELS
            for clip in RATES
        ]
        asked, said = self.work / "cases.json", self.work / "said.npz"
        asked.write_text(json.dumps(cases))
        done = subprocess.run(
            [sys.executable, Path(__file__).with_name("ask_video_processor.py"), asked, said],
            env={**os.environ, "PYTHONPATH": str(HOME), "HF_HUB_OFFLINE": "1"},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr[-2000:]
        with np.load(said) as found:
            self.said = dict(found)

    def bundle(self, name: str, **options: object) -> Path:
        out = self.work / ("-".join(["out", name, *map(str, options.values())]))
        if not out.is_dir():
            fixed = {key: value for key, value in LAYOUTS[name].export.items() if key != "tiles"}
            with one_trace():
                export(
                    short_request(model=str(self.folder(name)), output=out, frames=FRAMES, **fixed, **options),
                    traced=self.traced,
                )
        return out

    def runtime(self, name: str, **options: object) -> Runtime:
        return Runtime(Bundle.open(self.bundle(name, **options)), threads=1)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    return Made(tmp_path_factory.mktemp("video"))


@pytest.fixture(scope="module")
def asked(made: Made) -> Made:
    if not (HOME / "torchvision").is_dir():
        pytest.skip(f"torchvision isn't in {HOME}: 'make videos' installs it")
    made.ask()
    return made


def as_frames(pixels: NDArray[np.float32], shape: tuple[int, ...]) -> NDArray[np.float32]:
    """Return the pixels of any family's video processor as ``[T,3,H,W]``; Qwen's rows are patches of two frames."""
    if pixels.ndim != 2:
        return pixels.reshape(shape)
    count, channels, height, width = shape
    patch = round((pixels.shape[1] / (2 * channels)) ** 0.5)
    rows, columns = height // patch // 2, width // patch // 2
    patches = pixels.reshape(count // 2, rows, columns, 2, 2, channels, 2, patch, patch)
    return patches.transpose(0, 6, 5, 1, 3, 7, 2, 4, 8).reshape(shape)


@pytest.mark.parametrize("name", MODELS)
def test_the_answer_is_transformers_own(asked: Made, name: str) -> None:
    runtime = asked.runtime(name, ratio=0.0)
    video = runtime.bundle.manifest.video
    assert video is not None
    scores = []
    for clip in RATES:
        wanted = {key: asked.said[f"{name}-{clip}.{key}"] for key in ("prompt", "pixels", "tokens")}
        taken = load_clip(asked.clip(name, clip), video)
        pixels = np.concatenate([runtime.preprocessor(frame) for frame in taken.frames])
        apart = np.abs(pixels - as_frames(wanted["pixels"], pixels.shape)).max((0, 2, 3))
        deviations = np.array(runtime.preprocessor.std)
        assert (apart * deviations * 255 <= (LEVELS + 1e-3 if name in (ONEVISION, INTERNVL) else 1e-3)).all()
        views = runtime.encode_clip(taken)
        counts = [count for view in views for count in view.each]
        encoded = runtime.prompter.encode(oracle.QUESTION, image_tokens=counts, clock=views[0].clock)
        assert encoded.input_ids[0].tolist() == wanted["prompt"].tolist()
        answer = runtime.answer(views, oracle.QUESTION, oracle.NEW_TOKENS)
        assert answer.text is not None
        assert answer.tokens == wanted["tokens"].tolist()
        scores.append(score_answer(runtime, views, oracle.QUESTION, answer.tokens))
        # Equal answers say something only where it matters which view stands where.
        if video.newline:
            continue
        turned = score_answer(runtime, views[::-1], oracle.QUESTION, answer.tokens)
        assert np.abs(scores[-1] - turned).max() > 1e-3


@pytest.mark.parametrize("sampling", SAMPLINGS)
def test_the_frames_are_those_of_the_processors(asked: Made, sampling: str) -> None:
    found = {key: places for key, places in asked.said.items() if key.startswith(sampling)}
    assert len(found) == 28
    for key, places in found.items():
        length, frames = map(int, key.split(".")[1:])
        assert sample_places(sampling, length, frames) == places.tolist(), key


@pytest.mark.parametrize("side", [4, 5, 27])
def test_pooling_is_bilinear(side: int) -> None:
    patches = torch.randn(1, 3, side, side, generator=torch.Generator().manual_seed(side))
    wanted = torch.nn.functional.interpolate(patches, size=((side + 1) // 2,) * 2, mode="bilinear")
    found = torch.from_numpy(shares(side)) @ patches.flatten(2).mT
    torch.testing.assert_close(found.mT.reshape(wanted.shape), wanted, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        (ONEVISION, {"method": "divprune"}),
        (ONEVISION, {"method": "evs"}),
        (INTERNVL, {"method": "cdpruner"}),
        (INTERNVL, {"method": "freepruner", "joint": True}),
        (QWEN2, {"method": "divprune", "dtype": "float16"}),
        (QWEN2_5, {"method": "freepruner"}),
        (QWEN2_5, {"method": "evs"}),
        (QWEN3, {"method": "evs"}),
    ],
    ids=lambda value: value if isinstance(value, str) else value["method"],
)
def test_what_is_kept_is_the_references(made: Made, name: str, options: dict[str, Any]) -> None:
    path = made.bundle(name, ratio=0.5, **options)
    checks = verify(path, model=str(made.folder(name)))
    assert not_held(checks) == {"prompt": "not compared: transformers' video processors want torchvision"}
    found = {check.name: check.found for check in checks}
    places = found["kept in the decoder" if options["method"] == "cdpruner" else "kept indices"]
    assert places.startswith("IoU 1.0000 (lowest 1.0000)")
    views = FRAMES // 2 if name in (QWEN2, QWEN2_5, QWEN3) else FRAMES
    assert f"prompts of {views} to {views} pictures" in found["logits"]


@pytest.mark.parametrize("name", [ONEVISION, QWEN2_5])
def test_evs_keeps_what_changed(made: Made, name: str) -> None:
    """One minus the cosine to the same place a view before, in NumPy over single tokens; the first view before all."""
    whole, pruned = made.runtime(name, ratio=0.0), made.runtime(name, ratio=0.25, method="evs")
    video = whole.bundle.manifest.video
    assert video is not None
    clip = load_clip(made.clip(name), video)
    views = [np.asarray(view.features)[0].astype(np.float64) for view in whole.encode_clip(clip)]
    n = len(views[0])
    change = {}
    for number, (before, view) in enumerate(itertools.pairwise(views), 1):
        for place in range(n):
            a, b = before[place], view[place]
            change[number * n + place] = 1 - a @ b / np.sqrt((a @ a) * (b @ b))
    manifest = pruned.bundle.manifest
    ends = [len(views) * n] if video.newline else []
    left = manifest.image_tokens - n - len(ends)
    assert 0 < left < len(change)
    most = sorted(change, key=lambda place: -change[place])[:left]
    answer = pruned.answer(clip, oracle.QUESTION, 1)
    assert answer.kept is not None
    assert answer.kept.tolist() == sorted([*range(n), *most, *ends])
    assert answer.stats.image_tokens == manifest.image_tokens
    assert answer.stats.tokens_before == len(views) * n + len(ends)


def test_each_view_keeps_its_own_share(made: Made) -> None:
    """A newline stands behind the last view alone, and kept places count those of all views."""
    runtime = made.runtime(ONEVISION, ratio=0.5, method="divprune")
    video = runtime.bundle.manifest.video
    assert video is not None
    views = runtime.encode_clip(load_clip(made.clip(ONEVISION), video))
    assert [view.tokens for view in views] == [2, 2, 2, 3]
    answer = runtime.answer(views, "what?", 1)
    assert answer.kept is not None
    assert [(place // 5, place % 5 < 4) for place in answer.kept.tolist()] == [
        *[(view, True) for view in range(4) for _ in range(2)],
        (3, False),
    ]
    assert (answer.stats.tokens_before, answer.stats.image_tokens, answer.stats.images) == (17, 9, 4)


def test_frames_of_ones_own_are_a_clip(made: Made) -> None:
    path = made.bundle(QWEN2_5, ratio=0.25, method="evs")
    with lmmprune.load(path) as model:
        video = model.manifest.video
        assert video is not None
        taken = load_clip(made.clip(QWEN2_5), video)
        clip = lmmprune.Clip(frames=taken.frames, places=taken.places, length=taken.length, rate=taken.rate)
        seen = (clip, made.clip(QWEN2_5), model.encode_video(clip))
        said = [model.ask(given, "what?", max_new_tokens=4) for given in seen]
        assert said[0].tokens == said[1].tokens == said[2].tokens
        with pytest.raises(InputError, match="3 frames, this bundle takes a video of 4 frames"):
            model.encode_video(lmmprune.Clip(frames=taken.frames[:3], places=[0, 1, 2], length=3, rate=1.0))


def test_the_oldest_target_takes_what_compares_frames(made: Made) -> None:
    """Lowering refuses what its parser doesn't read; the choice is in float32 whatever the features are in."""
    for name in (ONEVISION, QWEN2_5):
        options = {"target": "tensorrt-10.3", "dtype": "float16"}
        manifest = Bundle.open(made.bundle(name, ratio=0.5, method="evs", **options)).manifest
        assert [str(stage.site) for stage in manifest.schedule] == ["projector_output"]


def test_the_command_line_answers_about_a_video(
    made: Made, cli: Callable[..., tuple[int, str, str]], tmp_path: Path
) -> None:
    path, clip = made.bundle(INTERNVL, ratio=0.5, method="freepruner"), made.clip(INTERNVL)
    code, said, stats = cli(
        "run", path, "--video", clip, "--frames", 4, "--prompt", "what?", "--max-new-tokens", 2, "--stats"
    )
    assert code == 0
    assert "image tokens 16 -> 8 of 4 views" in stats
    data = tmp_path / "data.jsonl"
    data.write_text(json.dumps({"video": str(clip), "prompt": "what?", "answer": said.strip()}))
    code, found, _ = cli("eval", path, "--data", data, "--max-new-tokens", 2, "--json")
    assert code == 0
    assert json.loads(found)["correct"] == 1
    other = made.bundle(INTERNVL, ratio=0.0)
    timing = ["--rounds", 2, "--new-tokens", 2, "--no-memory", "--json"]
    code, found, _ = cli("bench", other, path, "--video", clip, "--prompt", "what?", *timing)
    assert code == 0
    assert [row["image_tokens"] for row in json.loads(found)["rows"]] == [4, 2]


def test_a_conversation_goes_on_about_a_video(made: Made) -> None:
    """The second answer is that of a whole run, and the views aren't read again."""
    with lmmprune.load(made.bundle(INTERNVL, ratio=0.0), threads=1) as model:
        views = model.encode_video(made.clip(INTERNVL))
        talk, anew = model.conversation(views), model.conversation(views, reuse=False)
        for number, question in enumerate(("what?", "and why?")):
            one, other = (side.ask(question, max_new_tokens=4) for side in (talk, anew))
            assert one.tokens == other.tokens
            assert (one.stats.reused_tokens > one.stats.image_tokens) == bool(number)
            assert other.stats.reused_tokens == 0


def test_mistakes_are_one_line(made: Made, refusal: Callable[..., str], tmp_path: Path) -> None:
    path, clip = made.bundle(INTERNVL, ratio=0.5, method="freepruner"), made.clip(INTERNVL)
    asked = ["--prompt", "what?"]
    picture = tmp_path / "picture.png"
    oracle.picture(LAYOUTS[INTERNVL]).save(picture)
    assert "this bundle takes a video of 4 frames" in refusal("run", path, "--video", clip, "--frames", 8, *asked)
    for command in ("run", "show"):
        more = ["-o", tmp_path / "kept.png"] if command == "show" else []
        said = refusal(command, path, "--image", picture, *asked, *more)
        assert "answers about a video of 4 frames, not about pictures: give one with --video" in said
    assert "--explain asks about a picture" in refusal("bench", path, "--image", picture, *asked, "--explain")
    timing = ["--rounds", 2, "--new-tokens", 2, "--no-memory"]
    assert "not about pictures: give one" in refusal("bench", path, "--image", picture, *asked, *timing)
    assert "and chat asks about pictures: 'lmmprune run --video'" in refusal("chat", path)
    assert "requests bring pictures" in refusal("serve", path)
    pictures = exported_again()[0]
    assert "this bundle answers about pictures: give them" in refusal("bench", pictures, "--video", clip, *asked)
    data = tmp_path / "data.jsonl"
    data.write_text(json.dumps({"video": str(clip), "prompt": "what?", "answer": "x"}))
    assert "a picture is asked about here" in refusal("compare", path, made.bundle(INTERNVL, ratio=0.0), "--data", data)
    with pytest.raises(TargetError, match="takes a video: export without --frames"):
        configs(Bundle.open(path).manifest, "python")


@pytest.mark.parametrize(
    ("options", "line"),
    [
        (["--frames", 1], "--frames 1: expected 2 to 64"),
        (["--frames", 65], "--frames 65: expected 2 to 64"),
        (["--frames", 4, "--images", 2], "--frames and --images don't go together"),
        (["--frames", 4, "--batch", 2], "--batch and --frames don't go together"),
        (["--frames", 4, "--int8"], "--frames and --int8 don't go together"),
        (["--frames", 4, "--buckets", "0.5,0.75", "--method", "inflection"], "--frames and --buckets don't go"),
        (["--frames", 4, "--tiles", "2x2"], "--frames and --tiles don't go together"),
        (["--frames", 4, "--method", "evs", "--ratio", 0.9], "give --ratio 0.750 or less"),
        (["--method", "evs", "--ratio", 0.5], "method 'evs' compares the frames of a video: add --frames N"),
    ],
)
def test_what_takes_no_video_says_so(
    made: Made, options: list[object], line: str, refusal: Callable[..., str], tmp_path: Path
) -> None:
    assert line in refusal("export", "--model", made.folder(INTERNVL), "-o", tmp_path / "out", *options)


def test_families_say_what_they_take(made: Made, refusal: Callable[..., str], tmp_path: Path) -> None:
    out = ["-o", tmp_path / "out"]
    assert "LLaVA-1.5 takes no videos here" in refusal("export", "--model", "tiny-llava", "--frames", 4, *out)
    deep = ["--model", "internvl3-1b", "--weights", "dummy", "--layers", 4, "--frames", 4, "--ratio", 0.5]
    assert "--frames 4: method 'fastv' cuts at" in refusal("export", *deep, "--method", "fastv", *out)
    odd = ["--model", made.folder(QWEN2), "--frames", 5]
    assert "--frames 5: expected 4 to 128, a multiple of 2" in refusal("export", *odd, *out)
    model = ["--model", made.folder(ONEVISION), "--frames", 4, "--ratio", 0.5]
    said = refusal("export", *model, "--method", "freepruner", *out)
    assert "mixes patches into tokens behind the projector" in said
    assert "the newline behind the last frame" in refusal("export", *model, "--method", "cdpruner", *out)
