"""Checkpoints in integers: unpacked by others, stored bit for bit in each form, computed with, shown, and refused."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
import torch
from checkpoints import Tensors, copy_tiny
from exports import exported_again
from packed_checkpoints import Kind, Whole, dequantized, quantized
from safetensors.torch import load_file, save_file
from test_int8_options import answer

from lmmprune.compiler.backends.cpu_session import cpu_session, run_all
from lmmprune.compiler.bundle.bundle import Bundle
from lmmprune.compiler.explain.layers import read_layers
from lmmprune.compiler.export.preflight import weight_bits
from lmmprune.compiler.verify.verify import verify
from lmmprune.errors import LmmpruneError
from lmmprune.models.source import resolve

Cli = Callable[..., tuple[int, str, str]]
PRODUCTS = 28

NBITS = {
    "awq": Kind(form="awq"),
    "awq, one of three groups is odd": Kind(form="awq", group=128),
    "awq, one group": Kind(form="awq", group=None),
    "gptq": Kind(form="gptq", group=32),
    "gptq, act-order": Kind(form="gptq", shuffled=True),
    "gptq, act-order of eight bits": Kind(form="gptq_v2", bits=8, group=128, shuffled=True),
    "gptq, symmetric": Kind(form="gptq", symmetric=True),
    "packed": Kind(form="packed", scales=torch.bfloat16),
    "packed, symmetric, act-order": Kind(form="packed", symmetric=True, shuffled=True),
    "packed, eight bits": Kind(form="packed", bits=8, group=None, symmetric=True),
    "plain": Kind(form="plain", bits=8, group=None, symmetric=True),
    "plain, zero points": Kind(form="plain", bits=8, group=None),
}


def export(kind: Kind, folder: Path, **options: Any) -> tuple[Path, dict[str, Whole], Path]:
    """Return a bundle, what its weights are, and the checkpoint."""
    model, known = quantized(folder / "model", kind)
    bundle, _ = exported_again(model=str(model), ratio=0.5, **options)
    return bundle, known, model


def stored(node: ir.Node, group: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Read integers ``[K,N]``, scales and zero points ``[G,N]`` of a product, one field at a time."""
    bits, inputs = node.attributes["bits"].value, node.attributes["K"].value
    values = [None if value is None else value.const_value.numpy() for value in node.inputs[1:]]
    data, scales, *zeros = values
    middle = np.full(scales.shape, 2 ** (bits - 1))
    if bits == 8:
        return data.reshape(len(data), -1)[:, :inputs].T, scales.T, (zeros[0] if zeros else middle).T
    halves = np.stack([data & 15, data >> 4], axis=-1).reshape(len(data), -1)[:, :inputs]
    if zeros:
        middle = np.stack([zeros[0] & 15, zeros[0] >> 4], axis=-1).reshape(len(data), -1)[:, : scales.shape[1]]
    return halves.T, scales.T, middle.T


def name_of(node: ir.Node, known: dict[str, Whole]) -> str | None:
    weight = str(node.inputs[1].name).partition(".T")[0]
    found = [name for name in known if weight.endswith(name.split("model.")[-1])]
    return found[0] if found else None


@pytest.mark.parametrize("label", NBITS)
def test_every_number_is_the_checkpoints(label: str, tmp_path: Path) -> None:
    kind = NBITS[label]
    bundle, known, _ = export(kind, tmp_path, target="ort-cuda", dtype="float32")
    model = ir.load(bundle / "decoder.onnx")
    products = [node for node in model.graph if node.op_type == "MatMulNBits"]
    assert len(products) == len(known) == PRODUCTS
    for node in products:
        one = known[name_of(node, known)]
        block = node.attributes["block_size"].value
        integers, scales, zeros = stored(node, block)
        order = np.argsort(one.owners, kind="stable")
        assert np.array_equal(integers, one.integers[order])
        owners = np.arange(len(integers)) // block
        for mine, theirs in ((scales, one.scales.float().numpy()), (zeros, one.zeros)):
            assert np.array_equal(mine[owners], theirs[one.owners[order]])
        gathered = node.inputs[0].producer()
        assert gathered.name.endswith("/ordered") == (not np.array_equal(one.owners, np.sort(one.owners)))
        if gathered.name.endswith("/ordered"):
            assert np.array_equal(gathered.inputs[1].const_value.numpy(), order)
        assert (len(node.inputs) == 4) == (not kind.symmetric)
    # What reads the same activation in the same order shares a Gather: q, k and v; gate and up.
    orders = [node for node in model.graph if node.name.endswith("/ordered")]
    assert len(orders) == (0 if not kind.shuffled else 4 * (1 if kind.group == 128 else 4))


def logits(bundle: Path, given: dict[str, np.ndarray]) -> np.ndarray:
    return run_all(cpu_session(bundle / "decoder.onnx"), given)["logits"]


@pytest.mark.parametrize("label", ["gptq, act-order", "plain, zero points"])
def test_the_graph_computes_with_what_the_integers_are_worth(label: str, tmp_path: Path) -> None:
    """The oracle: the same graph in floating point, from a checkpoint that holds what they are worth."""
    bundle, known, _ = export(NBITS[label], tmp_path, target="ort-cuda", dtype="float32")
    other = dequantized(tmp_path / "float", known)
    plain, _ = exported_again(model=str(other), ratio=0.5, target="ort-cuda", dtype="float32")
    manifest = Bundle.open(bundle).manifest
    count, cache = manifest.image_tokens, manifest.cache
    ids = [1, *[manifest.prompt.image_token_id] * count, 5, 9, 2]
    features = np.random.default_rng(0).standard_normal((1, count, 128)).astype(np.float32)
    empty = np.zeros((1, cache.kv_heads, 0, cache.head_dim), np.float32)
    given = {"input_ids": np.array([ids]), "position_ids": np.arange(len(ids))[None], "image_features": features}
    given |= {name: empty for pair in cache.past for name in pair}
    found, expected = (logits(path, given) for path in (bundle, plain))
    assert np.abs(found - expected).max() < 1e-5 * np.abs(expected).max()
    float_model, _ = exported_again(ratio=0.5, target="ort-cuda", dtype="float32")
    lost = np.abs(logits(float_model, given) - expected).max()
    assert lost > 1e-3 * np.abs(expected).max(), "the integers must be seen"


def test_on_the_processor_it_answers_and_is_verified(tmp_path: Path, cli: Cli) -> None:
    bundle, _, model = export(NBITS["awq"], tmp_path)
    assert answer(bundle)
    checks = verify(bundle, samples=2, model=str(model))
    assert [check.name for check in checks if not check.passed] == []
    precision = Bundle.open(bundle).manifest.precision
    assert precision.integers == "int4 g64 by awq"
    assert precision.smaller is None
    code, out, _ = cli("inspect", bundle, "--json")
    vision, decoder = json.loads(out)["graphs"]
    assert (vision["int8"]["scheme"], decoder["int8"]["scheme"]) == (None, "s4-weights")
    assert (decoder["int4_matmuls"], decoder["float_matmuls"], decoder["int8"]["findings"]) == (PRODUCTS, 1, [])
    code, out, _ = cli("flops", bundle)
    assert (code, out.count("equal")) == (0, 2)
    code, out, _ = cli("card", bundle)
    assert (code, "INT4 (groups of 64, the decoder's weights, as awq made them) and float32" in out) == (0, True)
    products = [one for one in read_layers(bundle / "decoder.onnx") if one.op == "MatMulNBits"]
    assert len(products) == PRODUCTS
    assert all(one.quantized and str(one.weight).endswith("proj.weight.T") for one in products)
    assert {one.role for one in products} == {"qkv", "out", "up", "down"}


def test_eight_bits_are_known_too(tmp_path: Path, cli: Cli) -> None:
    bundle, _, model = export(NBITS["plain"], tmp_path)
    assert [check.name for check in verify(bundle, samples=1, model=str(model)) if not check.passed] == []
    _, out, _ = cli("inspect", bundle, "--json")
    decoder = json.loads(out)["graphs"][1]
    assert (decoder["int8_matmuls"], decoder["int8"]["scheme"], decoder["int8"]["findings"]) == (
        PRODUCTS,
        "s8-weights",
        [],
    )
    said = resolve(str(model)).remarks
    assert said == (
        "config.json asks for activations of 8 bits beside the weights' integers: these alone are carried over,"
        " activations are the target's",
    )


def test_tensorrt_gets_symmetric_groups(tmp_path: Path) -> None:
    bundle, known, model = export(Kind(form="gptq", symmetric=True, group=None), tmp_path, target="tensorrt-10.3")
    graph = ir.load(bundle / "decoder.onnx").graph
    nodes = [node for node in graph if node.op_type == "DequantizeLinear"]
    assert len(nodes) == PRODUCTS
    for node in nodes:
        values, scale = node.inputs
        assert (values.dtype, scale.dtype) == (ir.DataType.INT4, ir.DataType.FLOAT16)
        assert node.attributes["block_size"].value == 128
    by_weight = {name: node for node in nodes if (name := _named(node, known))}
    for name, one in known.items():
        values, scale = (value.const_value.numpy() for value in by_weight[name].inputs)
        assert np.array_equal(values.astype(np.int64), one.integers - 8)
        assert np.array_equal(scale, np.repeat(one.scales.numpy(), len(scale), axis=0))
    assert [check.name for check in verify(bundle, samples=1, model=str(model)) if not check.passed] == []


def _named(node: ir.Node, known: dict[str, Whole]) -> str | None:
    return next((name for name in known if name.split("model.")[-1] in str(node.inputs[0].name)), None)


def test_tensorrt_gets_eight_bits_by_output(tmp_path: Path) -> None:
    bundle, known, _ = export(NBITS["plain"], tmp_path, target="tensorrt-rtx")
    nodes = [node for node in ir.load(bundle / "decoder.onnx").graph if node.op_type == "DequantizeLinear"]
    assert len(nodes) == PRODUCTS
    for node in nodes:
        one = known[_named(node, known) or ""]
        values, scale, zero = (value.const_value.numpy() for value in node.inputs)
        assert node.attributes["axis"].value == 1
        assert np.array_equal(values.astype(np.int64), one.integers - 128)
        assert np.array_equal(scale, one.scales.numpy()[0])
        assert (values.dtype, scale.dtype, zero.any()) == (np.int8, np.float16, False)


def test_what_it_takes_is_reckoned(tmp_path: Path) -> None:
    model, _ = quantized(tmp_path / "model", Kind(form="awq"))
    source = resolve(str(model))
    name = next(iter(source.packed))

    class Decided:
        dtype = "float16"
        int8 = int4 = None

    Decided.source = source  # type: ignore[attr-defined]  # a stand-in
    assert weight_bits(Decided, name) == 4 + (16 + 4) / 64  # type: ignore[arg-type]  # same
    assert weight_bits(Decided, "language_model.lm_head.weight") == 16  # type: ignore[arg-type]  # same


OTHER = Kind(form="gptq")


def _without(part: str) -> Callable[[Tensors], Tensors]:
    return lambda tensors: {name: tensor for name, tensor in tensors.items() if not name.endswith(part)}


def _short(tensors: Tensors) -> Tensors:
    name = next(name for name in tensors if name.endswith("scales"))
    return tensors | {name: tensors[name][:-1].contiguous()}


def _uneven(tensors: Tensors) -> Tensors:
    name = next(name for name in tensors if name.endswith("g_idx"))
    return tensors | {name: torch.zeros_like(tensors[name])}


def _broken(tensors: Tensors) -> Tensors:
    name = next(name for name in tensors if name.endswith("scales"))
    return tensors | {name: torch.full_like(tensors[name], torch.nan)}


@pytest.mark.parametrize(
    ("kind", "changes", "tensors", "options", "message"),
    [
        (
            OTHER,
            {},
            None,
            ("--int4",),
            r"quantized already \(GPTQ, 4 bits, groups of 64\), and its .* leave out --int4",
        ),
        (OTHER, {}, None, ("--int8",), "leave out --int8, or give the floating-point checkpoint"),
        (OTHER, {}, None, ("--share-weights",), "leave out --share-weights"),
        (OTHER, {}, None, ("--target", "tensorrt-10.3"), "has zero points .* takes symmetric integers only"),
        (OTHER, {}, None, ("--target", "tensorrt-rtx", "--dtype", "bfloat16"), "scales of FLOAT16 that bfloat16 can't"),
        (
            Kind(form="gptq", bits=8, symmetric=True),
            {},
            None,
            ("--target", "tensorrt-10.3"),
            "8 bits in groups of 64, target 'tensorrt-10.3' takes one scale",
        ),
        (
            Kind(form="gptq", group=32, symmetric=True),
            {},
            None,
            ("--target", "tensorrt-10.3"),
            r"groups of 32 inputs aren't whole numbers of those .* takes \(64, 128, which divide",
        ),
        (Kind(form="gptq", group=16), {}, None, (), r"groups of 16 inputs aren't whole numbers of those .* \(32, 64"),
        (OTHER, {"bits": 3}, None, (), "by GPTQ, with bits 3: expected 4 or 8; what is read is AWQ"),
        (OTHER, {"checkpoint_format": "marlin"}, None, (), "with checkpoint_format 'marlin'"),
        (OTHER, {"dynamic": {"x": {"bits": 8}}}, None, (), "by GPTQ, with dynamic"),
        (OTHER, {"group_size": "x"}, None, (), "with group_size 'x': expected -1 or a number"),
        (OTHER, {"group_size": 128}, None, (), r"is INT32 \[6, 16\]: expected shape \[3, 16\], .* whole, and"),
        (Kind(form="awq"), {"version": "gemv"}, None, (), "by AWQ, with version 'gemv': expected 'gemm'"),
        (Kind(form="awq"), {}, _without("qzeros"), (), "has no 'qzeros' beside it"),
        (OTHER, {}, _short, (), "expected shape"),
        (OTHER, {}, _uneven, (), r"inputs in groups of other sizes than 64 \(g_idx\)"),
        (OTHER, {}, _broken, (), "has scales that aren't numbers"),
        (Kind(form="packed"), {"format": "nvfp4-pack-quantized"}, None, (), "with format 'nvfp4-pack-quantized'"),
        (Kind(form="packed"), {"config_groups": {}}, None, (), "with config_groups '0 schemes': expected one scheme"),
        (Kind(form="packed"), {"transform_config": {"r": 1}}, None, (), "with transform_config"),
        (OTHER, {"quant_method": "bitsandbytes"}, None, (), r"by bitsandbytes, 4 bits .* model\.dequantize\(\), then"),
        (OTHER, {"quant_method": "later"}, None, (), "by 'later'"),
    ],
)
def test_what_cant_be_carried_over(
    kind: Kind,
    changes: dict[str, Any],
    tensors: Callable[[Tensors], Tensors] | None,
    options: tuple[object, ...],
    message: str,
    tmp_path: Path,
    cli: Cli,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model, _ = quantized(tmp_path / "m", kind)
    raw = json.loads((model / "config.json").read_text())
    raw["quantization_config"] |= changes
    (model / "config.json").write_text(json.dumps(raw))
    if tensors is not None:
        save_file(tensors(load_file(model / "model.safetensors")), model / "model.safetensors")
    # A short name: an error's line has an end.
    monkeypatch.chdir(tmp_path)
    code, _, err = cli("export", "--model", "./m", *options, "-o", "out")
    assert code == 2
    assert re.search(message, err), err
    assert err.count("\n") == 1
    assert not Path("out").exists()


def test_a_tower_in_integers_is_refused(tmp_path: Path) -> None:
    kind = Kind(form="gptq")

    def change(tensors: Tensors) -> Tensors:
        from packed_checkpoints import parts, whole

        name = next(name for name in tensors if "vision_tower" in name and name.endswith("q_proj.weight"))
        made = parts(whole(tensors[name], kind, 0), kind)
        rest = {key: tensor for key, tensor in tensors.items() if key != name}
        return rest | {name.removesuffix("weight") + part: tensor for part, tensor in made.items()}

    model = copy_tiny(tmp_path / "m", config={"quantization_config": kind.config}, tensors=change)
    with pytest.raises(LmmpruneError, match=r"q_proj.weight' \(and 0 more\) in integers, which isn't the decoder's"):
        exported_again(model=str(model), ratio=0.5)


@pytest.mark.parametrize(
    "kind", [kind for kind in NBITS.values() if kind.form in ("packed", "plain") and not kind.shuffled], ids=str
)
def test_compressed_tensors_unpacks_the_same(kind: Kind, tmp_path: Path) -> None:
    """The oracle: the package of those who define the format."""
    pytest.importorskip("compressed_tensors")
    import compressed_tensors.compressors as theirs
    from compressed_tensors.compressors.base import BaseCompressor
    from compressed_tensors.quantization import QuantizationScheme

    assert theirs
    model, known = quantized(tmp_path / "m", kind)
    raw, packed = load_file(model / "model.safetensors"), resolve(str(model)).packed
    compressor = BaseCompressor.get_value_from_registry(kind.config["format"])
    scheme = QuantizationScheme(**kind.config["config_groups"]["group_0"])
    assert packed.keys() == known.keys()
    for name, weight in packed.items():
        stem = name.removesuffix("weight")
        own = {key.removeprefix(stem): tensor for key, tensor in raw.items() if key.startswith(stem)}
        expected = compressor.decompress(own, scheme)["weight"]
        assert torch.equal(torch.from_numpy(weight.read()).to(expected.dtype), expected)


@pytest.mark.parametrize("kind", [kind for kind in NBITS.values() if kind.form in ("awq", "gptq")], ids=str)
def test_onnxruntime_genai_unpacks_the_same(kind: Kind, tmp_path: Path) -> None:
    """The oracle: another reader of these formats."""
    pytest.importorskip("onnxruntime_genai")
    from onnxruntime_genai.models.loaders.awq import AWQModel
    from onnxruntime_genai.models.loaders.base import QuantizedTensorModule
    from onnxruntime_genai.models.loaders.gptq import GPTQModel

    model, _ = quantized(tmp_path / "m", kind)
    raw = load_file(model / "model.safetensors")
    for name, weight in resolve(str(model)).packed.items():
        module = QuantizedTensorModule()
        module.bits, module.group_size = kind.bits, -1 if kind.group is None else kind.group
        for part in ("qweight", "qzeros", "scales", "g_idx"):
            setattr(module, part, raw.get(name.removesuffix("weight") + part))
        # Only its arithmetic is wanted, not its reader of whole checkpoints.
        reader = object.__new__(AWQModel if kind.form == "awq" else GPTQModel)
        reader.set_quantized_tensor_properties(module)
        reader.prepare_quantized_tensor(module)
        reader.unpack_qzeros(module)
        reader.unpack_qweight(module)
        assert np.array_equal(module.qweight.numpy(), weight.as_packed())
        assert np.array_equal(module.qzeros.numpy(), weight.all_zeros())
