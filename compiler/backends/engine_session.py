"""Run an engine with buffers on the device: one context per profile, one scratch memory for all of them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from threading import RLock
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lmmprune.compiler.backends.device import Block, Device, Graph
from lmmprune.compiler.backends.engine import Binding, LoadedEngine, Ranges, Shape
from lmmprune.compiler.backends.pool import DeviceTensor, Pool, padded
from lmmprune.compiler.backends.session import Value
from lmmprune.compiler.backends.trt_log import explain
from lmmprune.errors import BundleError, InputError, TargetError
from lmmprune.names import INPUT_IDS

# Graphs recorded per profile: outputs alternate between two buffers, inputs that the caller holds add a few.
_GRAPHS = 8


@dataclass(kw_only=True)
class _Context:
    """A profile's context, what it was last told, the graphs recorded with it or why there are none."""

    handle: Any
    profile: Ranges
    unrecorded: str | None
    shapes: dict[str, Shape] = field(default_factory=dict)
    addresses: dict[str, int] = field(default_factory=dict)
    graphs: dict[tuple[int, ...], Graph | None] = field(default_factory=dict)


class EngineSession:
    """One engine on one device; satisfies ``Session``. Values are ``DeviceTensor``.

    The work is recorded as a CUDA graph when the same buffers come by for the second time and no shape has changed
    since. A cache that grows by concatenation has another shape at every step, so that its decode step is enqueued
    layer by layer; one that is updated in place (an output that shares its input's memory) is recorded. Such an output
    is its input's tensor: the next run writes to it.
    """

    def __init__(self, engine: LoadedEngine, device: Device, scratch: Block, turn: RLock | None = None) -> None:
        """Make the contexts.

        Args:
            engine: The engine.
            device: Where it runs.
            scratch: At least ``engine.scratch`` bytes; may be shared by engines on the same stream.
            turn: Held while the device is used; engines on the same stream share one.

        Raises:
            TargetError: TensorRT can't make a context.
        """
        self.engine, self._device, self._scratch = engine, device, scratch
        self._turn = turn or RLock()
        self._pool = Pool(device)
        self._contexts = [self._make_context(profile) for profile in engine.profiles]

    @property
    def recorded(self) -> dict[str, int]:
        """CUDA graphs recorded so far, by profile."""
        return {
            context.profile.name: sum(graph is not None for graph in context.graphs.values())
            for context in self._contexts
        }

    @property
    def unrecorded(self) -> dict[str, str]:
        """Why the work of a profile isn't recorded, by profile."""
        return {context.profile.name: context.unrecorded for context in self._contexts if context.unrecorded}

    @property
    def allocations(self) -> int:
        """Buffers reserved so far."""
        return self._pool.allocations

    def upload(self, array: NDArray[np.generic]) -> Value:
        """Return a host array as a ``DeviceTensor``."""
        array = np.ascontiguousarray(array)
        with self._turn:
            lease = self._pool.take(f"an input of '{self.engine.path}'", array.nbytes)
            self._device.upload(lease.address, array)
        return DeviceTensor(lease.address, array.shape, array.dtype, lease)

    def download(self, value: Value) -> NDArray[Any]:
        """Return a ``DeviceTensor`` as an array."""
        with self._turn:
            return self._device.download(value.address, value.shape, value.dtype)

    def run(self, feeds: Mapping[str, Value]) -> dict[str, Value]:
        """Run the engine and wait for it.

        Raises:
            BundleError: The engine doesn't take these inputs.
            InputError: No profile covers their lengths; the message says which there are and how to build another.
            TargetError: TensorRT or the device fails.
        """
        self._check_feeds(feeds)
        context = self._choose({name: value.shape for name, value in feeds.items()})
        with self._turn:
            for name, value in feeds.items():
                self._tell(context, name, value)
            outputs = self._outputs(context, feeds)
            for name, value in outputs.items():
                self._bind(context, name, value.address)
            self._enqueue(context)
            self._device.synchronize()
        return outputs

    def _outputs(self, context: _Context, feeds: Mapping[str, Value]) -> dict[str, DeviceTensor]:
        """Return a place for every output: its input's where it shares that, else one after the other in a buffer."""
        outputs: dict[str, DeviceTensor] = {}
        places: list[tuple[Binding, Shape, int]] = []
        total = 0
        for name, binding in self.engine.outputs.items():
            if binding.alias is not None:
                outputs[name] = feeds[binding.alias]
                continue
            shape = tuple(context.handle.get_tensor_shape(name))
            if -1 in shape:
                raise BundleError(
                    f"the shape of '{name}' of '{self.engine.path}' depends on values: export the bundle again"
                )
            places.append((binding, shape, total))
            total += padded(math.prod(shape) * binding.dtype.itemsize)
        lease = self._pool.take(f"the outputs of '{self.engine.path}'", total)
        for binding, shape, offset in places:
            outputs[binding.name] = DeviceTensor(lease.address + offset, shape, binding.dtype, lease)
        return outputs

    def _make_context(self, profile: Ranges) -> _Context:
        log, engine = self.engine.log, self.engine
        log.clear()
        strategy = engine.module.ExecutionContextAllocationStrategy.USER_MANAGED
        handle = engine.handle.create_execution_context(strategy)
        if handle is None:
            raise TargetError(f"'{engine.path}' gives no execution context: {explain(log.errors())}: {engine.rebuild}")
        if not handle.set_optimization_profile_async(profile.index, self._device.stream):
            raise TargetError(
                f"'{engine.path}' refuses its profile '{profile.name}': {explain(log.errors())}: {engine.rebuild}"
            )
        handle.set_device_memory(self._scratch.address, self._scratch.size)
        self._device.synchronize()
        # TensorRT-RTX says so; TensorRT has nothing in these graphs that can't be recorded.
        ask = getattr(handle, "is_stream_capturable", None)
        refused = ask is not None and not ask(self._device.stream)
        unrecorded = "TensorRT says that it can't be" if refused else None
        return _Context(handle=handle, profile=profile, unrecorded=unrecorded)

    def _check_feeds(self, feeds: Mapping[str, Value]) -> None:
        inputs = self.engine.inputs
        if feeds.keys() != inputs.keys():
            missing, unknown = sorted(inputs.keys() - feeds.keys()), sorted(feeds.keys() - inputs.keys())
            wrong = " and ".join(
                f"{what} {', '.join(names)}" for what, names in (("lacks", missing), ("has unknown", unknown)) if names
            )
            raise BundleError(f"what is fed to '{self.engine.path}' {wrong}: {self.engine.rebuild}")
        for name, value in feeds.items():
            wanted = inputs[name].dtype
            if value.dtype != wanted:
                raise BundleError(
                    f"'{name}' of '{self.engine.path}' is {wanted}, not {value.dtype}: {self.engine.rebuild}"
                )

    def _choose(self, shapes: Mapping[str, Shape]) -> _Context:
        for context in self._contexts:
            if context.profile.takes(shapes):
                return context
        raise InputError(misfit(self.engine, shapes))

    def _tell(self, context: _Context, name: str, value: DeviceTensor) -> None:
        if context.shapes.get(name) != value.shape:
            if not context.handle.set_input_shape(name, value.shape):
                context.shapes.pop(name, None)
                raise BundleError(
                    f"'{self.engine.path}' refuses '{name}' of shape {list(value.shape)}: "
                    f"{explain(self.engine.log.errors())}: {self.engine.rebuild}"
                )
            context.shapes[name] = value.shape
            # CUDA graphs hold for the shapes that they were recorded with.
            context.graphs.clear()
        self._bind(context, name, value.address)

    def _bind(self, context: _Context, name: str, address: int) -> None:
        if context.addresses.get(name) != address:
            if not context.handle.set_tensor_address(name, address):
                raise TargetError(
                    f"'{self.engine.path}' refuses the buffer of '{name}': {explain(self.engine.log.errors())}: "
                    f"{self.engine.rebuild}"
                )
            context.addresses[name] = address

    def _enqueue(self, context: _Context) -> None:
        if context.unrecorded is None:
            graphs, key = context.graphs, tuple(context.addresses.values())
            if key not in graphs:
                # The first run settles what TensorRT puts off until then; only the second one can be recorded.
                if len(graphs) == _GRAPHS:
                    del graphs[next(iter(graphs))]
                graphs[key] = None
            elif graph := graphs[key] or self._record(context):
                graphs[key] = graph
                graph.launch()
                return
        self._execute(context)

    def _record(self, context: _Context) -> Graph | None:
        try:
            return self._device.capture(lambda: self._execute(context))
        except TargetError as error:
            # The same work runs without being recorded; the reason stays readable.
            context.unrecorded = str(error)
            return None

    def _execute(self, context: _Context) -> None:
        log = self.engine.log
        log.clear()
        if not context.handle.execute_async_v3(self._device.stream):
            raise TargetError(
                f"'{self.engine.path}' failed with its profile '{context.profile.name}': {explain(log.errors())}: "
                "run it again in a new process; if it stays: " + self.engine.rebuild
            )


def misfit(engine: LoadedEngine, shapes: Mapping[str, Shape]) -> str:
    """Say which input no profile takes, what the profiles take, and how to build an engine that does."""

    def outside(profile: Ranges) -> list[str]:
        return [name for name, shape in shapes.items() if not profile.takes({name: shape})]

    nearest = min(engine.profiles, key=lambda profile: len(outside(profile)))
    name = outside(nearest)[0]
    takes = " or ".join(
        f"{_sizes(low)} to {_sizes(high)} (profile '{profile.name}')"
        for profile in engine.profiles
        for low, high in (profile.shapes[name],)
    )
    rebuild = engine.rebuild
    if name == INPUT_IDS:
        rebuild = f"ask a shorter question, or {rebuild} --max-prompt {max(shapes[name])}"
    return f"'{name}' is {_sizes(shapes[name])}, the engine takes {takes}: {rebuild}"


def _sizes(shape: Sequence[int]) -> str:
    return " x ".join(str(size) for size in shape) or "a number"
