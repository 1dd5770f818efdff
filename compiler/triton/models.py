"""The models of a repository as their ``config.pbtxt`` states them, derived from a bundle's manifest.

Graphs don't batch by Triton's rules (``max_batch_size: 0``): the counts that pruning promises are numbers in them,
and prompts of clients differ in length. A bundle exported with ``--batch B`` has B rows in its graphs, and a mask for
what fills up the shorter ones: Triton's dynamic batcher hands up to B requests that wait to the answering model, which
makes rows of them. Else requests of several clients take turns at the one decoder, a token at a time.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from lmmprune.compiler.build.engine_spec import engine_spec
from lmmprune.compiler.bundle.manifest import Graph, Manifest, Tensor
from lmmprune.compiler.targets.target import Target
from lmmprune.compiler.targets.targets import resolve
from lmmprune.compiler.triton.text_format import Enum
from lmmprune.errors import InputError, TargetError

Backend = Literal["onnxruntime", "python", "tensorrt"]

DEFAULT = "default"
ANSWER = "lmmprune"
PREPROCESS = "preprocess"
VERSION = "1"
PLAN = "model.plan"
GRID = "grid"
"""Rows and columns of the tiles of a picture, and those of the checkpoint's own processor: int64 ``[4]``."""

ANSWERS_AT_ONCE = 4
"""Instances of the answering model: processes of some tens of MiB, without weights."""
_QUEUE_DELAY = 5000
"""Microseconds that a request waits for others, where several are answered at once: a small part of a prefill."""
NEW_TOKENS = 128
"""Length of an answer where the request names none."""

_TYPES = {
    "float32": "TYPE_FP32",
    "float16": "TYPE_FP16",
    "int64": "TYPE_INT64",
    "int32": "TYPE_INT32",
    "bool": "TYPE_BOOL",
}
_STRING = Enum("TYPE_STRING")


def backend_of(target: Target, dtype: str, asked: str = DEFAULT) -> Backend:
    """Return the Triton backend that runs a bundle's graphs.

    Args:
        target: What the bundle was exported for.
        dtype: Its floating-point type.
        asked: ``python``: onnxruntime inside of a Python model; ``default``: the target's own backend.

    Raises:
        TargetError: Triton has no backend for the bundle's target, or not the one that was asked for.
        InputError: A type that tensors between the models can't have.
    """
    if dtype not in _TYPES:
        raise InputError(
            f"Triton's Python models can't hold {dtype}, NumPy has no such type: export with --dtype float16"
        )
    if target.serving is None:
        raise TargetError(
            f"Triton Inference Server has no backend for '{target.name}': export with --target tensorrt-11, or the "
            "version of TensorRT in your server, or --target ort-cuda"
        )
    if asked == "python":
        if target.device != "cpu":
            raise TargetError(
                f"Python models run graphs on the CPU, this bundle is for '{target.name}': leave --triton-backend out"
            )
        return "python"
    return target.serving


def configs(manifest: Manifest, backend: Backend) -> dict[str, dict[str, Any]]:
    """Return model -> the fields of its ``config.pbtxt``.

    Raises:
        TargetError: The vision graph takes more than pixel values, which ``preprocess`` doesn't make, or several
            pictures at once; or there are several for pictures of several sizes.
    """
    target = resolve(manifest.target)
    if manifest.video is not None:
        raise TargetError("Triton repositories take pictures, this bundle takes a video: export without --frames")
    if manifest.joint:
        raise TargetError(
            "Triton repositories run the vision graph on one picture at a time, this one sees all of a prompt's: export"
            " without --joint"
        )
    if manifest.sizes:
        raise TargetError(
            "Triton repositories have one vision graph, this bundle has one for each size of pictures: export with one"
            " --image-size, or one grid of --tiles"
        )
    if len(manifest.vision.inputs) != 1:
        names = ", ".join(tensor.name for tensor in manifest.vision.inputs)
        raise TargetError(f"Triton repositories serve vision graphs with one input, this one takes {names}: use run")
    (pixels,) = manifest.vision.inputs
    found = {
        PREPROCESS: {
            "name": PREPROCESS,
            "backend": "python",
            "max_batch_size": 0,
            "input": [_tensor("image", _STRING, [1])],
            "output": _preprocessed(manifest, pixels),
            "instance_group": [{"kind": Enum("KIND_CPU"), "count": 2}],
        }
    }
    for name, graph in manifest.graphs.items():
        found[name] = _graph(name, graph, backend, _instances(manifest, target, name))
    found[ANSWER] = {
        "name": ANSWER,
        "backend": "python",
        **_batching(manifest),
        "model_transaction_policy": {"decoupled": True},
        "input": [
            _tensor("image", _STRING, [1 if manifest.images == 1 else -1]),
            _tensor("prompt", _STRING, [1]),
            {**_tensor("max_new_tokens", Enum("TYPE_INT32"), [1]), "optional": True},
        ],
        "output": [_tensor("text", _STRING, [1]), _tensor("finish_reason", _STRING, [1])],
        # Of a bundle with a batch one: a second would take requests that could be rows of the first one's.
        "instance_group": [{"kind": Enum("KIND_CPU"), "count": ANSWERS_AT_ONCE if manifest.batch is None else 1}],
        "parameters": [
            _parameter("max_new_tokens", str(NEW_TOKENS)),
            _parameter("tensors", "cpu" if target.device == "cpu" else "gpu"),
        ],
    }
    return found


def _batching(manifest: Manifest) -> dict[str, Any]:
    """Return how the answering model gets requests: one by one, or those that wait together."""
    if manifest.batch is None:
        return {"max_batch_size": 0}
    return {
        "max_batch_size": manifest.rows,
        "dynamic_batching": {"max_queue_delay_microseconds": _QUEUE_DELAY},
    }


def _preprocessed(manifest: Manifest, pixels: Tensor) -> list[dict[str, Any]]:
    """Return the outputs of ``preprocess``: of a picture, or of all its tiles with the grid that they are cut into."""
    if manifest.tile_grids is None:
        # Of one picture, however many the vision graph takes.
        shape = pixels.shape if manifest.batch is None else (1, *pixels.shape[1:])
        return _tensors([dataclasses.replace(pixels, shape=shape)])
    tiles = dataclasses.replace(pixels, shape=("tiles", *pixels.shape[1:]))
    return [*_tensors([tiles]), _tensor(GRID, Enum(_TYPES["int64"]), [4])]


def _graph(name: str, graph: Graph, backend: Backend, instances: dict[str, Any]) -> dict[str, Any]:
    files = {"onnxruntime": graph.file, "tensorrt": PLAN}
    return {
        "name": name,
        "backend": backend,
        "max_batch_size": 0,
        **({"default_model_filename": files[backend]} if backend in files else {}),
        "input": _tensors(graph.inputs),
        "output": _tensors(graph.outputs),
        "instance_group": [instances],
    }


def _instances(manifest: Manifest, target: Target, component: str) -> dict[str, Any]:
    """Return where a graph runs: one instance, so that its weights are resident once."""
    if target.device == "cpu":
        return {"kind": Enum("KIND_CPU"), "count": 1}
    group: dict[str, Any] = {"kind": Enum("KIND_GPU"), "count": 1, "gpus": [0]}
    profiles = engine_spec(manifest, target, components=[component]).profiles[component] if target.compiled else []
    # The backend takes for each request the profile that its shapes fit: prefill or decode.
    return {**group, "profile": [str(index) for index in range(len(profiles))]} if profiles else group


def _tensors(tensors: Sequence[Tensor]) -> list[dict[str, Any]]:
    return [
        _tensor(
            tensor.name, Enum(_TYPES[tensor.dtype]), [-1 if isinstance(size, str) else size for size in tensor.shape]
        )
        for tensor in tensors
    ]


def _tensor(name: str, kind: Enum, dims: Sequence[int]) -> dict[str, Any]:
    return {"name": name, "data_type": kind, "dims": list(dims)}


def _parameter(key: str, text: str) -> Mapping[str, Any]:
    return {"key": key, "value": {"string_value": text}}
