"""Frames of a video: which are taken, when they are, and what is said of files that have none."""

from __future__ import annotations

import sys
from pathlib import Path

import av
import numpy as np
import pytest
from clips import FRAMES, make_clip, make_sound
from transformers.video_utils import VideoMetadata, default_sample_indices_fn, read_video_pyav

from lmmprune.compiler.bundle.video import Video
from lmmprune.compiler.runtime import open_video
from lmmprune.compiler.runtime.open_video import Clip, load_clip, sample_places
from lmmprune.errors import InputError, MissingExtraError

FOUR = Video(frames=4, patch=2, sampling="floor", view="<video>")


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_clip(tmp_path_factory.mktemp("clip") / "clip.mp4")


def test_the_frames_are_transformers_own(clip: Path) -> None:
    found = load_clip(clip, FOUR)
    frames, metadata = read_video_pyav(str(clip), lambda **_: np.array(found.places))
    assert np.array_equal(np.stack([np.asarray(frame) for frame in found.frames]), frames)
    assert (found.length, found.rate) == (metadata.total_num_frames, metadata.fps) == (FRAMES, 6.0)
    assert [first for first, _ in zip(metadata.timestamps[::2], found.frames, strict=False)] == [0.0, 1.0]
    clock = found.clock(2)
    assert clock.seconds == (0.25, 1.25)
    assert clock.interval == 2 / metadata.sampled_fps


@pytest.mark.parametrize("length", [4, 7, 30, 301])
def test_frames_are_taken_evenly(length: int) -> None:
    """The other rules are held against transformers' processors in test_video.py, which want torchvision."""
    wanted = default_sample_indices_fn(VideoMetadata(total_num_frames=length, fps=6.0), num_frames=4)
    assert sample_places("floor", length, 4) == wanted.tolist()


@pytest.mark.parametrize("suffix", ["mkv", "ts"])
def test_frames_are_counted_where_a_file_does_not_say(tmp_path: Path, suffix: str) -> None:
    path = make_clip(tmp_path / f"clip.{suffix}")
    with av.open(str(path)) as container:
        assert container.streams.video[0].frames == 0
    found = load_clip(path, FOUR)
    assert (found.length, found.places) == (FRAMES, [0, 3, 6, 9])


def test_what_has_no_frames_says_so(tmp_path: Path, clip: Path) -> None:
    (tmp_path / "words.mp4").write_bytes(b"no video at all" * 100)
    (tmp_path / "empty.mp4").touch()
    (tmp_path / "half.mp4").write_bytes(clip.read_bytes()[: len(clip.read_bytes()) // 3])
    (tmp_path / "list.m3u8").write_text(f"#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\n{clip}\n#EXT-X-ENDLIST\n")
    lines = {
        make_sound(tmp_path / "sound.wav"): "has no frames: there is no video in it",
        make_clip(tmp_path / "short.mp4", frames=3): "has 3 frames, this bundle takes 4 of one",
        tmp_path / "words.mp4": "isn't a video that FFmpeg can read",
        tmp_path / "empty.mp4": "isn't a video that FFmpeg can read",
        tmp_path / "half.mp4": "half.mp4",
        tmp_path / "list.m3u8": "list.m3u8",
        tmp_path / "nothing.mp4": "there is no video",
        tmp_path: "is a directory",
    }
    for path, line in lines.items():
        with pytest.raises(InputError) as caught:
            load_clip(path, FOUR)
        assert line in str(caught.value)
        assert "\n" not in str(caught.value)


def test_frames_that_a_file_promises_are_missed(clip: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(open_video, "_length", lambda *_: (40, 6.0))
    with pytest.raises(InputError, match="says that it has more frames than the 20 in it"):
        load_clip(clip, FOUR)


def test_a_clip_counts_its_views_in_the_middle() -> None:
    clip = Clip(frames=(), places=[0, 2, 5, 7], length=10, rate=2.0)
    assert clip.clock(1).seconds == (0.0, 1.0, 2.5, 3.5)
    assert clip.clock(2).seconds == (0.5, 3.0)
    assert clip.clock(2).interval == 2.5


def test_pyav_is_asked_for_by_its_extra(clip: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'lmmprune\[video\]'"):
        load_clip(clip, FOUR)
