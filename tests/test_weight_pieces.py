"""A checkpoint's weights copied piece by piece: every byte, every turn, every NaN."""

from __future__ import annotations

from pathlib import Path

import ml_dtypes
import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import save_file

from lmmprune.compiler.onnx_files import weight_pieces
from lmmprune.compiler.onnx_files.stream_weights import layout, stream_weights
from lmmprune.errors import ModelError
from lmmprune.lazy import count_non_finite, lazy
from lmmprune.models.checkpoint_reader import CheckpointReader
from lmmprune.models.shards import entries
from lmmprune.stored import Array, Stored

TYPES = {
    ir.DataType.FLOAT16: np.float16,
    ir.DataType.BFLOAT16: ml_dtypes.bfloat16,
    ir.DataType.FLOAT: np.float32,
}


def written(tmp_path: Path, array: Array, dtype: ir.DataType, *, turned: bool) -> tuple[Stored, ir.Value]:
    """Put a tensor behind some others into a file, and return where it lies and a weight of a graph that is it."""
    raw = array.view(np.uint8)
    file = tmp_path / "model.safetensors"
    content = {"before": np.zeros(3, np.uint8), "w": raw, "z": np.ones(5, np.uint8)}
    save_file(content, file)
    offset = file.read_bytes().index(raw.tobytes(), 8)
    stored = Stored(file=file, name="w", offset=offset, dtype=dtype, shape=array.shape, perm=(1, 0) if turned else None)
    shape = array.shape[::-1] if turned else array.shape

    def never() -> Array:
        raise AssertionError("a weight that a file holds is copied from there")

    tensor = lazy(never, dtype=dtype, shape=shape, name="w", stored=stored)
    return stored, ir.Value(name="w", shape=ir.Shape(shape), type=ir.TensorType(dtype), const_value=tensor)


@settings(max_examples=40, deadline=None)
@given(
    rows=st.integers(1, 300),
    columns=st.integers(1, 300),
    piece=st.sampled_from([512, 4096, 10**6]),
    dtype=st.sampled_from(list(TYPES)),
    turned=st.booleans(),
    broken=st.integers(0, 3),
)
def test_pieces_are_the_weight(
    rows: int,
    columns: int,
    piece: int,
    dtype: ir.DataType,
    turned: bool,
    broken: int,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    generator = np.random.default_rng(rows * 1000 + columns)
    array = generator.standard_normal((rows, columns)).astype(TYPES[dtype])
    broken = min(broken, array.size)
    array.reshape(-1)[generator.choice(array.size, broken, replace=False)] = np.float32(np.inf)
    _, value = written(tmp_path_factory.mktemp("pieces"), array, dtype, turned=turned)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(weight_pieces, "PIECE", piece)
        found, last = b"", []
        for part in weight_pieces.pieces_ahead([value, value]):
            found += part.data.tobytes()
            last += [(part.weight, part.broken)] if part.last else []
    expected = (array.T if turned else array).tobytes()
    assert found == expected + expected
    assert last == [(0, broken), (1, broken)]


@pytest.mark.parametrize("dtype", list(TYPES))
def test_non_finite_values_are_counted_in_every_block(dtype: ir.DataType) -> None:
    array = np.random.default_rng(0).standard_normal(300_001).astype(TYPES[dtype])
    assert count_non_finite(array) == 0
    array[[0, 131_072, 300_000]] = [np.nan, np.inf, -np.inf]
    assert count_non_finite(array) == 3
    assert count_non_finite(array.reshape(1, -1).T) == 3
    assert count_non_finite(array[:0]) == 0


@pytest.mark.parametrize("turned", [False, True])
def test_a_weight_used_twice_is_blamed_once(turned: bool, tmp_path: Path) -> None:
    array = np.ones((64, 64), np.float16)
    array[3, 5:9] = np.nan
    _, value = written(tmp_path, array, ir.DataType.FLOAT16, turned=turned)
    tied = ir.Value(name="tied", shape=value.shape, type=value.type, const_value=value.const_value)
    graph = ir.Graph([], [], nodes=[], initializers=[value, tied], opset_imports={"": 23})
    checkpoint = CheckpointReader(tmp_path)
    stream_weights(layout(ir.Model(graph, ir_version=11)), tmp_path / "w.data", note=checkpoint.note)
    with pytest.raises(ModelError, match=r"NaN or infinity: 4 values in 'w' \(4\);"):
        checkpoint.refuse_damage()


@pytest.mark.parametrize("turned", [False, True])
def test_a_file_cut_off_meanwhile_is_named(turned: bool, tmp_path: Path) -> None:
    stored, value = written(tmp_path, np.ones((64, 64), np.float16), ir.DataType.FLOAT16, turned=turned)
    with stored.file.open("r+b") as stream:
        stream.truncate(stored.offset + 1000)
    with pytest.raises(ModelError, match=r"model.safetensors' became shorter while it was read: 'w' is cut off"):
        list(weight_pieces.pieces_ahead([value]))
    stored.file.unlink()
    with pytest.raises(ModelError, match=r"can't be read.*No such file"):
        list(weight_pieces.pieces_ahead([value]))


def test_a_checkpoint_says_where_its_tensors_lie(tmp_path: Path) -> None:
    array = np.arange(6, dtype=np.float32).reshape(2, 3)
    save_file({"a": array[0].copy(), "b": array}, tmp_path / "model.safetensors")
    stored = entries(tmp_path)["b"]
    assert (stored.name, stored.dtype, stored.shape, stored.bytes) == ("b", ir.DataType.FLOAT, (2, 3), 24)
    assert np.array_equal(stored.read(), array)
