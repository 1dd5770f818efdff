"""Configuration, tokenizer and processor of the tiny LLaVA."""

import re
from pathlib import Path

import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import (
    CLIPImageProcessorPil,
    CLIPVisionConfig,
    GenerationConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerFast,
)

from lmmprune.models.tiny_llava.questions import CORNERS, NUMBERS, SIDES
from lmmprune.models.tiny_llava.scenes import COLOUR_NAMES, IMAGE_SIZE, PATCH_SIZE

SPECIAL = ("<pad>", "<s>", "</s>", "<unk>", "<image>")
PAD, BOS, EOS, UNK, IMAGE = range(len(SPECIAL))
WIDTH = 128

_SENTENCES = (
    "USER: ASSISTANT:",
    "which digit is nearest the corner?",
    "what colour is the digit?",
    "how many digits are there?",
    "is there a digit left of, above the digit?",
    "what is the sum of the digits.",
    "yes no",
    *(*SIDES, *CORNERS, *NUMBERS, *COLOUR_NAMES),
)
_CHAT_TEMPLATE = (
    "{% for message in messages %}{% if message['role'] != 'system' %}"
    "{{ message['role'].upper() + ': ' }}{% endif %}"
    "{% for part in message['content'] | selectattr('type', 'equalto', 'image') %}"
    "{{ '<image>\n' }}{% endfor %}"
    "{% for part in message['content'] | selectattr('type', 'equalto', 'text') %}"
    "{{ part['text'] + ' ' }}{% endfor %}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
)


def chat_template() -> str:
    """Return the chat format of LLaVA-1.5."""
    return _CHAT_TEMPLATE


def build_tokenizer() -> PreTrainedTokenizerFast:
    """Build the lower-casing word-level tokenizer over the closed vocabulary of the task."""
    words = re.findall(r"\w+|[^\w\s]", " ".join(_SENTENCES).lower())
    vocabulary = {word: index for index, word in enumerate(dict.fromkeys((*SPECIAL, *words)))}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
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
        model_max_length=512,
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
        chat_template=_CHAT_TEMPLATE,
        image_token="<image>",
        num_additional_image_tokens=1,
    )


def build_config(vocabulary: int) -> LlavaConfig:
    """Describe the model: a small CLIP tower with CLS, a GELU projector and a GQA decoder."""
    vision = CLIPVisionConfig(
        hidden_size=WIDTH,
        intermediate_size=4 * WIDTH,
        num_hidden_layers=6,
        num_attention_heads=4,
        image_size=IMAGE_SIZE,
        patch_size=PATCH_SIZE,
        projection_dim=WIDTH,
    )
    text = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=WIDTH,
        intermediate_size=384,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=32,
        max_position_embeddings=512,
        bos_token_id=BOS,
        eos_token_id=EOS,
        pad_token_id=PAD,
        tie_word_embeddings=False,
    )
    return LlavaConfig(
        vision_config=vision,
        text_config=text,
        image_token_index=IMAGE,
        image_seq_length=(IMAGE_SIZE // PATCH_SIZE) ** 2,
        projector_hidden_act="gelu",
        vision_feature_layer=-2,
        vision_feature_select_strategy="default",
        tie_word_embeddings=False,
    )


def build_model(seed: int) -> LlavaForConditionalGeneration:
    """Initialise an untrained model; larger weights than the defaults learn faster this small."""
    torch.manual_seed(seed)
    model = LlavaForConditionalGeneration(build_config(len(build_tokenizer())))
    for name, weight in model.model.vision_tower.named_parameters():
        if "embedding" in name:
            torch.nn.init.normal_(weight, std=0.04 if "patch" in name else 0.02)
        elif weight.ndim == 2:
            torch.nn.init.normal_(weight, std=0.04)
    for part in (model.model.language_model, model.model.multi_modal_projector, model.lm_head):
        for name, weight in part.named_parameters():
            if weight.ndim == 2:
                torch.nn.init.normal_(weight, std=0.3 if "embed" in name else 0.06)
    return model


def save_directory(model: LlavaForConditionalGeneration, directory: Path) -> None:
    """Write the Hugging Face files; weights as float16, the configuration says float32."""
    directory.mkdir(parents=True, exist_ok=True)
    model.generation_config = GenerationConfig(  # type: ignore[no-untyped-call]  # untyped upstream
        bos_token_id=BOS, eos_token_id=EOS, pad_token_id=PAD, max_new_tokens=8, do_sample=False
    )
    state = {name: value.detach().half() for name, value in model.state_dict().items()}
    model.save_pretrained(directory, state_dict=state)
    build_processor().save_pretrained(directory)
