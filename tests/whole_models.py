"""A bundle against transformers' own processor and model: pixels, ids, features, and logits step by step."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from lmmprune.compiler.bundle.bundle import Bundle
from lmmprune.compiler.runtime.runtime import Runtime
from lmmprune.compiler.verify.replay import Replay

# Wide, tall, small, odd.
SIZES = ((40, 40), (333, 100), (17, 60), (9, 5), (130, 131))
QUESTION = "Which one is it?"
STEPS = 4


def noise(width: int, height: int) -> Image.Image:
    """Return a picture of coarse noise, so that resizing doesn't leave plain grey."""
    values = np.random.default_rng([width, height]).integers(0, 256, (5, 4, 3), dtype=np.uint8)
    return Image.fromarray(values).resize((width, height), Image.Resampling.NEAREST)


def hf_inputs(processor: Any, image: Image.Image, question: str, **options: Any) -> Any:
    """Return what transformers' processor makes of one picture and a question."""
    content = [{"type": "image"}, {"type": "text", "text": question}]
    text = processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
    return processor(text=text, images=[image], return_tensors="pt", **options)


def check_against_transformers(path: Path, model: Any, processor: Any, **options: Any) -> None:
    """Compare an unpruned bundle; options keep transformers' processor from splitting pictures."""
    bundle = Bundle.open(path)
    replay, runtime = Replay(bundle), Runtime(bundle)
    for size in SIZES:
        image = noise(*size)
        if size[0] < 10:
            image.putalpha(noise(*size).getchannel(0))
        inputs = hf_inputs(processor, image, QUESTION, **options)
        looked = replay.encode_image(image)
        np.testing.assert_array_equal(looked.pixels[0], inputs["pixel_values"].reshape(looked.pixels.shape)[0])
        ids = runtime.prompter.encode(QUESTION).input_ids
        assert ids.tolist() == inputs["input_ids"].tolist()
    spoken = replay.decode(looked, QUESTION, STEPS)
    forced = torch.cat([inputs["input_ids"], torch.tensor([spoken.tokens[:-1]])], dim=1)
    with torch.no_grad():
        (features,) = model.get_image_features(pixel_values=inputs["pixel_values"], return_dict=True).pooler_output
        logits = model(input_ids=forced, pixel_values=inputs["pixel_values"]).logits[0, -1 - STEPS :]
    assert features.abs().mean() > 0.1
    for found, expected in ((looked.features[0], features.numpy()), (spoken.logits, logits.numpy())):
        assert np.abs(found - expected).max() <= 1e-4 * np.abs(expected).max()
    answer = runtime.answer(image, QUESTION, STEPS, stop_at_eos=False)
    assert "".join(answer) == processor.tokenizer.decode(spoken.tokens[:STEPS], skip_special_tokens=False)
