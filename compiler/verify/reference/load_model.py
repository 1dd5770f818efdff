"""The model in PyTorch, from the checkpoint or with the synthetic weights or integers that a bundle was made from."""

from __future__ import annotations

import functools
import math
from typing import Any

import numpy as np
import onnx_ir as ir
import torch

from lmmprune.compiler.targets import machine
from lmmprune.compiler.verify.reference.cut import CutRefused
from lmmprune.models.source import Source

LARGE_BYTES = 2 * 2**30
"""Float32 weights from which the decoder's stay in the checkpoint's type, where they are mapped and not copied."""
_HALF = {ir.DataType.FLOAT16: torch.float16, ir.DataType.BFLOAT16: torch.bfloat16}


def load_model(source: Source) -> Any:
    """Return transformers' model in eval mode, which computes in float32.

    Args:
        source: Its ``dummy`` says whether the weights are synthetic: equal names and shapes give equal values. Weights
            that are integers are what they are worth.

    Raises:
        CutRefused: The memory isn't there.
    """
    from transformers import AutoModelForImageTextToText
    from transformers.utils import logging

    hush: Any = logging.disable_progress_bar
    hush()
    auto: Any = AutoModelForImageTextToText
    size = 4 * sum(math.prod(shape) for shape in source.shapes.values())
    kinds = {entry.dtype for entry in source.entries.values()}
    half = _HALF.get(*kinds) if len(kinds) == 1 and size >= LARGE_BYTES else None
    free = machine.free_memory()
    if half is None and free is not None and size > free:
        gib = 2.0**30
        raise CutRefused(f"the model takes {size / gib:.1f} GiB in float32, {free / gib:.1f} GiB are free")
    if not (source.dummy or source.packed):
        model = auto.from_pretrained(
            source.directory,
            config=source.config,
            dtype=half or torch.float32,
            attn_implementation="eager",
            local_files_only=True,
        ).eval()
        _merge(model, source)
        return widened(model) if half else model
    model = auto.from_config(source.config, dtype=torch.float32, attn_implementation="eager").eval()
    readers = source.readers(model)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            # NumPy's bfloat16 isn't PyTorch's.
            parameter.copy_(torch.from_numpy(readers[name]().astype(np.float32, copy=False)))
    return model


def _merge(model: Any, source: Source) -> None:
    """Put what an adapter changes into a loaded model, in float32."""
    adapter = source.adapted(model)
    if adapter is None:
        return
    readers, parameters = source.readers(model), dict(model.named_parameters(remove_duplicate=False))
    for name in (*adapter.updates, *adapter.replaced):
        parameters[name].data = torch.from_numpy(readers[name]().astype(np.float32))


def widened(model: Any) -> Any:
    """Let a model in half precision compute in float32: the decoder's matrices are widened whenever they are used.

    The numbers are those of the same model in float32, for half of its memory.
    """
    language = model.get_decoder()
    matrices = [model.lm_head, *(module for module in language.modules() if isinstance(module, torch.nn.Linear))]
    kept = {*matrices, language.embed_tokens}
    for module in model.modules():
        if module in kept:
            continue
        for parameter in module.parameters(recurse=False):
            parameter.data = parameter.data.float()
        for name, buffer in module.named_buffers(recurse=False):
            module.register_buffer(name, buffer.float() if buffer.is_floating_point() else buffer)
    for module in matrices:
        module.forward = functools.partial(_multiply, module)
    language.embed_tokens.forward = lambda ids: torch.nn.functional.embedding(ids, language.embed_tokens.weight).float()
    return model


def _multiply(module: torch.nn.Linear, x: torch.Tensor) -> torch.Tensor:
    bias = None if module.bias is None else module.bias.float()
    return torch.nn.functional.linear(x, module.weight.float(), bias)
