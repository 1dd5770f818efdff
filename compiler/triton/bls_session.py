"""A graph that another model of the same Triton server runs (business logic scripting)."""

from __future__ import annotations

import ctypes
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import triton_python_backend_utils as triton
from numpy.typing import NDArray

from lmmprune.compiler.backends.session import Value
from lmmprune.compiler.triton import dlpack
from lmmprune.errors import BundleError, InputError, LmmpruneError


class BlsSession:
    """One model of the server; satisfies ``Session``.

    Values are arrays on their way in and Triton's tensors on their way out. A tensor that goes into the next request
    is handed on where it lies (DLPack): that is how the key/value cache and the image features stay on the device.
    """

    def __init__(self, model: str, outputs: Sequence[str], *, on_gpu: bool) -> None:
        """Name a model.

        Args:
            model: Its name in the server.
            outputs: The outputs that ``run`` returns.
            on_gpu: Ask for the outputs in the GPU's memory.
        """
        self._model, self._outputs = model, list(outputs)
        self._memory = triton.PreferredMemory(
            triton.TRITONSERVER_MEMORY_GPU if on_gpu else triton.TRITONSERVER_MEMORY_CPU, 0
        )

    def upload(self, array: NDArray[np.generic]) -> Value:
        """Return the array itself: Triton copies what a request holds."""
        return np.ascontiguousarray(array)

    def download(self, value: Value) -> NDArray[Any]:
        """Return a value as a host array."""
        if isinstance(value, np.ndarray):
            return value
        if value.is_cpu():
            array: NDArray[Any] = value.as_numpy()
            return array
        return _from_device(value)

    def run(self, feeds: Mapping[str, Value]) -> dict[str, Value]:
        """Run the model; return its outputs by name.

        Raises:
            InputError: The model refuses what the user sent.
            BundleError: It fails otherwise.
        """
        request = triton.InferenceRequest(
            model_name=self._model,
            requested_output_names=self._outputs,
            inputs=[_named(name, value) for name, value in feeds.items()],
            preferred_memory=self._memory,
        )
        response = request.exec()
        if response.has_error():
            error = response.error()
            kind: type[LmmpruneError] = BundleError
            if error.code() == triton.TritonError.INVALID_ARG:
                kind = InputError
            raise kind(error.message())
        return {name: triton.get_output_tensor_by_name(response, name) for name in self._outputs}


def _named(name: str, value: Value) -> Any:
    if isinstance(value, np.ndarray):
        return triton.Tensor(name, value)
    return triton.Tensor.from_dlpack(name, value)


def _from_device(value: Value) -> NDArray[Any]:
    """Copy a tensor from the GPU's memory."""
    capsule = value.to_dlpack()
    buffer = dlpack.read(capsule)
    array = np.empty(buffer.shape, buffer.dtype)
    # The process of a Python model is linked to the CUDA run-time: the symbol is there.
    copy = ctypes.CDLL(None).cudaMemcpy
    copy.argtypes = (ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
    either_way = 4  # cudaMemcpyDefault: the pointers tell the direction
    if status := copy(array.ctypes.data, buffer.address, array.nbytes, either_way):
        raise BundleError(f"copying '{value.name()}' from the GPU failed (cudaError {status}): set tensors to cpu")
    return array
