"""Damaged graphs, weights and tokenizers in bundles: with the checksum of before, and with one that holds."""

from __future__ import annotations

import json
import random
import tempfile
from pathlib import Path
from typing import Any

from faults.bundles import copied, reading, whole
from faults.command_line import call, fault_of
from faults.damage import damaged, damaged_bytes, entry, write_manifest
from faults.tally import Row, Rows, while_time_lasts


def run(seconds: float, seed: int) -> list[Row]:
    """Damage one file at a time, and let the commands read the bundle."""
    import runtime_fixtures

    rng, rows = random.Random(seed), Rows("tampering")
    with tempfile.TemporaryDirectory() as folder:
        bundles = whole(Path(folder))
        picture = runtime_fixtures.save_picture(Path(folder) / "picture.png", 3)
        bundle = Path(folder) / "bundle"
        for _ in while_time_lasts(seconds, at_least=40):
            which = copied(bundles, rng, bundle)
            names = sorted(path.name for path in bundle.iterdir() if path.suffix in (".onnx", ".data"))
            name = rng.choice((*names, "decoder.onnx", "tokenizer.json"))
            before = (bundle / name).read_bytes()
            done = _damage(bundle / name, rng)
            after = (bundle / name).read_bytes()
            again = rng.random() < 0.8
            if again:
                raw = json.loads((bundle / "manifest.json").read_text())
                raw["files"][name] = entry(after)
                write_manifest(bundle, raw, seal=True)
            words = reading(rng, bundle, picture, which)
            if rng.random() < 0.2:
                words = ["verify", bundle]
            fault = fault_of(called := call(*words), must_refuse=not again and after != before)
            kind = f"{name}{', listed and sealed again' * again}"
            rows[kind].count(fault, f"{bundles[which].name}: {done}: {words[0]}: {called.code} {called.err[-300:]}")
    return rows.list()


def _damage(file: Path, rng: random.Random) -> str:
    if file.suffix == ".onnx" and rng.random() < 0.6:
        return _damage_graph(file, rng)
    if file.suffix == ".json" and rng.random() < 0.6:
        other, done = damaged(json.loads(file.read_text()), rng)
        file.write_text(json.dumps(other))
        return done
    content, done = damaged_bytes(file.read_bytes(), rng)
    file.write_bytes(content)
    return done


def _damage_graph(file: Path, rng: random.Random) -> str:
    """Change a graph so that it still is a protobuf."""
    import onnx

    model = onnx.load(file, load_external_data=False)
    graph = model.graph
    kind = rng.choice(("drop", "rename", "type", "shape", "attribute", "operator", "weight", "order", "opset", "name"))
    node: Any = rng.choice(graph.node)
    value: Any = rng.choice([*graph.input, *graph.output])
    if kind == "drop":
        graph.node.remove(node)
    elif kind == "rename":
        value.name = rng.choice(("x", "", "a\u0001b", value.name + "_"))
    elif kind == "type":
        value.type.tensor_type.elem_type = rng.choice((0, 1, 7, 10, 8, 99))
    elif kind == "shape":
        dims = value.type.tensor_type.shape.dim
        rng.choice(dims).dim_value = rng.choice((0, 1, -1, 5, 2**40))
    elif kind == "attribute":
        del node.attribute[:]
    elif kind == "operator":
        node.op_type = rng.choice(("Nothing", "Add", "If", "Reshape", "TopK", "Constant"))
    elif kind == "weight":
        weight: Any = rng.choice(graph.initializer)
        rng.choice((lambda: weight.dims.append(3), lambda: weight.ClearField("data_type"), weight.Clear))()
    elif kind == "order":
        nodes = list(graph.node)
        rng.shuffle(nodes)
        del graph.node[:]
        graph.node.extend(nodes)
    elif kind == "opset":
        model.opset_import[0].version = rng.choice((0, 1, 99, -1))
    elif node.input:
        node.input[0] = rng.choice(("", "nowhere", node.output[0]))
    file.write_bytes(model.SerializeToString())
    return f"{kind} at {node.op_type}, {value.name!r}"
