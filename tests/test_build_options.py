"""What is asked of the builder, what it needs, and what its complaints are turned into."""

import dataclasses
import json
from types import SimpleNamespace

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from exports import exported_again
from runtime_fixtures import make_bundle

from lmmprune.compiler.build import compile_engine as tensorrt
from lmmprune.compiler.build.build import build
from lmmprune.compiler.build.memory import builder_bytes, lacking_memory
from lmmprune.compiler.build.options import BuildOptions
from lmmprune.compiler.build.origin import describe, find_node, written_by
from lmmprune.compiler.build.timing_cache import load_timing_cache, save_timing_cache
from lmmprune.compiler.bundle.content import Int4Weights
from lmmprune.compiler.cli import main
from lmmprune.compiler.targets import machine
from lmmprune.compiler.targets.targets import resolve
from lmmprune.errors import InputError, TargetError
from lmmprune.names import METHOD, PASS, REPLACES, SITE

trt = pytest.importorskip("tensorrt_rtx")
RTX = resolve("tensorrt-rtx")


@pytest.fixture
def bundle(tmp_path):
    return make_bundle(tmp_path / "out", keep=8, dtype="float16", target="tensorrt-rtx")


@pytest.mark.parametrize("option", ["--strip-weights", "--refit"])
def test_stripping_needs_a_gpu_even_for_rtx(bundle, monkeypatch, capsys, option):
    monkeypatch.setattr(machine, "gpus", tuple)
    with pytest.raises(SystemExit) as stop:
        main(["build", str(bundle.path), "--arch", "sm89", option])
    assert stop.value.code == 2
    assert f"{option} for 'tensorrt-rtx' needs an RTX GPU in the machine that builds" in capsys.readouterr().err
    assert not (bundle.path / "engines").exists()


def test_the_refusal_of_stripping_is_the_builders_own(bundle):
    """Seen in 1.7.1; once a release can strip without a GPU, this fails and the refusal can go."""
    if machine.gpus():
        pytest.skip("this machine has a GPU")
    with pytest.raises(TargetError, match=r"can't compile 'vision.onnx'.*CUDA_SUCCESS"):
        tensorrt.build_engine(RTX, bundle.vision, arch="sm89", options=BuildOptions(strip_weights=True, refit=True))


def test_workspace_and_version_compatibility_build(bundle):
    options = BuildOptions(workspace=2**26, version_compatible=True)
    said = []
    build(bundle.path, "rtx", arch="sm89", components=["vision"])
    with pytest.raises(InputError, match=r"was built with other options \(none; asked: version_compat"):
        build(bundle.path, "rtx", arch="sm89", components=["vision"], options=options)
    built = build(bundle.path, "rtx", arch="sm89", components=["vision"], options=options, say=said.append, force=True)[
        0
    ]
    assert built.record.options == {"version_compatible": True, "workspace": 2**26}
    assert [one.fresh for one in build(bundle.path, "rtx", arch="sm89", components=["vision"], options=options)] == [
        False
    ]
    rows = json.loads((built.path.parent / "engine.json").read_text())["components"]
    assert rows["vision"]["options"] == built.record.options


def test_verbose_passes_the_builders_messages_on(bundle):
    quiet, loud = [], []
    tensorrt.build_engine(RTX, bundle.vision, arch="sm89", say=quiet.append)
    tensorrt.build_engine(RTX, bundle.vision, arch="sm89", say=loud.append, options=BuildOptions(verbose=True))
    assert quiet == []
    assert len(loud) > 3


def test_rtx_has_no_timing_cache(bundle, tmp_path):
    with pytest.raises(TargetError, match="has no timing cache"):
        build(bundle.path, "rtx", arch="sm89", options=BuildOptions(timing_cache=tmp_path / "c"))


class Config:
    """The parts of TensorRT's ``IBuilderConfig`` that keep what was asked."""

    def __init__(self, fits=True):
        self.set, self.limits, self.cache, self.fits = [], {}, None, fits

    def set_flag(self, flag):
        self.set.append(flag)

    def set_memory_pool_limit(self, pool, size):
        self.limits[pool] = size

    def create_timing_cache(self, data):
        return data

    def set_timing_cache(self, cache, ignore_mismatch):
        assert not ignore_mismatch
        self.cache = cache
        return self.fits

    def get_timing_cache(self):
        return SimpleNamespace(serialize=lambda: self.cache + b"+new")


def test_flags_of_both_ways_to_build():
    names = SimpleNamespace(REFIT="REFIT", STRIP_PLAN="STRIP_PLAN", VERSION_COMPATIBLE="VERSION_COMPATIBLE")
    module = SimpleNamespace(
        __name__="tensorrt", BuilderFlag=names, MemoryPoolType=SimpleNamespace(WORKSPACE="WORKSPACE")
    )
    options = BuildOptions(refit=True, strip_weights=True, version_compatible=True, workspace=3 * 2**29, verbose=True)
    config = Config()
    options.apply(resolve("tensorrt-11"), module, config)
    assert config.set == ["REFIT", "STRIP_PLAN", "VERSION_COMPATIBLE"]
    assert config.limits == {"WORKSPACE": 3 * 2**29}
    assert list(options.flags()) == [
        "--refit", "--stripWeights", "--versionCompatible", "--verbose", "--memPoolSize=workspace:1536M",
    ]  # fmt: skip
    assert list(BuildOptions().flags()) == []
    options.check(resolve("tensorrt-11"), gpu=False)


def test_timing_cache_lasts_from_build_to_build(tmp_path):
    path = tmp_path / "new" / "timing.cache"
    for expected in (b"", b"+new"):
        config = Config()
        load_timing_cache(config, path)
        assert config.cache == expected
        save_timing_cache(config, path)
    assert path.read_bytes() == b"+new+new"
    assert list(path.parent.iterdir()) == [path]
    with pytest.raises(InputError, match="is of another GPU or TensorRT"):
        load_timing_cache(Config(fits=False), path)
    with pytest.raises(InputError, match="can't be read"):
        load_timing_cache(Config(), tmp_path)


def test_builder_is_not_started_without_the_memory(bundle, monkeypatch):
    needed = builder_bytes(bundle, "decoder")
    assert needed > 3 * (bundle.path / "decoder.data").stat().st_size
    monkeypatch.setattr(machine, "free_memory", lambda: needed - 2**27)
    with pytest.raises(TargetError, match=r"building the decoder of 'out' takes about 0\.3 GiB .* 0\.1 GiB are free"):
        build(bundle.path, "rtx", arch="sm89", components=["decoder"])
    assert not (bundle.path / "engines").exists()
    assert "add swap, export with --int8, or build on a larger" in (lacking_memory(bundle, "vision") or "")
    precision = dataclasses.replace(bundle.manifest.precision, int8="s8s8")
    smaller = dataclasses.replace(bundle, manifest=dataclasses.replace(bundle.manifest, precision=precision))
    assert "add swap, export with --int4, or build on a larger" in (lacking_memory(smaller, "vision") or "")
    precision = dataclasses.replace(precision, int4=Int4Weights(group=128))
    smaller = dataclasses.replace(bundle, manifest=dataclasses.replace(bundle.manifest, precision=precision))
    assert "add swap, or build on a larger" in (lacking_memory(smaller, "vision") or "")
    monkeypatch.setattr(machine, "free_memory", lambda: needed)
    assert lacking_memory(bundle, "decoder") is None
    assert build(bundle.path, "rtx", arch="sm89", components=["decoder"])[0].fresh


def test_free_memory_is_what_the_system_says():
    free = machine.free_memory()
    assert free is not None
    assert 2**26 < free < 2**46


@pytest.mark.parametrize(
    ("about", "maker"),
    [
        ({PASS: "reduce_vision", METHOD: "tome", SITE: "vision_layer_1"}, "reduce_vision (tome at vision_layer_1)"),
        ({PASS: "count_tokens", METHOD: "prumerge"}, "count_tokens (prumerge)"),
        ({PASS: "reduce_decoder", SITE: "llm_layer_1"}, "reduce_decoder (llm_layer_1)"),
        ({PASS: "cast_float"}, "cast_float"),
        ({PASS: "lower_rotary", REPLACES: "rotary_79"}, "lower_rotary in the place of 'rotary_79'"),
        ({METHOD: "freepruner"}, None),
        ({}, None),
    ],
)
def test_metadata_tells_which_pass_wrote_a_node(about, maker):
    assert written_by(ir.Node("", "Add", [], metadata_props=about)) == maker


LOWERINGS = ("lower_attention", "lower_gelu", "lower_rms_norm", "lower_rotary")


@pytest.mark.parametrize(
    ("request_", "authors"),
    [
        (
            {"target": "tensorrt-10.3", "method": "ficoco-vl"},
            {"reduce_vision", "reduce_decoder", "cast_float", "equal_head_widths", *LOWERINGS},
        ),
        ({"method": "fastv", "int8": True}, {"insert_qdq", "reduce_decoder", "group_query"}),
        (
            {"method": "prumerge", "target": "tensorrt-11", "static_cache": 96},
            {"cast_float", "reduce_vision", "static_cache"},
        ),
    ],
)
def test_every_node_of_ours_in_a_file_has_an_author(request_, authors):
    path, _ = exported_again(ratio=0.5, **request_)
    found = set()
    for part in ("vision", "decoder"):
        nodes = list(ir.load(path / f"{part}.onnx").graph)
        # Passes name nodes with a slash, which no name of the tracer has.
        ours = [node for node in nodes if "/" in str(node.name)]
        assert len(ours) > 10
        assert [node.name for node in ours if written_by(node) is None] == []
        assert [node.name for node in nodes if node not in ours and written_by(node) is not None] == []
        found |= {node.metadata_props[PASS] for node in ours}
    assert found == authors


def test_place_of_a_node_is_its_layer():
    path, _ = exported_again(target="tensorrt-10.3", ratio=0.5, method="ficoco-vl")
    graph = path / "decoder.onnx"
    model = onnx.load(graph, load_external_data=False)
    softmax = [node.name for node in model.graph.node if node.op_type == "Softmax" and node.name.startswith("lower/")]
    message = f"Could not find any implementation for node {{ForeignNode[{softmax[1]}...node_x]}}."
    assert find_node(graph, message) == softmax[1]
    said = describe(graph, softmax[1])
    assert ", near 'model.language_model.layers.1.self_attn" in said
    assert ", written by lower_attention in the place of 'node_scaled_dot" in said
    assert find_node(graph, "no node at all") is None


def test_parsers_complaint_names_place_and_pass(tmp_path):
    text = "g (float16[1,4] x) => (float16[1,4] y) { z = MatMul (x, w)  y = BitwiseNot (z) }"
    model = onnx.parser.parse_model(f'<ir_version: 10, opset_import: ["" : 23]> {text}')
    model.graph.node[0].input[1] = "model.layers.3.mlp.up_proj.weight"
    model.graph.node[1].name = "a node of ours"
    for key, value in ((PASS, "reduce_decoder"), (METHOD, "fastv"), (SITE, "llm_layer_2")):
        model.graph.node[1].metadata_props.add(key=key, value=value)
    model.graph.initializer.append(
        onnx.numpy_helper.from_array(np.ones((4, 4), np.float16), "model.layers.3.mlp.up_proj.weight")
    )
    onnx.save(model, tmp_path / "bad.onnx")
    with pytest.raises(TargetError) as e:
        tensorrt.build_engine(RTX, tmp_path / "bad.onnx", arch="sm89")
    assert (
        "at node 'a node of ours' (BitwiseNot), near 'model.layers.3.mlp.up_proj', "
        "written by reduce_decoder (fastv at llm_layer_2): "
    ) in str(e.value)
