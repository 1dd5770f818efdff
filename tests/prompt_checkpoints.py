"""Checkpoints of LLaVA without weights: all that a prompt depends on, in the files that the hub has."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import runtime_fixtures as fx
from PIL import Image
from tokenizers import AddedToken, Tokenizer, models, normalizers, pre_tokenizers, processors

from lmmprune.compiler.assets.write_assets import Assets, write_assets
from lmmprune.compiler.bundle.bundle import TOKENIZER, Bundle
from lmmprune.compiler.runtime.prompt import Prompter
from lmmprune.models.source import resolve

SIDE = 2  # patches
PIXELS = 8
IMAGE = 4
SPECIAL = ("<pad>", "<s>", "</s>", "<unk>", "<image>", "<end>")
PARTS = (
    "{% for m in messages %}{{ m['role'] }}: {% for p in m['content'] %}"
    "{% if p['type'] == 'image' %}<image>\n{% else %}{{ p['text'] }}{% endif %}{% endfor %}{% endfor %}"
    "{% if add_generation_prompt %} assistant:{% endif %}"
)
TEXT_ONLY = "{% for m in messages %}{{ m['role'] + ': ' + m['content'] + '<end>' }}{% endfor %}assistant:"

TEXT_PARTS = "{% for p in messages[0]['content'] if p['type'] == 'text' %}q: {{ p['text'] }}{% endfor %} a:"


def letters(*, bos: bool, pad: bool = False) -> Tokenizer:
    """Return a tokenizer like Llama's, of letters and bytes; ``bos``: its post-processor puts <s> in front."""
    vocab = {name: index for index, name in enumerate(SPECIAL)}
    for byte in range(256):
        vocab[f"<0x{byte:02X}>"] = len(vocab)
    for letter in "▁abcdefghijklmnopqrstuvwxyz:?.":
        vocab[letter] = len(vocab)
    merges = [("▁", "a"), ("▁", "w"), ("w", "h"), ("▁w", "h"), ("a", "t")]
    for left, right in merges:
        vocab[left + right] = len(vocab)
    made = Tokenizer(models.BPE(vocab=vocab, merges=merges, byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    made.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    made.add_special_tokens([AddedToken(name, special=True, normalized=False) for name in SPECIAL])
    if bos:
        made.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    if pad:
        made.enable_padding(length=60, pad_id=0, pad_token="<pad>")
        made.enable_truncation(20)
    return made


def words(*, bos: bool) -> Tokenizer:
    """Return a tokenizer of a few whole words."""
    names = [*SPECIAL, *["user", "assistant", ":", "?", ".", "what", "is", "the", "left", "a", "b", "c", "d"]]
    made = Tokenizer(models.WordLevel({name: index for index, name in enumerate(names)}, unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    made.add_special_tokens([AddedToken(name, special=True, normalized=False) for name in SPECIAL])
    if bos:
        made.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return made


def checkpoint(
    folder: Path,
    files: dict[str, Any],
    *,
    tokenizer: Tokenizer | None = None,
    config: dict[str, Any] | None = None,
    special: dict[str, Any] | None = None,
) -> Path:
    """Write a checkpoint; ``files`` are added, texts as they are and objects merged into what is there."""
    folder.mkdir(parents=True, exist_ok=True)
    vision = {
        "model_type": "clip_vision_model", "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 3,
        "num_attention_heads": 2, "image_size": PIXELS, "patch_size": PIXELS // SIDE, "projection_dim": 16,
    }  # fmt: skip
    text = {
        "model_type": "llama", "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 2,
        "num_attention_heads": 2, "num_key_value_heads": 2, "vocab_size": 320, "max_position_embeddings": 256,
    }  # fmt: skip
    written: dict[str, Any] = {
        "config.json": {
            "model_type": "llava", "vision_config": vision, "text_config": text, "image_token_index": IMAGE,
            "image_seq_length": SIDE**2, "vision_feature_layer": -2, "vision_feature_select_strategy": "default",
            **(config or {}),
        },
        "generation_config.json": {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0},
        "preprocessor_config.json": {
            "image_processor_type": "CLIPImageProcessor", "size": {"shortest_edge": PIXELS},
            "crop_size": {"height": PIXELS, "width": PIXELS}, "do_center_crop": True, "do_resize": True,
            "do_rescale": True, "do_normalize": True, "do_convert_rgb": True, "resample": 3, "rescale_factor": 1 / 255,
            "image_mean": [0.5, 0.5, 0.5], "image_std": [0.25, 0.25, 0.25],
        },
        "processor_config.json": {
            "image_token": "<image>", "patch_size": PIXELS // SIDE, "processor_class": "LlavaProcessor",
            "num_additional_image_tokens": 1, "vision_feature_select_strategy": "default",
        },
        "tokenizer_config.json": {
            "tokenizer_class": "LlamaTokenizer", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>",
            "pad_token": "<pad>", "processor_class": "LlavaProcessor", **(special or {}),
        },
    }  # fmt: skip
    for name, content in files.items():
        if isinstance(content, dict) and isinstance(written.get(name), dict):
            content = written[name] | content
        written[name] = content
    (tokenizer or letters(bos=True)).save(str(folder / TOKENIZER))
    write(folder, written)
    return folder


def write(folder: Path, files: dict[str, Any]) -> None:
    """Write texts as they are and objects as JSON; None removes a file."""
    for name, content in files.items():
        if isinstance(content, dict) and name == "config.json":
            content = {key: value for key, value in content.items() if value is not None}
        if content is None:
            (folder / name).unlink(missing_ok=True)
            continue
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")


def export(folder: Path, bundle: Bundle, template: str | None = None) -> tuple[Assets, Prompter]:
    """Write the assets of a checkpoint and return them with the prompt side of a bundle that has them."""
    target = folder / "assets"
    target.mkdir(exist_ok=True)
    assets = write_assets(resolve(str(folder), weights="dummy"), target, template)
    manifest = dataclasses.replace(bundle.manifest, prompt=assets.prompt, image_tokens=SIDE**2, schedule=())
    return assets, Prompter(manifest, target / TOKENIZER)


def theirs(folder: Path, question: str, *more: str, **options: Any) -> list[int]:
    """Return the prompt's tokens as the checkpoint's own processor makes them; ``more``: an answer, a question, ..."""
    from transformers import AutoProcessor

    content = [{"type": "image", "image": Image.new("RGB", (9, 7))}, {"type": "text", "text": question}]
    messages: list[dict[str, Any]] = [{"role": "user", "content": content}]
    for number, text in enumerate(more):
        role = "user" if number % 2 else "assistant"
        messages.append({"role": role, "content": [{"type": "text", "text": text}]})
    processor = AutoProcessor.from_pretrained(folder)
    ids = processor.apply_chat_template(messages, add_generation_prompt=True, tokenize=True, **options)
    found: list[int] = ids[0]
    return found


def bundle(folder: Path) -> Bundle:
    """Return a bundle for its manifest."""
    return fx.make_bundle(folder / "bundle")
