"""Read what a DLPack capsule says of its tensor, without a framework (dlpack.h, version 0.x: ``DLManagedTensor``)."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass

import numpy as np

_NAME = b"dltensor"
_CODES = {0: "i", 1: "u", 2: "f", 6: "b"}


class _Tensor(ctypes.Structure):
    _fields_ = (
        ("data", ctypes.c_void_p),
        ("device_type", ctypes.c_int32),
        ("device_id", ctypes.c_int32),
        ("ndim", ctypes.c_int32),
        ("code", ctypes.c_uint8),
        ("bits", ctypes.c_uint8),
        ("lanes", ctypes.c_uint16),
        ("shape", ctypes.POINTER(ctypes.c_int64)),
        ("strides", ctypes.POINTER(ctypes.c_int64)),
        ("byte_offset", ctypes.c_uint64),
    )


@dataclass(frozen=True, kw_only=True)
class Buffer:
    """A dense tensor in memory that may be a device's; valid as long as the capsule lives."""

    address: int
    dtype: np.dtype[np.generic]
    shape: tuple[int, ...]


def read(capsule: object) -> Buffer:
    """Return where a capsule's tensor lies; the capsule stays unused."""
    pointer = ctypes.pythonapi.PyCapsule_GetPointer
    pointer.restype, pointer.argtypes = ctypes.c_void_p, (ctypes.py_object, ctypes.c_char_p)
    tensor = _Tensor.from_address(pointer(capsule, _NAME))
    return Buffer(
        address=(tensor.data or 0) + tensor.byte_offset,
        dtype=np.dtype(f"{_CODES[tensor.code]}{tensor.bits // 8}"),
        shape=tuple(tensor.shape[: tensor.ndim]),
    )
