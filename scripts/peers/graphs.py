"""What each runtime is given: our bundles, and the same decoder as OpenVINO's and llama.cpp's users would have it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import click
from llama import quantize, write_gguf

from lmmprune.compiler.bundle.bundle import Bundle
from lmmprune.compiler.export.export import export
from lmmprune.compiler.export.request import Request
from lmmprune.compiler.export.values import Int4, Int8
from lmmprune.models.source import resolve

MODEL = "llava-1.5-7b"
_QUANTIZED: dict[str, tuple[Int8 | None, Int4 | None]] = {"int8": (Int8(), None), "int4": (None, Int4())}

# NNCF holds the graph several times: a process of its own gives that back.
_COMPRESS = """
import json, sys
import nncf, openvino as ov
from lmmprune.compiler.backends.openvino_state import hold_cache
source, target, bits, carried = sys.argv[1:]
model = ov.Core().read_model(source)
hold_cache(ov, model, json.loads(carried))
if bits == "8":
    model = nncf.compress_weights(model, mode=nncf.CompressWeightsMode.INT8_ASYM)
elif bits == "4":
    model = nncf.compress_weights(model, mode=nncf.CompressWeightsMode.INT4_SYM, group_size=128, ratio=1.0)
ov.save_model(model, target, compress_to_fp16=False)
"""


def bundle(work: Path, layers: int, precision: str, target: str = "ort-cpu") -> Path:
    """Export unpruned layers unless that was done; a pruned prompt is a shorter one for the same decoder."""
    path = work / f"{precision}_{layers}_{target}"
    if not path.is_dir():
        click.echo(f"export {path.name}", err=True)
        int8, int4 = _QUANTIZED.get(precision, (None, None))
        export(
            Request(
                model=MODEL,
                output=path,
                target=target,
                int8=int8,
                int4=int4,
                dtype=precision if precision not in _QUANTIZED else None,
                weights="dummy",
                layers=layers,
                calibration_samples=2,
                judge=False,
            )
        )
    return path


def stateful(work: Path, layers: int, bits: int) -> Path:
    """Write our float decoder as OpenVINO's IR with a state, its weights compressed by NNCF to so many bits."""
    path = work / f"openvino_{bits}_{layers}" / "decoder.xml"
    if not path.is_file():
        import json

        click.echo(f"nncf {bits} bits", err=True)
        path.parent.mkdir(exist_ok=True)
        source = Bundle.open(bundle(work, layers, "float32", "openvino-cpu"))
        words = [str(source.decoder), str(path), str(bits), json.dumps(source.manifest.cache.carried)]
        subprocess.run([sys.executable, "-c", _COMPRESS, *words], check=True, stdout=subprocess.DEVNULL)
    return path


def gguf(work: Path, layers: int, kind: str) -> Path:
    """Write a GGUF file of the same shapes, quantized by llama.cpp's own program."""
    path = work / f"{kind}_{layers}.gguf"
    if not path.is_file():
        click.echo(f"gguf {kind}", err=True)
        plain = work / f"F16_{layers}.gguf"
        config = resolve(MODEL, weights="dummy", layers=layers).config.text_config
        quantize(plain if plain.is_file() else write_gguf(plain, config), path, kind)
    return path
