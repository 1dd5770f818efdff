"""NumPy's types by the names that manifests have for them."""

from __future__ import annotations

from typing import Any

import numpy as np

from lmmprune.errors import require


def numpy_type(name: str) -> np.dtype[Any]:
    """Return the type of a name such as ``float16``; NumPy itself has no bfloat16.

    Args:
        name: As in a manifest.

    Raises:
        MissingExtraError: It is bfloat16, and ``ml_dtypes`` isn't installed.
    """
    return np.dtype(require("ml_dtypes", "gpu").bfloat16 if name == "bfloat16" else name)
