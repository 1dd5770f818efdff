"""The model in PyTorch, from the checkpoint or with the synthetic weights that a bundle was made from."""

from __future__ import annotations

from typing import Any

import torch

from lmmprune.models.source import Source


def load_model(source: Source) -> Any:
    """Return transformers' model in float32, in eval mode.

    Args:
        source: Its ``dummy`` says whether the weights are synthetic: equal names and shapes give equal values.
    """
    from transformers import AutoModelForImageTextToText
    from transformers.utils import logging

    hush: Any = logging.disable_progress_bar
    hush()
    auto: Any = AutoModelForImageTextToText
    if not source.dummy:
        model = auto.from_pretrained(
            source.directory,
            config=source.config,
            dtype=torch.float32,
            attn_implementation="eager",
            local_files_only=True,
        )
        return model.eval()
    source.config._attn_implementation = "eager"
    model = auto.from_config(source.config, dtype=torch.float32).eval()
    readers = source.readers(model)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(torch.from_numpy(readers[name]()))
    return model
