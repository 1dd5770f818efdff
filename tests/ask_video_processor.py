"""What transformers makes of a video and a question; its video processors need torchvision, which lies apart.

``python ask_video_processor.py CASES OUT``: a JSON list of cases, and a file for ids, pixels and answers of each.
"""

from __future__ import annotations

import json
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch

# torchvision's compiled part is of a torch with CUDA; what it registers has to be known before it is imported.
_OPERATORS = torch.library.Library("torchvision", "DEF")
for _name in ("nms", "qnms"):
    _OPERATORS.define(f"{_name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")


def answer(case: dict[str, Any]) -> dict[str, Any]:
    """Ask the processor and the model of a folder."""
    from transformers import AutoModelForImageTextToText, AutoProcessor
    from transformers.video_utils import load_video

    auto: Any = AutoProcessor
    processor = auto.from_pretrained(case["model"], local_files_only=True, **case["processor"])
    template = processor.chat_template or processor.tokenizer.chat_template
    content = [{"type": "video", "video": "clip"}, {"type": "text", "text": case["question"]}]
    text = processor.apply_chat_template(
        [{"role": "user", "content": content}], chat_template=template, add_generation_prompt=True, tokenize=False
    )
    # Its own reader of files is torchcodec by default; it has one of PyAV, too.
    frames, metadata = load_video(case["video"], backend="pyav", num_frames=None)
    inputs = processor(
        text=text,
        videos=[frames],
        video_metadata=[metadata],
        num_frames=case["frames"],
        do_sample_frames=True,
        return_tensors="pt",
        **case["call"],
    )
    model: Any = AutoModelForImageTextToText.from_pretrained(case["model"], dtype=torch.float32)
    length = inputs["input_ids"].shape[1]
    with torch.no_grad():
        found = model.eval().generate(**inputs, max_new_tokens=case["new_tokens"], do_sample=False)
    pixels = inputs["pixel_values_videos"] if "pixel_values_videos" in inputs else inputs["pixel_values"]
    return {"prompt": inputs["input_ids"][0].numpy(), "tokens": found[0, length:].numpy(), "pixels": pixels.numpy()}


def sampled() -> dict[str, Any]:
    """Return which frames each kind of processor takes, of videos of many lengths."""
    from transformers.models.internvl.video_processing_internvl import InternVLVideoProcessor
    from transformers.models.qwen2_vl.video_processing_qwen2_vl import Qwen2VLVideoProcessor
    from transformers.models.qwen3_vl.video_processing_qwen3_vl import Qwen3VLVideoProcessor
    from transformers.video_utils import VideoMetadata

    kinds: dict[str, Any] = {
        "floor": Qwen2VLVideoProcessor(),
        "middle": InternVLVideoProcessor(),
        "ends": Qwen3VLVideoProcessor(),
    }
    return {
        f"{name}.{length}.{frames}": np.asarray(
            kind.sample_frames(VideoMetadata(total_num_frames=length, fps=6.0), num_frames=frames, fps=None)
        )
        for name, kind in kinds.items()
        for length in (8, 9, 30, 47, 64, 301, 1000)
        for frames in (2, 4, 6, 8)
    }


def main(cases: Path, out: Path) -> None:
    """Answer all cases."""
    warnings.simplefilter("ignore")
    np.savez(
        out,
        **sampled(),
        **{
            f"{case['name']}.{key}": value
            for case in json.loads(cases.read_text())
            for key, value in answer(case).items()
        },
    )


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
