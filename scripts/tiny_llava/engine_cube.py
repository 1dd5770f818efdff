"""Build TensorRT-RTX engines of every method in every type for every architecture; tests build a square of these.

Needs the development install, no GPU. Further arguments go to pytest, as in ``-n 2`` or ``-k aim``.
"""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

TESTS = Path(__file__).parents[2] / "tests" / "test_engines_of_methods.py"

if __name__ == "__main__":
    sys.exit(pytest.main([str(TESTS), "--cube", *sys.argv[1:]]))
