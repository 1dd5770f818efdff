"""The README of a model repository: what is in it, how to start it, how to ask it."""

from __future__ import annotations

import math

from lmmprune.compiler.bundle.manifest import Manifest
from lmmprune.compiler.targets.targets import resolve
from lmmprune.compiler.triton.models import ANSWERS_AT_ONCE, NEW_TOKENS, Backend

_TEXT = """# {model} for Triton Inference Server

Made by `lmmprune` for target `{target}`: {tokens} visual tokens, {precision}. Ask the model **`lmmprune`**: it takes
`image` (the bytes of a PNG, JPEG, WebP, ... file{several}), `prompt` (UTF-8) and, optionally, `max_new_tokens` (INT32,
{limit} unless given), and streams `text`, a piece per response; `finish_reason` of the last one says why it ended:
`stop` (the model's end token), `length` or `positions`. A mistake of the caller (no picture, a prompt that is too long)
is an error in one line.

| model | backend | does |
|---|---|---|
| `preprocess` | python | picture -> `pixel_values` |
| {graphs} | {backend} | the graphs, with shapes and types of the bundle |
| `lmmprune` | python | calls the others: tokenizes, prefills, decodes greedily with the key/value cache, streams |

## Start
{needs}
```
{build}docker run --rm {gpus}--shm-size={shm}g -p 8000:8000 -p 8001:8001 -v "$PWD":/models $TRITON_IMAGE \\
  sh -c "pip install {package} && tritonserver --model-repository /models"
```
`$TRITON_IMAGE` is NVIDIA's `tritonserver:YY.MM-py3`. Without docker: `tritonserver --model-repository DIR`. The Python
models need `{package}` in the server's Python, neither torch nor transformers. Servers up to 2.52 (24.11), whose Python
backend can't read NumPy 2's arrays, also need `pip install 'numpy<2'`.

## Ask
```
pip install 'tritonclient[grpc]'
python client.py --url localhost:8001 --image cat.jpg --prompt "What is this?"
```

## Batching, instances, many machines
{batching}
* Each graph has one instance, so its weights are in memory once. More `instance_group` instances of `vision` or
  `decoder` run in parallel and hold their weights again.
* {memory}
* One server per {device}; put any gRPC load balancer in front of several. An answer needs nothing from earlier ones.
"""

_ONE_BY_ONE = f"""\
* No model batches (`max_batch_size: 0`): the vision graph is frozen at one picture, and sequences of several clients
  have caches of different lengths. Instead requests take turns at the decoder, a token at a time: `count` of `lmmprune`
  ({ANSWERS_AT_ONCE}) is how many answers grow at once, the next ones wait in Triton's queue. A bundle exported with
  `--batch B` answers B at once."""
_TOGETHER = """\
* Triton's dynamic batcher (`dynamic_batching` of `lmmprune`) hands over up to {rows} requests that wait, which are
  answered together, each in a row of the graphs with a stream and mistakes of its own. A request has one picture and
  one question, with the axis of the batch in front: shapes `[1,1]`. Later ones wait for the next batch."""


def readme(manifest: Manifest, backend: Backend, *, missing: bool) -> str:
    """Return the README in Markdown.

    Args:
        manifest: The bundle's manifest.
        backend: What runs the graphs.
        missing: Whether TensorRT engines are yet to be built.
    """
    cpu = resolve(manifest.target).device == "cpu"
    cache = manifest.cache_bytes(manifest.max_tokens)
    average = f"{manifest.average_tokens:.1f}".removesuffix(".0")
    return _TEXT.format(
        model=manifest.model,
        target=manifest.target,
        tokens=f"{manifest.tokens_before} -> {average}",
        precision=" + ".join(filter(None, (manifest.precision.dtype, manifest.precision.integers))),
        several=f"; up to {manifest.images} of them" if manifest.images > 1 else "",
        limit=NEW_TOKENS,
        graphs=", ".join(f"`{name}`" for name in manifest.graphs),
        backend=backend,
        needs=_needs(manifest, backend),
        build="sh build_engines.sh   # once, on the GPU that will serve\n" if missing else "",
        gpus="" if cpu else "--gpus device=0 ",
        # A cache on its way is in shared memory as a request, as its answer, and once more while it is copied.
        shm=math.ceil(1 + 3 * (ANSWERS_AT_ONCE if manifest.batch is None else 1) * cache / 2**30) if cpu else 2,
        package="'lmmprune[cpu]'" if backend == "python" else "lmmprune",
        batching=_ONE_BY_ONE if manifest.batch is None else _TOGETHER.format(rows=manifest.rows),
        memory=_memory(cpu, cache),
        device="machine" if cpu else "GPU",
    )


def _needs(manifest: Manifest, backend: Backend) -> str:
    if backend == "tensorrt":
        return f"The server's TensorRT must be that of the engines ({manifest.target}), on the same kind of GPU.\n"
    if backend == "onnxruntime":
        return f"The server's onnxruntime must read opset {manifest.opset} (23: 1.23 or newer).\n"
    return "onnxruntime comes with the Python package, so any server with a Python backend will do.\n"


def _memory(cpu: bool, cache: int) -> str:
    size = f"{cache / 2**20:.0f} MiB at the longest" if cache >= 2**20 else f"{cache / 2**10:.0f} KiB at the longest"
    if cpu:
        return f"An answer's cache ({size}) travels through shared memory between the models with every token."
    return (
        f"An answer's cache ({size}) stays in the GPU's memory; `tensors: cpu` among the parameters of `lmmprune` "
        "takes it through the host instead."
    )
