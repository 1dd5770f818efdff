"""How weights are rounded to four bits: ours, and onnxruntime's own quantizer, on the same graph and questions.

    python scripts/int8/int4_rounding.py -o docs/results/int4_rounding

The decoder of pruned tiny-llava in float32. Two thirds of the calibration set are what GPTQ sees; on the rest, prefill
and answer, the logits of each are compared with those of the float graph.
"""

from __future__ import annotations

import functools
import logging
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import click
import numpy as np
import onnx
import onnx_ir as ir
from onnxruntime.quantization import matmul_nbits_quantizer as peer

from lmmprune.compiler.backends.cpu_session import cpu_session, run_all
from lmmprune.compiler.bundle.bundle import Bundle
from lmmprune.compiler.data.calibration import load_calibration
from lmmprune.compiler.export.export import export
from lmmprune.compiler.export.request import Request
from lmmprune.compiler.export.values import Ratio
from lmmprune.compiler.onnx_files.load_onnx import load_onnx
from lmmprune.compiler.quantize.factorize import factorize
from lmmprune.compiler.quantize.feeds import SampleFeeds
from lmmprune.compiler.quantize.gptq import round_weight
from lmmprune.compiler.quantize.gram import Gram
from lmmprune.compiler.quantize.observe import watch_values
from lmmprune.compiler.runtime.decode_steps import Steps, drive
from lmmprune.models.source import resolve
from lmmprune.names import LOGITS
from lmmprune.passes.int4.insert_int4 import InsertInt4, groupable
from lmmprune.stored import Array

sys.path.insert(0, str(Path(__file__).parents[1]))  # scripts/, where results.py lies

import results

Samples = Sequence[Callable[[], Steps]]
GROUPS = (128, 64, 32)


class Rounded:
    """A weight as GPTQ rounds it."""

    def __init__(self, weight: Array, gram: Array, group: int) -> None:
        self._made = round_weight(weight, factorize(gram.copy()), group=group)

    def integers(self) -> Array:
        """Return its integers."""
        return self._made[0]

    def scales(self) -> Array:
        """Return its scales."""
        return self._made[1]


def ours(graph: Path, grams: dict[str, Gram], group: int) -> Path:
    """Round as ``export --int4`` does, into a file beside the graph; without grams to the nearest."""
    model = load_onnx(graph)
    rounded = {}
    for node in groupable(model) if grams else ():
        activation, weight = node.inputs[:2]
        gram = grams[str(activation.name)].matrix()  # type: ignore[union-attr]  # groupable() checked it
        rounded[str(weight.name)] = Rounded(weight.const_value.numpy(), gram, group)  # type: ignore[union-attr, arg-type]  # same
    InsertInt4(group=group, rounded=rounded)(model)
    ir.save(model, graph.with_name("int4.onnx"))
    return graph.with_name("int4.onnx")


def theirs(graph: Path, config: Any) -> bytes:
    """Quantize with onnxruntime's tool."""
    made = peer.MatMulNBitsQuantizer(onnx.load(str(graph)), algo_config=config)
    made.process()
    return bytes(made.model.model.SerializeToString())


def logits(graph: Path | bytes, samples: Samples) -> Array:
    """Return the logits of every step, float64 ``[steps,vocabulary]``."""
    session = cpu_session(graph)
    found = []
    for sample in samples:

        def run(feeds: Any) -> Any:
            made = run_all(session, feeds)
            found.append(made[LOGITS][0, -1].astype(np.float64))
            return made

        drive(sample(), run)
    return np.stack(found)


@click.command()
@click.option("-o", "--output", type=click.Path(path_type=Path), default=Path("docs/results/int4_rounding"))
def main(output: Path) -> None:
    """Write OUTPUT.json and OUTPUT.md."""
    logging.getLogger(peer.__name__).setLevel(logging.ERROR)
    with tempfile.TemporaryDirectory() as folder:
        export(Request(model="tiny-llava", output=Path(folder) / "b", tokens=Ratio(0.5)))
        bundle = Bundle.open(Path(folder) / "b")
        data = load_calibration(resolve("tiny-llava"), None, 32)
        samples = SampleFeeds(bundle.manifest, bundle.path, data, bundle.vision).decoder()
        seen, held = samples[: 2 * len(samples) // 3], samples[2 * len(samples) // 3 :]
        products = groupable(load_onnx(bundle.decoder))
        names = list(dict.fromkeys(str(node.inputs[0].name) for node in products))  # type: ignore[union-attr]  # same
        grams = {name: Gram() for name in names}
        run = watch_values(bundle.decoder, names, lambda name, array: grams[name].update(array))
        for sample in seen:
            drive(sample(), run)
        exact = logits(bundle.decoder, held)
        rows, lines = (
            [],
            ["| groups | rounded by | relative error of the logits | KL, nats | s |", "|---|---|--:|--:|--:|"],
        )
        for group in GROUPS:
            plain = functools.partial(peer.DefaultWeightOnlyQuantConfig, block_size=group)
            tools: dict[str, Callable[[], Path | bytes]] = {
                "lmmprune `rtn`": functools.partial(ours, bundle.decoder, {}, group),
                "lmmprune `gptq`": functools.partial(ours, bundle.decoder, grams, group),
                "onnxruntime, symmetric": functools.partial(theirs, bundle.decoder, plain(is_symmetric=True)),
                "onnxruntime, with zero points": functools.partial(theirs, bundle.decoder, plain(is_symmetric=False)),
                "onnxruntime, HQQ": functools.partial(
                    theirs, bundle.decoder, peer.HQQWeightOnlyQuantConfig(block_size=group)
                ),
            }
            for tool, make in tools.items():
                start = time.perf_counter()
                made = make()
                spent = time.perf_counter() - start
                found = logits(made, held)
                error = float(np.linalg.norm(found - exact) / np.linalg.norm(exact))
                row = {"group": group, "tool": tool, "error": error, "kl": divergence(exact, found), "seconds": spent}
                rows.append(row)
                lines.append(f"| {group} | {tool} | {error:.4f} | {row['kl']:.5f} | {spent:.1f} |")
    lines += ["", f"{len(exact)} steps of {len(held)} questions; GPTQ saw {len(seen)} others."]
    text = "\n".join(lines) + "\n"
    results.write(output, {"rows": rows, "steps": len(exact)}, text)
    click.echo(text)


def divergence(exact: Array, found: Array) -> float:
    """Return the mean KL of the rows, nats."""
    p, q = (logs - np.log(np.exp(logs).sum(axis=1, keepdims=True)) for logs in (shifted(exact), shifted(found)))
    return float((np.exp(p) * (p - q)).sum(axis=1).mean())


def shifted(values: Array) -> Array:
    """Return rows less their largest."""
    return np.asarray(values - values.max(axis=1, keepdims=True))


if __name__ == "__main__":
    main()
