"""Trace a model's components to ONNX under fake tensors: no weight is read, the architecture alone is seen."""

from __future__ import annotations

import contextlib
import logging
import warnings
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import onnx_ir as ir
import torch

from lmmprune import names
from lmmprune.errors import ModelError, below
from lmmprune.lazy import Origin, lazy, numbers
from lmmprune.models import private_names
from lmmprune.models.canonicalize import transposed
from lmmprune.models.checkpoint_reader import Reader
from lmmprune.models.configure import fix_rotation
from lmmprune.models.source import Source
from lmmprune.models.weight_names import tie
from lmmprune.models.wrappers import Decoder, Vision
from lmmprune.names import IMAGE_FEATURES, INPUT_IDS, LOGITS, NEXT_LAYER, PIXEL_VALUES, POSITION_IDS
from lmmprune.stored import Array

OPSET = 23
Readers = Mapping[str, Callable[[], Array]]


def fake_model(source: Source, remark: Callable[[str], None] = lambda line: None) -> Any:
    """Build the module with fake parameters and real buffers (positions, rotary frequencies: they are constants).

    Args:
        source: The model.
        remark: Told in one line what the user should know of how its weights were understood.
    """
    import transformers

    architecture = private_names.module_class(source.config)
    # Some towers (SigLIP) draw initial weights in a way that looks at values, and fake weights have none.
    advice = (
        f"try --weights dummy with an alias of the {source.family.title} family, to see whether it is the checkpoint"
    )
    building = below(f"building a {source.config.model_type} with transformers {transformers.__version__}", advice)
    with building, private_names.fake_tensors(), private_names.without_initialization():
        model = architecture(source.config).eval()
        # Switched off together with the initialisation.
        said = tie(model, source.entries)
    if said:
        remark(said)
    owner = model
    for name, module in model.named_modules():
        if isinstance(module, transformers.PreTrainedModel):
            owner = module
        if private_names.buffers(module):
            _fill_buffers(owner, module, name)
        fix_rotation(module)
    if source.family.prepare is not None:
        source.family.prepare(model)
    return model


def _fill_buffers(owner: Any, module: torch.nn.Module, name: str) -> None:
    """Give a module's buffers their real values, as transformers does after loading on the meta device."""
    buffers = private_names.buffers(module)
    for key, buffer in list(buffers.items()):
        if buffer is not None:
            buffers[key] = torch.full(buffer.shape, -1, dtype=buffer.dtype)
    private_names.fill_buffers(owner, module)
    for key, buffer in buffers.items():
        if buffer is not None and buffer.numel() and bool((buffer == -1).all()):
            raise ModelError(f"the buffer '{name}.{key}' has no known value: this transformers version isn't supported")


def trace_vision(model: Any, source: Source, *, batch: int = 1, next_layer: bool = False) -> ir.Model:
    """Trace ``pixel_values`` -> ``image_features``; every shape is static.

    Args:
        model: From ``fake_model``.
        source: The model to export.
        batch: Pictures per call (B).
        next_layer: Whether to trace one encoder layer more, to ``next_layer_features``, for methods that read it.
    """
    height, width = source.vision.image_size
    with private_names.fake_tensors():
        pixels = torch.zeros(batch * source.vision.tiles * source.vision.frames, 3, height, width)
    outputs = [IMAGE_FEATURES, NEXT_LAYER] if next_layer else [IMAGE_FEATURES]
    module = Vision(model, source.family, next_layer=next_layer)
    traced = _export("the vision tower", module, (pixels,), [PIXEL_VALUES], outputs, None)
    return _clean_names(traced)


def trace_decoder(model: Any, source: Source, *, image_token_id: int) -> ir.Model:
    """Trace the decoder with symbolic ``seq``, ``past`` and ``image_tokens``.

    Args:
        model: From ``fake_model``.
        source: The model to export.
        image_token_id: Id of the placeholder.
    """
    spec = source.decoder
    # Sizes that aren't 0 or 1 and differ from each other, so that the tracer can't mistake one for another.
    seq, past, image_tokens = 23, 7, 17
    with private_names.fake_tensors():
        ids = torch.zeros(1, seq, dtype=torch.int64)
        positions = torch.zeros(*([spec.position_rows] if spec.position_rows > 1 else []), 1, seq, dtype=torch.int64)
        features = torch.zeros(1, image_tokens, spec.width * (1 + spec.deepstack))
        cache = [
            (torch.zeros(1, spec.kv_heads, past, spec.head_dim), torch.zeros(1, spec.kv_heads, past, spec.head_dim))
            for _ in range(spec.layers)
        ]
    names = cache_names(spec.layers)
    along = {positions.ndim - 1: "seq"}
    dynamic: Any = ({1: "seq"}, {1: "image_tokens"}, along, [({2: "past"}, {2: "past"})] * spec.layers)
    traced = _export(
        "the decoder",
        Decoder(model, spec, image_token_id),
        (ids, features, positions, cache),
        [INPUT_IDS, IMAGE_FEATURES, POSITION_IDS, *(n for pair in names[0] for n in pair)],
        [LOGITS, *(n for pair in names[1] for n in pair)],
        dynamic,
    )
    return _clean_names(traced)


def cache_names(layers: int) -> tuple[list[tuple[str, str]], list[tuple[str, str]]]:
    """Return the (key, value) names of every layer's past and present, as other exporters call them."""
    past = [names.past(i) for i in range(layers)]
    present = [names.present(i) for i in range(layers)]
    return past, present


def bind(model: ir.Model, readers: Readers) -> None:
    """Bind every weight of a traced graph to the function that reads it; nothing is read yet.

    Buffers that ``trace`` left real become constants of the graph.
    """
    for name, value in model.graph.initializers.items():
        if name in readers:
            read = readers[name]
            stored = read.stored if isinstance(read, Reader) else None
            shape = numbers(value.shape)
            value.const_value = lazy(
                read, dtype=ir.DataType.FLOAT, shape=shape, name=name, stored=stored, origin=Origin(name)
            )
        else:
            assert value.const_value is not None
            value.const_value = ir.Tensor(value.const_value.numpy(), name=name)


def bind_again(model: ir.Model, origins: Mapping[str, Origin], readers: Readers) -> None:
    """Bind the weights of a canonical graph that was kept without them; nothing is read yet.

    Args:
        model: Changed in place.
        origins: Initializer -> the parameter that it is.
        readers: Parameter -> the function that reads it.

    Raises:
        KeyError: A parameter has no reader.
    """
    for name, origin in origins.items():
        value, read = model.graph.initializers[name], readers[origin.weight]
        shape = numbers(value.shape)
        if origin.perm is None:
            stored = read.stored if isinstance(read, Reader) else None
            value.const_value = lazy(
                read, dtype=ir.DataType.FLOAT, shape=shape, name=name, stored=stored, origin=origin
            )
            continue
        before = tuple(shape[origin.perm.index(axis)] for axis in range(len(shape)))
        whole = ir.Value(name=origin.weight, shape=ir.Shape(before), type=ir.TensorType(ir.DataType.FLOAT))
        bound = read.stored if isinstance(read, Reader) else None
        whole.const_value = lazy(
            read, dtype=ir.DataType.FLOAT, shape=before, name=origin.weight, stored=bound, origin=Origin(origin.weight)
        )
        value.const_value = transposed(whole, origin.perm).const_value


def _export(
    what: str, module: torch.nn.Module, args: tuple[Any, ...], inputs: list[str], outputs: list[str], dynamic: Any
) -> ir.Model:
    advice = "lmmprune models lists what was tried; other releases of torch and transformers may trace it"
    with below(f"tracing {what} with torch {torch.__version__}", advice), _quiet(), torch.no_grad():
        program = torch.onnx.export(
            module,
            args,
            dynamo=True,
            opset_version=OPSET,
            # The exporter's own optimisation reads weights, which are fake here.
            optimize=False,
            verbose=False,
            input_names=inputs,
            output_names=outputs,
            dynamic_shapes=dynamic,
        )
    assert program is not None
    return program.model


def _clean_names(model: ir.Model) -> ir.Model:
    """Give weights the module's own parameter names, without the wrapper's prefix."""
    for name in list(model.graph.initializers):
        model.graph.initializers[name].name = name.removeprefix("model.")
    for node in model.graph:
        # Traces carry the file names and source lines of the exporting machine.
        node.metadata_props.clear()
        node.doc_string = None
    return model


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silence the exporter's warnings about packages and internals that don't concern the user."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
