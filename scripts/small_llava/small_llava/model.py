"""The whole model: built, grown, written as a Hugging Face directory and read back."""

from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
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


@torch.no_grad()
def centre_projector(model: LlavaForConditionalGeneration, features: NDArray[np.float16]) -> None:
    """Start the projector so that visual tokens are as large as words, and differ as much.

    Raw features are dominated by what all patches share, and ten times as large as the embeddings
    of words: a decoder of random weights hardly sees the rest.

    Args:
        model: a fresh model.
        features: of some scenes `[S, N, C]`.
    """
    flat = torch.from_numpy(features.astype(np.float32)).flatten(0, 1)
    first = model.model.multi_modal_projector.linear_1
    nn.init.normal_(first.weight, std=first.in_features**-0.5)
    first.weight /= flat.std(0)
    first.bias.copy_(-first.weight @ flat.mean(0))


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
