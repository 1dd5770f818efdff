"""Tokenizer, processor and configuration of the small LLaVA."""

import re

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from training.architecture import BOS, EOS, IMAGE, PAD, SPECIAL, chat_template
from transformers import (
    CLIPImageProcessorPil,
    LlamaConfig,
    LlavaConfig,
    LlavaProcessor,
    PreTrainedTokenizerFast,
)

from lmmprune.models.tiny_llava.scenes import COLOUR_NAMES
from small_llava.glyphs import WORDS
from small_llava.questions import COLUMNS, SIDES
from small_llava.scenes import GRID, IMAGE_SIZE, KINDS, PATCH_SIZE, SHAPES
from small_llava.tower import WIDTH, vision_config

_SENTENCES = (
    "USER: ASSISTANT:",
    "which number is written in? what does the word say? what is the digit? which shape is",
    "what colour is where is the how many things numbers digits words shapes are there?",
    "is there a is the left of right of above below",
    "this picture was taken on a long walk through the town. my friend likes every and the word",
    "yesterday there were on the wall. do not think of. please look closely at all that is there and answer in one",
    "are far away from here yes no",
    *(*SIDES, *KINDS, *SHAPES, *COLOUR_NAMES, *WORDS, *COLUMNS),
)
_DIGITS = "0123456789"

SHALLOW, DEEP = 4, 12
"""Layers of the decoder while it learns to find, and from then on."""


def _vocabulary() -> dict[str, int]:
    words = re.findall(r"\w+|[^\w\s]", " ".join(_SENTENCES).lower())
    # Numbers and cells are written character by character: "142" is "1", "##4", "##2".
    words += [*_DIGITS, *(f"##{digit}" for digit in _DIGITS)]
    return {word: index for index, word in enumerate(dict.fromkeys((*SPECIAL, *words)))}


def build_tokenizer() -> PreTrainedTokenizerFast:
    """Build the lower-casing tokenizer: one token per word of the task, one per digit."""
    tokenizer = Tokenizer(models.WordPiece(_vocabulary(), unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.decoder = decoders.WordPiece()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A $B", special_tokens=[("<s>", BOS)]
    )
    return PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]  # untyped upstream
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        extra_special_tokens={"image_token": "<image>"},
        padding_side="left",
        model_max_length=1024,
        clean_up_tokenization_spaces=False,
    )


def build_processor() -> LlavaProcessor:
    """Build the CLIP preprocessing and the tokenizer with the chat format of LLaVA-1.5."""
    size = {"height": IMAGE_SIZE, "width": IMAGE_SIZE}
    return LlavaProcessor(  # type: ignore[no-untyped-call]  # untyped upstream
        image_processor=CLIPImageProcessorPil(size={"shortest_edge": IMAGE_SIZE}, crop_size=size, do_convert_rgb=True),
        tokenizer=build_tokenizer(),
        patch_size=PATCH_SIZE,
        vision_feature_select_strategy="default",
        chat_template=chat_template(),
        image_token="<image>",
        num_additional_image_tokens=1,
    )


def build_config(vocabulary: int, layers: int) -> LlavaConfig:
    """Describe the model: the tower, a GELU projector and a GQA decoder of some layers."""
    text = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=WIDTH,
        intermediate_size=3 * WIDTH,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=32,
        max_position_embeddings=1024,
        bos_token_id=BOS,
        eos_token_id=EOS,
        pad_token_id=PAD,
        tie_word_embeddings=False,
    )
    return LlavaConfig(
        vision_config=vision_config(),
        text_config=text,
        image_token_index=IMAGE,
        image_seq_length=GRID * GRID,
        projector_hidden_act="gelu",
        vision_feature_layer=-2,
        vision_feature_select_strategy="default",
        tie_word_embeddings=False,
    )
