"""Random CLIP and SigLIP towers, exported as other tools export them, and the reference's answers for them."""

from __future__ import annotations

import functools
import io
import warnings
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import torch
from random_llava import PATCH, fill
from transformers import CLIPVisionConfig, CLIPVisionModel, SiglipVisionConfig, SiglipVisionModel

GRID, LAYERS, HEADS, WIDTH = 5, 3, 2, 32
SIDE, N = GRID * PATCH, GRID * GRID
_SIZES: dict[str, Any] = {
    "hidden_size": WIDTH,
    "intermediate_size": 64,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS,
    "image_size": SIDE,
    "patch_size": PATCH,
}
NAMES = ["last_hidden_state", "pooler_output"]


class _Outputs(torch.nn.Module):
    """What optimum's export configuration of these models asks for."""

    def __init__(self, tower: Any, hidden_states: bool) -> None:
        super().__init__()
        self.tower = tower
        self.hidden_states = hidden_states

    def forward(self, pixel_values: torch.Tensor) -> Any:
        found = self.tower(pixel_values=pixel_values, output_hidden_states=self.hidden_states)
        return (found.last_hidden_state, found.pooler_output, *(found.hidden_states if self.hidden_states else ()))


class BmmAttention(torch.nn.Module):
    """CLIP's attention as older versions of transformers wrote it: the scale on q, heads beside the batch, ``bmm``."""

    def __init__(self, new: Any) -> None:
        super().__init__()
        self.q_proj, self.k_proj, self.v_proj, self.out_proj = new.q_proj, new.k_proj, new.v_proj, new.out_proj
        self.heads, self.width = new.num_heads, new.head_dim

    def _split(self, x: torch.Tensor) -> torch.Tensor:
        batch, tokens, _ = x.shape
        split = x.view(batch, tokens, self.heads, self.width).transpose(1, 2).contiguous()
        return split.view(batch * self.heads, -1, self.width)

    def forward(self, hidden_states: torch.Tensor, **_: Any) -> tuple[torch.Tensor, None]:
        batch, tokens, channels = hidden_states.shape
        q = self._split(self.q_proj(hidden_states) * self.width**-0.5)
        k, v = self._split(self.k_proj(hidden_states)), self._split(self.v_proj(hidden_states))
        weights = torch.nn.functional.softmax(torch.bmm(q, k.transpose(1, 2)), dim=-1)
        mixed = torch.bmm(torch.nn.functional.dropout(weights, p=0.0, training=False), v)
        mixed = mixed.view(batch, self.heads, tokens, self.width).transpose(1, 2)
        return self.out_proj(mixed.reshape(batch, tokens, channels)), None


@functools.cache
def tower(kind: str, attention: str = "eager") -> Any:
    """Return a float32 tower; all of a kind have the same weights."""
    model: Any = (
        CLIPVisionModel(CLIPVisionConfig(**_SIZES, projection_dim=WIDTH))
        if kind == "clip"
        else SiglipVisionModel(SiglipVisionConfig(**_SIZES))
    )
    fill(model, torch.Generator().manual_seed(11))
    model.set_attn_implementation("eager" if attention == "bmm" else attention)
    if attention == "bmm":
        for layer in model.encoder.layers:
            layer.self_attn = BmmAttention(layer.self_attn)
    return model.eval()


@functools.cache
def exported(
    kind: str,
    attention: str = "sdpa",
    opset: int = 17,
    *,
    dynamic: bool = True,
    batch: int = 1,
    half: bool = False,
    hidden_states: bool = False,
    folded: bool = True,
) -> bytes:
    """Return an ONNX file as ``torch.onnx.export(dynamo=False)`` writes it, which is what optimum calls."""
    names = NAMES + [f"hidden_states.{i}" for i in range(LAYERS + 1)] * hidden_states
    axes = {0: "batch_size", 1: "num_channels", 2: "height", 3: "width"}
    module = _Outputs(tower(kind, attention), hidden_states)
    if half:
        import copy

        module = copy.deepcopy(module).half()
    file = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            module,
            (pixels(batch).to(torch.float16 if half else torch.float32),),
            file,
            dynamo=False,
            opset_version=opset,
            input_names=["pixel_values"],
            output_names=names,
            dynamic_axes={"pixel_values": axes} | {name: {0: "batch_size"} for name in names} if dynamic else None,
            do_constant_folding=folded,
        )
    onnx.checker.check_model(file.getvalue(), full_check=True)
    return file.getvalue()


@functools.cache
def exported_by_dynamo(kind: str, attention: str, opset: int = 18) -> bytes:
    """Return an ONNX file of the other exporter, which knows no Attention before opset 23."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            _Outputs(tower(kind, attention), False),
            (pixels(2),),
            dynamo=True,
            opset_version=opset,
            verbose=False,
            input_names=["pixel_values"],
            output_names=NAMES,
            dynamic_shapes=({0: "batch"},),
        )
    assert program is not None
    return program.model_proto.SerializeToString()


def saved(folder: Path, data: bytes) -> Path:
    """Write a file and return its path."""
    path = folder / "in.onnx"
    path.write_bytes(data)
    return path


def pixels(batch: int = 1) -> torch.Tensor:
    """Return pictures, [B,3,SIDE,SIDE]."""
    return torch.randn(batch, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(5))


def as_llava(kind: str, layer: int) -> Any:
    """Return what the reference takes for a LLaVA: the tower, and behind it only its last norm if that is asked for.

    Args:
        kind: Of the tower.
        layer: 0: what last_hidden_state holds; else the hidden state.
    """
    model = tower(kind)
    norm = kind == "siglip" and layer == 0
    return SimpleNamespace(
        model=SimpleNamespace(
            vision_tower=model, multi_modal_projector=model.post_layernorm if norm else torch.nn.Identity()
        ),
        config=SimpleNamespace(
            vision_config=model.config,
            vision_feature_layer=layer or -1,
            vision_feature_select_strategy="default" if kind == "clip" else "full",
            text_config=SimpleNamespace(hidden_size=WIDTH),
        ),
    )


def answers(data: bytes | onnx.ModelProto, pictures: torch.Tensor, dtype: Any = np.float32) -> dict[str, np.ndarray]:
    """Run a file in ONNX Runtime with its optimizer off."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level, options.intra_op_num_threads = 3, 1
    raw = data if isinstance(data, bytes) else data.SerializeToString()
    session = ort.InferenceSession(raw, options, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(None, {"pixel_values": pictures.numpy().astype(dtype)}), strict=True))
