"""Tiny random checkpoints of the families with a pixel shuffle, with processors made from scratch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from random_llava import fill
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import GenerationConfig, PreTrainedTokenizerFast

PATCH = 4  # pixels
SPECIAL = ["<pad>", "<s>", "</s>", "<image>"]
TEXT = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 512,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
IDEFICS3 = ["<fake_token_around_image>", "<global-img>", "<end_of_utterance>", "<|im_start|>"]
SMOLVLM_TEMPLATE = (
    "<|im_start|>{% for message in messages %}{{ message['role'] | capitalize }}"
    "{{ ':' if message['content'][0]['type'] == 'image' else ': ' }}{% for line in message['content'] %}"
    "{% if line['type'] == 'text' %}{{ line['text'] }}{% else %}{{ '<image>' }}{% endif %}{% endfor %}"
    "<end_of_utterance>\n{% endfor %}{% if add_generation_prompt %}{{ 'Assistant:' }}{% endif %}"
)


def byte_tokenizer(special: list[str], **named: str) -> PreTrainedTokenizerFast:
    """Return a tokenizer of bytes, whose first ids are special tokens."""
    words = [*SPECIAL, *special, *sorted(pre_tokenizers.ByteLevel.alphabet())]
    raw = Tokenizer(models.BPE(vocab={word: index for index, word in enumerate(words)}, merges=[]))
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    raw.add_special_tokens([AddedToken(word, special=True, normalized=False) for word in [*SPECIAL, *special]])
    return PreTrainedTokenizerFast(
        tokenizer_object=raw, pad_token="<pad>", bos_token="<s>", eos_token="</s>", extra_special_tokens=named
    )


def finished(model: Any, seed: int) -> Any:
    """Draw the weights: no prediction is certain, and no score ties."""
    model.eval()
    fill(model, torch.Generator().manual_seed(seed))
    return model


def save_idefics3(path: Path, kind: str, *, side: int = 8, merge: int = 2, seed: int = 0) -> tuple[Any, Any]:
    """Save an Idefics3 or SmolVLM whose pictures have ``side`` patches a side; return the model and its processor."""
    import transformers

    tokenizer = byte_tokenizer(IDEFICS3)
    names = {"idefics3": "Idefics3", "smolvlm": "SmolVLM"}[kind]
    vision = {
        "hidden_size": 24,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "image_size": side * PATCH,
        "patch_size": PATCH,
    }
    config = getattr(transformers, f"{names}Config")(
        vision_config=vision,
        text_config={"model_type": "llama", "vocab_size": len(tokenizer), **TEXT},
        scale_factor=merge,
        image_token_id=SPECIAL.index("<image>"),
        tie_word_embeddings=False,
    )
    config._attn_implementation = "eager"
    model = finished(getattr(transformers, f"{names}ForConditionalGeneration")(config), seed)
    # SmolVLM's own processor wants a package that spells numbers out, for videos; pictures are Idefics3's.
    images = getattr(transformers, f"{names}ImageProcessorPil")(
        size={"longest_edge": 4 * side * PATCH}, max_image_size={"longest_edge": side * PATCH}
    )
    processor = transformers.Idefics3Processor(
        images, tokenizer, image_seq_len=(side // merge) ** 2, chat_template=SMOLVLM_TEMPLATE
    )
    return save(path, model, processor)


def save(path: Path, model: Any, processor: Any) -> tuple[Any, Any]:
    """Save as a hub's repository has it."""
    model.save_pretrained(path)
    processor.image_processor.save_pretrained(path)
    processor.tokenizer.save_pretrained(path)
    (path / "chat_template.jinja").write_text(processor.chat_template, encoding="utf-8")
    GenerationConfig(eos_token_id=2, bos_token_id=1, pad_token_id=0).save_pretrained(path)
    return model, processor


INTERNVL = ["<img>", "</img>", "<IMG_CONTEXT>", "<video>", "<|im_start|>", "<|im_end|>"]
INTERNVL_TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' }}"
    "{% for line in message['content'] %}{% if line['type'] == 'text' %}{{ line['text'] }}"
    "{% else %}{{ '<IMG_CONTEXT>\n' }}{% endif %}{% endfor %}{{ '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def save_internvl(
    path: Path, text: str = "qwen2", *, side: int = 6, merge: int = 2, seed: int = 0, **vision: Any
) -> tuple[Any, Any]:
    """Save an InternVL whose pictures have ``side`` patches a side; return the model and its processor."""
    from transformers import InternVLConfig, InternVLForConditionalGeneration, InternVLProcessor
    from transformers.models.got_ocr2.image_processing_pil_got_ocr2 import GotOcr2ImageProcessorPil

    tokenizer = byte_tokenizer(
        INTERNVL,
        start_image_token="<img>",
        end_image_token="</img>",
        context_image_token="<IMG_CONTEXT>",
        video_token="<video>",
    )
    sizes = {
        "hidden_size": 24,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "image_size": [side * PATCH, side * PATCH],
        "patch_size": [PATCH, PATCH],
        "attention_bias": True,
    }
    config = InternVLConfig(
        vision_config={**sizes, **vision},
        text_config={"model_type": text, "vocab_size": len(tokenizer), **TEXT},
        downsample_ratio=1 / merge,
        image_token_id=tokenizer.convert_tokens_to_ids("<IMG_CONTEXT>"),
        image_seq_length=(side // merge) ** 2,
        tie_word_embeddings=False,
    )
    config._attn_implementation = "eager"
    model = finished(InternVLForConditionalGeneration(config), seed)
    images = GotOcr2ImageProcessorPil(size={"height": side * PATCH, "width": side * PATCH}, crop_to_patches=True)

    class Pictures(InternVLProcessor):
        """Without its part for videos, which wants torchvision."""

        def check_argument_for_proper_class(self, argument_name: str, argument: Any) -> type:
            return type(argument)

    processor = Pictures(images, tokenizer, image_seq_length=(side // merge) ** 2, chat_template=INTERNVL_TEMPLATE)
    return save(path, model, processor)
