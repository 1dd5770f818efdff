"""Run mobius-onnx 0.1.0 on a LLaVA checkpoint: python mobius_llava.py CHECKPOINT OUTPUT.

Its ``build`` makes LLaVA's graphs but leaves the weights under the checkpoint's names, which none of its components
finds; it has the renaming that they need, and uses it for Pixtral only. Here LLaVA gets it too, as far as the decoder:
that is written before the vision tower fails, which in mobius is another one than CLIP's (no class token, other names).
"""

from __future__ import annotations

import runpy
import sys
from typing import Any

from mobius.models import llava

checkpoint, output = sys.argv[1:]


def preprocess_weights(self: Any, weights: dict[str, Any]) -> dict[str, Any]:
    """Return the weights under the names of mobius' components; transformers 5 saves the tower's without one level."""
    tower, inner = "vision_tower.", "vision_tower.vision_model."
    named = {k.replace(tower, inner, 1) if k.startswith(tower) else k: v for k, v in weights.items()}
    # CLIP's class token has row 0: without it mobius gets as far as writing the decoder.
    places = f"{inner}embeddings.position_embedding.weight"
    named[places] = named[places][1:]
    return llava._preprocess_pixtral_weights(named, self.config.tie_word_embeddings)


llava.LLaVAModel.preprocess_weights = preprocess_weights
sys.argv = ["mobius", "build", "--config", checkpoint, output, "--dtype", "f16"]
runpy.run_module("mobius", run_name="__main__")
