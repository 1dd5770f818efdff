"""transformers' own answer: its processor, its model and its ``generate``, from the picture and the question on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any
from unittest import mock

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from hub_layouts.layout import Layout

QUESTION = "What is on the left of the picture, a cat or 2 dogs?"
NEW_TOKENS = 12
_VIDEOS = "transformers.models.auto.video_processing_auto.AutoVideoProcessor"
_CHECK = "transformers.processing_utils.ProcessorMixin.check_argument_for_proper_class"


@dataclass(frozen=True, kw_only=True)
class Expected:
    """What transformers makes of a picture and a question.

    Attributes:
        prompt: Ids of the whole prompt, the pictures' places included.
        pixels: ``pixel_values`` as the model gets them.
        tokens: The greedy answer.
    """

    prompt: list[int]
    pixels: NDArray[np.float32]
    tokens: list[int]


def picture(layout: Layout, seed: int = 3) -> Image.Image:
    """Return a picture of coloured blocks."""
    rng = np.random.default_rng(seed)
    blocks = Image.fromarray(rng.integers(0, 256, (6, 7, 3), np.uint8))
    return blocks.resize(layout.picture, Image.Resampling.BICUBIC)


def expected(
    model: str, layout: Layout, *, seed: int = 3, more: Sequence[int] = (), question: str = QUESTION, place: str = ""
) -> Expected:
    """Ask transformers, in float32.

    Args:
        model: The checkpoint's folder, or its name in the hub's cache.
        layout: What its processor needs to be told.
        seed: Of the picture.
        more: Seeds of further pictures.
        question: What is asked; with ``<image>`` where each picture stands, if ``place`` is given.
        place: What the processor takes for a picture within a text; empty: they stand before the question.
    """
    from transformers import AutoModelForImageTextToText

    processor, auto = _processor(model, layout), AutoModelForImageTextToText  # type: Any, Any
    module, loading = auto.from_pretrained(model, dtype=torch.float32, output_loading_info=True)
    for kind, names in loading.items():
        assert not names, f"{layout.name} isn't what transformers expects: {kind} {names}"
    if getattr(processor, "video_processor", 0) is None:
        # SmolVLM's asks how to sample them even where there are none.
        processor.video_processor = SimpleNamespace(num_frames=None, fps=None)
    # A checkpoint may keep the template with its tokenizer, which the processor doesn't look at.
    template = processor.chat_template or processor.tokenizer.chat_template or layout.template
    assert template, f"{layout.name} has no chat template: state one"
    pictures = [picture(layout, one) for one in (seed, *more)]
    settings = {"chat_template": template, "add_generation_prompt": True}
    if place:
        said = [{"type": "text", "text": question.replace("<image>", place)}]
        text = processor.apply_chat_template([{"role": "user", "content": said}], tokenize=False, **settings)
        inputs = processor(text=text, images=pictures, return_tensors="pt", **layout.call)
    else:
        content = [*({"type": "image", "image": one} for one in pictures), {"type": "text", "text": question}]
        inputs = processor.apply_chat_template(
            [{"role": "user", "content": content}],
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
            processor_kwargs=dict(layout.call),
            **settings,
        )
    length = inputs["input_ids"].shape[1]
    with torch.no_grad():
        found = module.eval().generate(**inputs, max_new_tokens=NEW_TOKENS, do_sample=False)
    return Expected(
        prompt=inputs["input_ids"][0].tolist(),
        pixels=inputs["pixel_values"].float().numpy(),
        tokens=found[0, length:].tolist(),
    )


def together(model: str, layout: Layout, questions: Sequence[tuple[int, str]]) -> list[list[int]]:
    """Return transformers' greedy answers to several questions in one batch, padded on the left, in float32.

    Args:
        model: The checkpoint's folder.
        layout: What its processor needs to be told.
        questions: Seed of the picture and text of each.
    """
    from transformers import AutoModelForImageTextToText

    processor, auto = _processor(model, layout), AutoModelForImageTextToText  # type: Any, Any
    tokenizer = processor.tokenizer
    tokenizer.padding_side, tokenizer.pad_token = "left", tokenizer.pad_token or tokenizer.eos_token
    template = processor.chat_template or tokenizer.chat_template or layout.template
    said = [
        [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": question}]}]
        for _, question in questions
    ]
    texts = [
        processor.apply_chat_template(one, tokenize=False, chat_template=template, add_generation_prompt=True)
        for one in said
    ]
    pictures = [picture(layout, seed) for seed, _ in questions]
    inputs = processor(text=texts, images=pictures, padding=True, return_tensors="pt", **layout.call)
    module = auto.from_pretrained(model, dtype=torch.float32).eval()
    with torch.no_grad():
        found = module.generate(**inputs, max_new_tokens=NEW_TOKENS, do_sample=False)
    assert not inputs["attention_mask"].all(), "questions of one length need no padding"
    rows: list[list[int]] = found[:, inputs["input_ids"].shape[1] :].tolist()
    return rows


def conversation(
    model: str, layout: Layout, words: Sequence[str], seeds: Sequence[int], placed: Sequence[int] = ()
) -> list[int]:
    """Return transformers' ids of a question, its answer, the next question, ...

    Args:
        model: The checkpoint.
        layout: What its processor needs to be told.
        words: What was said; with the pictures' places in it, unless ``placed`` says where they are.
        seeds: Of the pictures.
        placed: How many of them come with each question.
    """
    found: list[int] = _conversed(model, layout, words, seeds, placed)["input_ids"][0]
    return found


def conversed_logits(
    model: str, layout: Layout, words: Sequence[str], seeds: Sequence[int], placed: Sequence[int]
) -> NDArray[np.float32]:
    """Return what transformers' model says of the next token, ``[V]`` float32, of one run over such a conversation."""
    from transformers import AutoModelForImageTextToText

    auto: Any = AutoModelForImageTextToText
    module = auto.from_pretrained(model, dtype=torch.float32).eval()
    inputs = _conversed(model, layout, words, seeds, placed, return_tensors="pt")
    with torch.no_grad():
        logits: NDArray[np.float32] = module(**inputs).logits[0, -1].numpy()
    return logits


def _conversed(
    model: str, layout: Layout, words: Sequence[str], seeds: Sequence[int], placed: Sequence[int], **settings: Any
) -> Any:
    processor = _processor(model, layout)
    messages = []
    for number, word in enumerate(words):
        pictures = 0 if number % 2 or not placed else placed[number // 2]
        content = [*[{"type": "image"}] * pictures, {"type": "text", "text": word}]
        messages.append({"role": "assistant" if number % 2 else "user", "content": content})
    text = processor.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    return processor(text=text, images=[picture(layout, seed) for seed in seeds], **layout.call, **settings)


def _processor(model: str, layout: Layout) -> Any:
    from transformers import AutoProcessor

    auto: Any = AutoProcessor
    # Videos need torchvision, and a picture none of it: the processor goes without its part for them.
    with mock.patch(f"{_VIDEOS}.from_pretrained", return_value=None), mock.patch(_CHECK):
        return auto.from_pretrained(model, **layout.processor)


def as_pictures(pixels: NDArray[np.float32], shape: tuple[int, ...]) -> NDArray[np.float32]:
    """Return ``pixel_values`` of any family's processor as pictures ``[B,3,H,W]`` of a bundle's shape.

    Qwen's rows are patches, squares of 2 x 2 together, each as two equal frames.
    """
    if pixels.ndim != 2:
        return pixels.reshape(shape)
    _, channels, height, width = shape
    patch = round((pixels.shape[1] / (2 * channels)) ** 0.5)
    rows, columns = height // patch // 2, width // patch // 2
    frames = pixels.reshape(rows, columns, 2, 2, channels, 2, patch, patch).transpose(5, 4, 0, 2, 6, 1, 3, 7)
    first, second = frames.reshape(2, channels, height, width)
    assert np.array_equal(first, second)
    return first[None]
