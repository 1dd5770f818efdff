"""GPTQ: against the formula it stands for, better than plain rounding, layer by layer, and what is kept on disk."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from decoders import SmallDecoder, cache_names
from exports import exported_again
from hypothesis import given, settings
from hypothesis import strategies as st
from test_insert_int4 import DECODER, IDS, prompt, stored_weights
from test_int8_options import answer
from towers import session

from lmmprune.compiler.export.values import Int4
from lmmprune.compiler.quantize.factorize import DAMPING, factorize
from lmmprune.compiler.quantize.gptq import round_weight
from lmmprune.compiler.quantize.gram import Gram
from lmmprune.compiler.quantize.round_by_layer import factors_of, round_by_layer
from lmmprune.compiler.quantize.rounded import FOLDER, Rounded
from lmmprune.errors import InputError
from lmmprune.passes.int4.insert_int4 import InsertInt4, groupable
from lmmprune.passes.int4.int4 import dequantize_groups, quantize_groups

Cli = Callable[..., tuple[int, str, str]]


def drawn(inputs: int, outputs: int, seed: int, samples: int = 200) -> tuple[np.ndarray, np.ndarray]:
    """Return a weight, and activations whose channels depend on each other."""
    rng = np.random.default_rng(seed)
    mix = rng.standard_normal((inputs, inputs)) * 0.3 + np.eye(inputs)
    rows = (rng.standard_normal((samples, inputs)) @ mix).astype(np.float32)
    return rng.standard_normal((inputs, outputs)).astype(np.float32), rows


def by_formula(weight: np.ndarray, matrix: np.ndarray, group: int) -> np.ndarray:
    """Round the first input that is left, and let the others make up for it (eq. 2), with an inverse made each time."""
    left = weight.astype(np.float64)
    damped = matrix.astype(np.float64) + DAMPING * np.diagonal(matrix).mean() * np.eye(len(matrix))
    scale = np.zeros(weight.shape[1])
    found = np.zeros(weight.shape, np.int64)
    for row in range(len(left)):
        if row % group == 0:
            scale = np.maximum((np.abs(left[row : row + group]).max(axis=0) / 7).astype(np.float32), 1e-12)
        inverse = np.linalg.inv(damped[row:, row:])
        found[row] = np.clip(np.rint(left[row] / scale), -8, 7)
        error = (left[row] - found[row] * scale) / inverse[0, 0]
        left[row + 1 :] -= np.outer(inverse[0, 1:], error)
    return found


def known(*seen: np.ndarray) -> np.ndarray:
    """Return what is known of an activation after some arrays."""
    gram = Gram()
    for values in seen:
        gram.update(values)
    return gram.matrix()


@settings(max_examples=10, deadline=None)
@given(st.sampled_from([(40, 32), (64, 32), (150, 64), (300, 128)]), st.integers(0, 2**31))
def test_rounding_is_the_formula(size: tuple[int, int], seed: int) -> None:
    inputs, group = size
    weight, rows = drawn(inputs, 6, seed)
    exact = rows.T @ rows
    integers, scales = round_weight(weight, factorize(known(rows)), group=group)
    expected = by_formula(weight, exact, group)
    # float32 may round a tie the other way, which those behind it feel.
    assert np.mean(integers == expected) > 0.97
    plain = dequantize_groups(*quantize_groups(weight, group), group)
    lost = [np.linalg.norm(rows @ (found - weight)) for found in (dequantize_groups(integers, scales, group), plain)]
    assert lost[0] < 0.9 * lost[1]


@pytest.mark.parametrize("rows", [(7,), (300, 300), (1,) * 20 + (600,)])
def test_a_gram_is_the_sum_however_it_comes(rows: tuple[int, ...]) -> None:
    rng = np.random.default_rng(0)
    seen = [rng.standard_normal((1, count, 1100)).astype(np.float32) for count in rows]
    together = np.concatenate(seen, axis=1)[0].astype(np.float64)
    np.testing.assert_allclose(np.triu(known(*seen)), np.triu(together.T @ together), rtol=1e-4, atol=1e-2)


def test_of_nothing_nothing_is_known() -> None:
    with pytest.raises(ValueError, match="nothing was seen"):
        known()


@pytest.mark.parametrize("inputs", [5, 256, 300, 600])
def test_the_factor_is_that_of_the_inverse(inputs: int) -> None:
    _, rows = drawn(inputs, 1, 3, samples=inputs // 2)
    rows[:, 3] *= 100  # an outlier, as decoders have them
    gram = rows.T @ rows
    damped = gram.astype(np.float64) + DAMPING * np.diagonal(gram).mean() * np.eye(inputs)
    expected = np.linalg.cholesky(np.linalg.inv(damped)).T
    half = np.triu(gram) + np.tril(np.full_like(gram, np.nan), -1)  # what is below isn't read
    made = factorize(half)
    assert made is half
    found = np.triu(made).astype(np.float64)
    error = np.abs(found @ found.T - damped) / np.sqrt(np.outer(np.diagonal(damped), np.diagonal(damped)))
    assert error.max() < 1e-5
    np.testing.assert_allclose(np.linalg.inv(found), expected, rtol=1e-3, atol=1e-3 * np.abs(expected).max())


def test_many_channels_are_rounded_as_few() -> None:
    weight, rows = drawn(64, 4096 + 9, 1)
    factor = factorize(known(rows))
    integers, scales = round_weight(weight, factor, group=32)
    last = round_weight(weight[:, 4090:], factor, group=32)
    # Products of other sizes may add up in another order.
    assert np.mean(integers[:, 4090:] == last[0]) > 0.99
    np.testing.assert_allclose(scales[:, 4090:], last[1], rtol=1e-4)


def test_a_channel_that_is_always_zero() -> None:
    weight, rows = drawn(32, 4, 0)
    rows[:, 5] = 0
    integers, scales = round_weight(weight, factorize(known(rows)), group=32, dtype="float16")
    assert np.isfinite(scales).all()
    assert np.abs(integers).max() <= 8
    assert np.array_equal(scales, scales.astype(np.float16))


def test_each_weight_gets_what_is_known_of_what_it_reads() -> None:
    seen = {name: drawn(40, 1, seed)[1] for seed, name in enumerate("xyz")}
    grams = {name: Gram() for name in seen}
    for name, rows in seen.items():
        grams[name].update(rows)
    reads = {"q": "x", "both": "xy", "k": "x", "twice": "yy", "o": "z"}
    node = {name: ir.node("MatMul", [ir.Value(name=name), None]) for name in seen}
    found = {}
    for weights, factor in factors_of({name: [node[one] for one in read] for name, read in reads.items()}, grams):
        found |= {name: np.triu(factor) for name in weights}
    assert not grams
    assert found.keys() == reads.keys()
    for name, read in reads.items():
        np.testing.assert_allclose(
            found[name], np.triu(factorize(known(*(seen[one] for one in read)))), rtol=1e-4, atol=1e-3
        )


@pytest.mark.parametrize("shape", [(48, 5), (3, 3)])
def test_what_is_kept_is_read_back(shape: tuple[int, int], tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    integers = rng.integers(-8, 8, shape).astype(np.int8)
    scales = rng.random((2, shape[1])).astype(np.float32)
    # As GPTQ and plain rounding give them: row by row, and turned.
    for number, form in enumerate((integers, np.ascontiguousarray(integers.T).T)):
        kept = Rounded.keep(tmp_path / str(number), form, scales)
        assert np.array_equal(kept.integers(), integers)
        assert np.array_equal(kept.scales(), scales)
    assert (tmp_path / "0.integers.npy").stat().st_size == 128 + -(-integers.size // 2)


def lazy_decoder(decoder: SmallDecoder) -> ir.Model:
    """Return a decoder whose weights are read when they are needed."""
    model = decoder.graph()
    for name in (*decoder.weights(),):
        value = model.graph.initializers[name]
        if len(value.shape) == 2 and name != "embed":
            array = value.const_value.numpy()
            value.const_value = ir.LazyTensor(
                lambda array=array: ir.Tensor(array), dtype=ir.DataType.FLOAT, shape=value.shape, name=name
            )
    return model


def test_layer_by_layer(tmp_path: Path) -> None:
    past, present = cache_names(DECODER.layers)
    cache = {
        name: out for names, outs in zip(past, present, strict=True) for name, out in zip(names, outs, strict=True)
    }
    rng = np.random.default_rng(1)
    samples, asked = [], []
    for _ in range(24):
        step = {name: array for name, array in prompt().items() if name not in cache}
        step["image_features"] = rng.standard_normal(step["image_features"].shape).astype(np.float32)
        step["input_ids"] = np.array([[*IDS[:2], *IDS[2:6], *rng.integers(4, 24, 2)]], np.int64)
        further = {**step, "input_ids": np.array([[7]]), "position_ids": np.array([[len(IDS)]])}
        asked.append({**prompt(), **step})
        samples.append([step, further])
    model = lazy_decoder(DECODER)
    seen: list[tuple[int, int]] = []
    kept = round_by_layer(
        model,
        samples,
        tmp_path,
        group=32,
        dtype="float32",
        keep_float=frozenset({"lm_head"}),
        cache=cache,
        empty=(1, 1, 0, 16),
        done=lambda finished, of: seen.append((finished, of)),
    )
    assert seen[-1][0] == seen[-1][1] == len(seen) - 1
    assert kept.keys() == {str(node.inputs[1].name) for node in groupable(model)} - {"head"}
    exact = said(DECODER.graph(), asked)
    lost = {}
    for name, rounded in (("gptq", kept), ("rtn", {})):
        made = DECODER.graph()
        InsertInt4(group=32, rounded=rounded, keep_float=frozenset({"lm_head"}))(made)
        lost[name] = float(np.linalg.norm(said(made, asked) - exact))
        for weight, array in stored_weights(made).items():
            if rounded:
                assert np.array_equal(array, dequantize_groups(kept[weight].integers(), kept[weight].scales(), 32))
    assert lost["gptq"] < 0.9 * lost["rtn"]


def said(model: ir.Model, asked: list[dict[str, np.ndarray]]) -> np.ndarray:
    loaded = session(model)
    return np.stack([loaded(feeds)["logits"] for feeds in asked])


def test_an_export() -> None:
    path, report = exported_again(ratio=0.5, calibration_samples=4, int4=Int4(method="gptq"))
    precision = report.manifest.precision
    assert (precision.int4.group, precision.int4.method) == (128, "gptq")
    assert precision.calibration["samples"] == 4
    assert precision.calibration["decoder"] == {"float": [], "rounded": "gptq"}
    assert not (path / FOLDER).exists()
    assert {file.name for file in path.iterdir()} == {*report.manifest.files, "manifest.json"}
    assert answer(path)


def test_refusals(tmp_path: Path, cli: Cli) -> None:
    tiny = ("export", "--model", "tiny-llava", "-o", tmp_path / "o")
    for options, message in (
        (("--int4", "--int4-method", "gptd"), "--int4-method gptd: expected rtn or gptq; did you mean 'gptq'?"),
        (("--int4-method", "gptq"), "--int4-method is for four-bit weights: add --int4"),
        (("--int4", "--int4-method", "gptq", "--calib", "nothing"), "--calib 'nothing' doesn't exist"),
    ):
        code, _, err = cli(*tiny, *options)
        assert code == 2
        assert message in err
    with pytest.raises(InputError, match="expected rtn or gptq"):
        exported_again(int4=Int4(method="awq"))
