"""The whole model: built, grown, written as a Hugging Face directory and read back."""

from pathlib import Path

import torch
from torch import nn
from training.architecture import BOS, EOS, PAD
from transformers import CLIPVisionModel, GenerationConfig, LlavaForConditionalGeneration

from small_llava.text import DEEP, SHALLOW, build_config, build_processor, build_tokenizer
from small_llava.tower import grow

GROWTH = tuple(layer // (DEEP // SHALLOW) for layer in range(DEEP))
"""Which shallow layer each layer of the decoder is made of."""


def build_model(tower: CLIPVisionModel, layers: int, seed: int) -> LlavaForConditionalGeneration:
    """Initialise projector and decoder around a trained tower."""
    torch.manual_seed(seed)
    model = LlavaForConditionalGeneration(build_config(len(build_tokenizer()), layers))
    for part in (model.model.language_model, model.model.multi_modal_projector, model.lm_head):
        for name, weight in part.named_parameters():
            if weight.ndim == 2:
                nn.init.normal_(weight, std=0.3 if "embed" in name else 0.06)
    model.model.vision_tower.load_state_dict(tower.state_dict())
    model.set_attn_implementation("plain")
    return model


def deepen(model: LlavaForConditionalGeneration) -> LlavaForConditionalGeneration:
    """Return the model with a decoder of DEEP layers that computes the same as its shallow one."""
    deep = build_model(model.model.vision_tower, DEEP, 0)
    language = model.model.language_model
    language.layers = grow(language.layers, GROWTH, ("self_attn.o_proj", "mlp.down_proj"))
    deep.load_state_dict(model.state_dict())
    return deep


def save_directory(model: LlavaForConditionalGeneration, directory: Path) -> None:
    """Write the Hugging Face files; weights as float16, the configuration says float32."""
    directory.mkdir(parents=True, exist_ok=True)
    model.generation_config = GenerationConfig(  # type: ignore[no-untyped-call]  # untyped upstream
        bos_token_id=BOS, eos_token_id=EOS, pad_token_id=PAD, max_new_tokens=8, do_sample=False
    )
    state = {name: value.detach().half().contiguous() for name, value in model.state_dict().items()}
    model.save_pretrained(directory, state_dict=state)
    build_processor().save_pretrained(directory)
    for file in directory.glob("*.safetensors"):
        file.chmod(0o644)  # safetensors writes files that only their owner can read


def load_directory(directory: Path) -> LlavaForConditionalGeneration:
    """Read a directory in float32, ready to train on."""
    model = LlavaForConditionalGeneration.from_pretrained(directory, dtype=torch.float32)
    model.set_attn_implementation("plain")
    model.train(True)
    return model
