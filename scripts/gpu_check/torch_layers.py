"""Stages ``torch-sdpa`` and ``torch-compile``: transformers' own layers at LLaVA-7B's width on the same GPU."""

from __future__ import annotations

from typing import Any

from gpu_check.roofline import read_per_step
from gpu_check.settings import RATIOS, Save, Settings, length, variant_name
from gpu_check.timing import Run, interleaved
from lmmprune.errors import TargetError, require
from lmmprune.models.family import DecoderSpec


def sdpa(settings: Settings, save: Save) -> dict[str, Any]:
    """Time the layers as they are."""
    return measure(settings, save, compiled=False)


def compiled(settings: Settings, save: Save) -> dict[str, Any]:
    """Time the layers after ``torch.compile``."""
    return measure(settings, save, compiled=True)


def measure(settings: Settings, save: Save, *, compiled: bool) -> dict[str, Any]:
    """Return a row per ratio; those of a length that fails are missing."""
    torch: Any = require("torch", "export")
    if not torch.cuda.is_available():
        raise TargetError("torch sees no GPU: install a build of torch for the CUDA of the driver")
    model = make_model(settings.spec, "cuda")
    if compiled:
        model = torch.compile(model, dynamic=False)
    data: dict[str, Any] = {"versions": {"torch": torch.__version__}, "rows": []}
    for ratio in RATIOS:
        tokens = length(ratio)
        prefill, decode = make_runs(model, settings.spec, tokens)
        times = interleaved({"prefill": prefill}, settings.rounds) | interleaved({"decode": decode}, settings.rounds)
        row = {"variant": variant_name(ratio, int8=False), "ratio": ratio, "int8": False, "tokens": tokens}
        data["rows"].append(
            {
                **row,
                "prefill_ms": times["prefill"],
                "decode_ms": times["decode"],
                "weight_bytes": read_per_step(settings.spec, 2),
            }
        )
        save(data)
    return data


def make_model(spec: DecoderSpec, device: str) -> Any:
    """Return the decoder with random weights in half precision; attention is torch's scaled dot product."""
    torch: Any = require("torch", "export")
    transformers: Any = require("transformers", "export")
    config = transformers.LlamaConfig(
        hidden_size=spec.width,
        intermediate_size=spec.mlp_width,
        num_hidden_layers=spec.layers,
        num_attention_heads=spec.heads,
        num_key_value_heads=spec.kv_heads,
        vocab_size=spec.vocabulary,
        max_position_embeddings=spec.max_positions,
        attn_implementation="sdpa",
    )
    torch.manual_seed(0)
    with torch.device(device):
        return transformers.LlamaForCausalLM(config).half().eval()


def make_runs(model: Any, spec: DecoderSpec, tokens: int) -> tuple[Run, Run]:
    """Return a prefill and a decode step behind it; the step's cache is cut back, so that all are equally long."""
    import torch
    from transformers import DynamicCache

    device = next(model.parameters()).device
    embeds = torch.randn(1, tokens, spec.width, device=device, dtype=torch.float16)
    cache = DynamicCache()
    for layer in range(spec.layers):
        past = torch.randn(1, spec.kv_heads, tokens, spec.head_dim, device=device, dtype=torch.float16)
        cache.update(past, past, layer)

    def run(part: Any, past: Any) -> Any:
        with torch.inference_mode():
            outputs = model(inputs_embeds=part, past_key_values=past, use_cache=True, logits_to_keep=1)
        if past is not None:
            past.crop(-1)
        if device.type == "cuda":
            torch.cuda.synchronize()
        return outputs

    return lambda: run(embeds, None), lambda: run(embeds[:, :1], cache)
