"""Moving a graph to another opset: attributes dropped or refused, types, operators, both directions."""

from __future__ import annotations

import onnx
import onnx_ir as ir
import pytest

from lmmprune.errors import GraphRefusal
from lmmprune.passes.lower.convert_opset import ConvertOpset


def graph(body: str, opset: int = 23, kind: str = "float", inputs: str = "") -> ir.Model:
    text = f'<ir_version: 10, opset_import: ["" : {opset}]> g ({kind}[2,4] x{inputs}) => ({kind}[2,4] y) {body}'
    return ir.from_onnx_text(text)


QDQ = """
<float s = {0.5}, int8 z = {0}> {
    q = QuantizeLinear<block_size = 0, saturate = 1, output_dtype = 0, precision = 0>(x, s, z)
    y = DequantizeLinear<axis = 1, block_size = 0, output_dtype = 0>(q, s, z)
}
"""


def test_attributes_that_say_the_default_are_dropped() -> None:
    model = graph(QDQ)
    assert ConvertOpset(version=20)(model).modified
    assert not ConvertOpset(version=20)(model).modified
    proto = ir.serde.serialize_model(model)
    onnx.checker.check_model(proto, full_check=True)
    assert proto.opset_import[0].version == 20
    assert [sorted(attribute.name for attribute in node.attribute) for node in proto.graph.node] == [
        ["saturate"],
        ["axis"],
    ]


def test_up_and_down_again() -> None:
    model = graph("{ a = Cos(x) y = Reshape<allowzero = 0>(a, n) }", 20, inputs=", int64[2] n")
    for version in (24, 20):
        assert ConvertOpset(version=version)(model).modified
        onnx.checker.check_model(ir.serde.serialize_model(model), full_check=True)


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (QDQ.replace("block_size = 0, saturate", "block_size = 2, saturate"), "has block_size=2, which opset 20"),
        ("{ y = RMSNormalization(x, w) }", "opset 20 has no RMSNormalization: lower it first"),
        ("{ y = Attention(x, x, x) }", "opset 20 has no Attention"),
    ],
)
def test_what_the_older_opset_cannot_say_is_refused(body: str, reason: str) -> None:
    with pytest.raises(GraphRefusal, match=reason):
        ConvertOpset(version=20)(graph(body, inputs=", float[4] w"))


def test_types_that_the_older_operator_does_not_take_are_refused() -> None:
    with pytest.raises(GraphRefusal, match=r"\(Cos\) has 'x' of type bfloat16.*--dtype float16"):
        ConvertOpset(version=20)(graph("{ y = Cos(x) }", kind="bfloat16"))


def test_an_operator_that_changed_its_meaning_is_refused() -> None:
    body = "{ y = GroupNormalization<num_groups = 2>(x, w, w) }"
    with pytest.raises(GraphRefusal, match="means something else in opset 20: scale and bias count channels"):
        ConvertOpset(version=20)(graph(body, inputs=", float[4] w"))


def test_an_opset_of_the_future_is_refused() -> None:
    with pytest.raises(GraphRefusal, match="opset 99 is newer than onnx knows"):
        ConvertOpset(version=99)(graph("{ y = Cos(x) }"))
