"""Our errors as Triton's: one line, and a code that says whose mistake it is."""

from __future__ import annotations

from typing import Any

import triton_python_backend_utils as triton

from lmmprune.errors import InputError, LmmpruneError


def refusal(error: LmmpruneError) -> Any:
    """Return the error that a client gets."""
    code = triton.TritonError.INVALID_ARG if isinstance(error, InputError) else triton.TritonError.INTERNAL
    return triton.TritonError(" ".join(str(error).split()), code)
