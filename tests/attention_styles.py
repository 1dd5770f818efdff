"""CLIP's tower as other packages write the same computation: one product for q, k and v, tokens first, Einsum."""

from __future__ import annotations

import copy
import functools
import io
import warnings
from collections.abc import Callable
from typing import Any

import foreign_towers as ft
import onnx
import torch
from torch.nn import functional

Tensor = torch.Tensor


class Attention(torch.nn.Module):
    """An attention of another style with the weights of transformers' one."""

    def __init__(self, old: Any) -> None:
        super().__init__()
        self.heads, self.width, self.out = old.num_heads, old.head_dim, old.out_proj
        parts = (old.q_proj, old.k_proj, old.v_proj)
        channels = old.out_proj.weight.shape[0]
        self.qkv = torch.nn.Linear(channels, 3 * channels)
        with torch.no_grad():
            self.qkv.weight.copy_(torch.cat([part.weight for part in parts]))
            self.qkv.bias.copy_(torch.cat([part.bias for part in parts]))

    def forward(self, hidden_states: Tensor, **_: Any) -> tuple[Tensor, None]:
        return self.mix(hidden_states), None

    def mix(self, x: Tensor) -> Tensor:
        raise NotImplementedError


class Unbound(Attention):
    """timm's: [B,T,3,H,D], the three first, ``scaled_dot_product_attention``."""

    def mix(self, x: Tensor) -> Tensor:
        batch, tokens, _ = x.shape
        qkv = self.qkv(x).reshape(batch, tokens, 3, self.heads, self.width).permute(2, 0, 3, 1, 4)
        q, k, v = qkv.unbind(0)
        return self.out(functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(x.shape))


class Indexed(Attention):
    """The same with indices, and the scale on q before an explicit softmax, as DINOv2 has it."""

    def mix(self, x: Tensor) -> Tensor:
        batch, tokens, _ = x.shape
        qkv = self.qkv(x).reshape(batch, tokens, 3, self.heads, self.width).permute(2, 0, 3, 1, 4)
        q, k, v = qkv[0] * self.width**-0.5, qkv[1], qkv[2]
        return self.out(((q @ k.transpose(-2, -1)).softmax(-1) @ v).transpose(1, 2).reshape(x.shape))


class Chunked(Attention):
    """A bias put together of three, ``chunk``, and the logits divided."""

    def __init__(self, old: Any) -> None:
        super().__init__(old)
        self.biases = torch.nn.ParameterList([part.bias for part in (old.q_proj, old.k_proj, old.v_proj)])

    def mix(self, x: Tensor) -> Tensor:
        batch, tokens, _ = x.shape
        parts = functional.linear(x, self.qkv.weight, torch.cat(list(self.biases))).chunk(3, dim=-1)
        q, k, v = (part.view(batch, tokens, self.heads, self.width).transpose(1, 2) for part in parts)
        weights = ((q @ k.transpose(-2, -1)) / self.width**0.5).softmax(-1)
        return self.out((weights @ v).permute(0, 2, 1, 3).flatten(2))


class Interleaved(Attention):
    """Each head's q, k and v side by side, [B,T,H,3,D], half of the scale on either side."""

    def __init__(self, old: Any) -> None:
        super().__init__(old)
        order = torch.arange(len(self.qkv.bias)).view(3, self.heads, self.width).transpose(0, 1).flatten()
        self.qkv.weight.data, self.qkv.bias.data = self.qkv.weight[order], self.qkv.bias[order]

    def mix(self, x: Tensor) -> Tensor:
        batch, tokens, _ = x.shape
        qkv = self.qkv(x).view(batch, tokens, self.heads, 3, self.width).transpose(1, 2)
        q, k, v = (qkv[:, :, :, part] for part in range(3))
        weights = ((q * self.width**-0.25) @ (k * self.width**-0.25).transpose(-2, -1)).softmax(-1)
        return self.out((weights @ v).transpose(1, 2).reshape(x.shape))


class Einsum(Attention):
    """Products and sums by their letters, the projections too."""

    def mix(self, x: Tensor) -> Tensor:
        weight = self.qkv.weight.view(3, self.heads, self.width, -1)
        bias = self.qkv.bias.view(3, 1, self.heads, 1, self.width)
        q, k, v = torch.einsum("bic,shdc->sbhid", x, weight) + bias
        weights = (torch.einsum("bhid,bhjd->bhij", q, k) * self.width**-0.5).softmax(-1)
        mixed = torch.einsum("bhij,bhjd->bihd", weights, v)
        out = self.out.weight.view(-1, self.heads, self.width)
        return torch.einsum("bihd,chd->bic", mixed, out) + self.out.bias


class Multihead(Attention):
    """``torch.nn.MultiheadAttention`` with pictures first."""

    batch_first, need_weights = True, False

    def __init__(self, old: Any) -> None:
        super().__init__(old)
        self.inner = torch.nn.MultiheadAttention(len(self.out.bias), self.heads, batch_first=self.batch_first)
        with torch.no_grad():
            self.inner.in_proj_weight.copy_(self.qkv.weight)
            self.inner.in_proj_bias.copy_(self.qkv.bias)
            self.inner.out_proj.load_state_dict(self.out.state_dict())

    def mix(self, x: Tensor) -> Tensor:
        return self.inner(x, x, x, need_weights=self.need_weights)[0]


class Weighted(Multihead):
    """The same asked for its weights, which nobody takes: another path of PyTorch's."""

    need_weights = True


class Separate(Multihead):
    """The same with keys that PyTorch doesn't know to be the queries: the weight is cut inside of the graph."""

    def mix(self, x: Tensor) -> Tensor:
        return self.inner(x, x + 0, x * 1, need_weights=False)[0]


class TokensFirst(Multihead):
    """OpenAI's CLIP: [T,B,C] from the norm before the first layer to behind the last."""

    batch_first = False


class TokensFirstWeighted(Weighted):
    """The same by the other path."""

    batch_first = False


STYLES = (
    *(Unbound, Indexed, Chunked, Interleaved, Einsum, Multihead, Weighted, Separate),
    *(TokensFirst, TokensFirstWeighted),
)


class Tower(torch.nn.Module):
    """CLIP's or SigLIP's tower around attentions of a style."""

    def __init__(self, model: Any, style: Callable[[Any], Attention]) -> None:
        super().__init__()
        self.model = copy.deepcopy(model)
        for layer in self.model.encoder.layers:
            layer.self_attn = style(layer.self_attn)
        self.tokens_first = not getattr(style, "batch_first", True)

    def forward(self, pixel_values: Tensor) -> tuple[Tensor, Tensor]:
        model = self.model
        x = model.pre_layrnorm(model.embeddings(pixel_values))
        x = x.permute(1, 0, 2) if self.tokens_first else x
        for layer in model.encoder.layers:
            x = x + layer.self_attn.mix(layer.layer_norm1(x))
            x = x + layer.mlp(layer.layer_norm2(x))
        x = x.permute(1, 0, 2) if self.tokens_first else x
        return x, model.post_layernorm(x[:, 0, :])


@functools.cache
def exported(style: type[Attention], opset: int, *, dynamo: bool = False, batch: int | None = None) -> bytes:
    """Return ``ft.tower('clip')`` in a style as an ONNX file.

    Args:
        style: Of its attentions.
        opset: Of the file.
        dynamo: Which of PyTorch's exporters writes it.
        batch: Pictures; None: any number.
    """
    # PyTorch's fast path, which it takes where no gradient is wanted, has no ONNX form.
    module = Tower(ft.tower("clip"), style).eval().requires_grad_(True)
    file = io.BytesIO()
    settings: dict[str, Any] = {"opset_version": opset, "input_names": ["pixel_values"], "output_names": ft.NAMES}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if dynamo:
            shapes = None if batch else ({0: "batch"},)
            program = torch.onnx.export(
                module, (ft.pixels(batch or 2),), dynamo=True, verbose=False, dynamic_shapes=shapes, **settings
            )
            assert program is not None
            return program.model_proto.SerializeToString()
        axes = None if batch else {name: {0: "batch"} for name in ("pixel_values", *ft.NAMES)}
        torch.onnx.export(module, (ft.pixels(batch or 1),), file, dynamo=False, dynamic_axes=axes, **settings)
    onnx.checker.check_model(file.getvalue(), full_check=True)
    return file.getvalue()
