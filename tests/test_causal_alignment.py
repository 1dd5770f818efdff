"""Why the decoder carries an explicit mask: what is_causal means where the query is shorter than the keys."""

import numpy as np
import onnx
import onnxruntime
import pytest

from lmmprune.compiler.build import compile_engine as tensorrt
from lmmprune.compiler.targets.targets import resolve
from lmmprune.errors import TargetError

JOINED = """
<ir_version: 10, opset_import: ["" : 23]>
g (float[1,1,S,4] q, float[1,1,T,4] k, float[1,1,T,4] v) => (float[1,1,S,4] y)
{ y = Attention <is_causal = 1> (q, k, v) }
"""
WITH_PAST = """
<ir_version: 10, opset_import: ["" : 23]>
g (float[1,1,S,4] q, float[1,1,S,4] k, float[1,1,S,4] v, float[1,1,P,4] pk, float[1,1,P,4] pv)
  => (float[1,1,S,4] y, float[1,1,T,4] nk, float[1,1,T,4] nv)
{ y, nk, nv = Attention <is_causal = 1> (q, k, v, , pk, pv) }
"""
PROMPT, STEP, PAST = 5, 2, 3


def run(text, **feeds):
    model = onnx.parser.parse_model(text)
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return session.run(["y"], feeds)[0]


def expected(q, k, v, seen):
    logits = np.where(seen, q[0, 0] @ k[0, 0].T / 2.0, -np.inf)
    weights = np.exp(logits - logits.max(-1, keepdims=True))
    return (weights / weights.sum(-1, keepdims=True)) @ v[0, 0]


@pytest.fixture
def values():
    return [np.random.default_rng(3).standard_normal((1, 1, PROMPT, 4)).astype(np.float32) for _ in range(3)]


def test_joined_keys_are_seen_from_the_upper_left(values):
    """So a step behind a cache would see the first keys only: wrong, and why the mask stays."""
    q, k, v = values
    out = run(JOINED, q=q[:, :, PAST:], k=k, v=v)[0, 0]
    row, column = np.arange(STEP)[:, None], np.arange(PROMPT)[None]
    np.testing.assert_allclose(out, expected(q[:, :, PAST:], k, v, column <= row), atol=1e-6)
    assert np.abs(out - expected(q[:, :, PAST:], k, v, column <= row + PAST)).max() > 0.1


def test_a_cache_that_the_operator_joins_is_seen_from_the_lower_right(values):
    q, k, v = values
    out = run(WITH_PAST, q=q[:, :, PAST:], k=k[:, :, PAST:], v=v[:, :, PAST:], pk=k[:, :, :PAST], pv=v[:, :, :PAST])
    row, column = np.arange(STEP)[:, None], np.arange(PROMPT)[None]
    np.testing.assert_allclose(out[0, 0], expected(q[:, :, PAST:], k, v, column <= row + PAST), atol=1e-6)


@pytest.mark.parametrize("text", [JOINED, WITH_PAST])
def test_a_prompt_is_the_same_either_way(values, text):
    q, k, v = values
    empty = np.zeros((1, 1, 0, 4), np.float32)
    more = {"pk": empty, "pv": empty} if text == WITH_PAST else {}
    row, column = np.arange(PROMPT)[:, None], np.arange(PROMPT)[None]
    np.testing.assert_allclose(run(text, q=q, k=k, v=v, **more)[0, 0], expected(q, k, v, column <= row), atol=1e-6)


ONE_OUTPUT = WITH_PAST.replace("y, nk, nv = ", "y = ").replace(", float[1,1,T,4] nk, float[1,1,T,4] nv", "")


@pytest.mark.parametrize(
    ("text", "reason"),
    [(WITH_PAST, "only supports Attention nodes with one output"), (ONE_OUTPUT, "past_key .*not supp")],
)
def test_rtx_reads_no_cache_in_the_operator(tmp_path, text, reason):
    pytest.importorskip("tensorrt_rtx")
    onnx.save(onnx.parser.parse_model(text.replace("float[", "float16[")), tmp_path / "a.onnx")
    with pytest.raises(TargetError, match=reason):
        tensorrt.build_engine(resolve("tensorrt-rtx"), tmp_path / "a.onnx", arch="sm89")
