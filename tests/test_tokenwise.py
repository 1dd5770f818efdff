"""The walk from the features back to what enters the projector: over anything that treats a token by itself."""

from __future__ import annotations

import onnx_ir as ir
import pytest
import torch

from lmmprune.models.canonicalize import canonicalize
from lmmprune.passes.find.tokenwise import begin_of_tokenwise
from lmmprune.passes.graph.refusals import Refused

# An approximation whose derivative needs memory of its own; it has no module that takes no settings.
_OTHERS = {"xielu"}


class _Projector(torch.nn.Module):
    def __init__(self, names: list[str]) -> None:
        super().__init__()
        from transformers.activations import ACT2FN

        self.first = torch.nn.Linear(8, 8)
        self.acts = torch.nn.ModuleList([ACT2FN[name] for name in names])
        self.others = torch.nn.ModuleList([torch.nn.Linear(8, 8) for _ in names])

    def forward(self, tower: torch.Tensor) -> torch.Tensor:
        x = self.first(tower[:, 1:])
        for act, linear in zip(self.acts, self.others, strict=True):
            x = linear(act(x))
        return x


def _canonical(module: torch.nn.Module) -> ir.Model:
    program = torch.onnx.export(
        module.eval(), (torch.zeros(1, 5, 8),), dynamo=True, opset_version=23, optimize=False, verbose=False
    )
    assert program is not None
    return canonicalize(program.model)


def test_every_activation_of_transformers_is_walked_over() -> None:
    from transformers.activations import ACT2FN

    names = sorted(set(ACT2FN) - _OTHERS)
    assert {"relu", "relu2", "relu6", "leaky_relu", "mish", "laplace", "gelu_new", "quick_gelu", "prelu"} <= set(names)
    model = _canonical(_Projector(names))
    begin = begin_of_tokenwise(model.graph.outputs[0])
    node = begin.producer()
    assert node is not None
    assert node.op_type == "Slice", "CLS is dropped there"


class _Mixing(torch.nn.Module):
    def __init__(self, axis: int) -> None:
        super().__init__()
        self.axis = axis

    def forward(self, tower: torch.Tensor) -> torch.Tensor:
        return torch.softmax(tower[:, 1:], dim=self.axis) * 2


def test_a_softmax_is_tokenwise_along_the_channels_only() -> None:
    assert begin_of_tokenwise(_canonical(_Mixing(-1)).graph.outputs[0]).producer() is not None
    with pytest.raises(Refused, match=r"Softmax\) lies between the tower and 'image_features'"):
        begin_of_tokenwise(_canonical(_Mixing(1)).graph.outputs[0])
