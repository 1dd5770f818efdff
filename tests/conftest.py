"""Helper modules beside the tests are importable, calibrations stay out of the user's own cache, a command line."""

from __future__ import annotations

import atexit
import os
import shutil
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest

# pytest's importlib mode doesn't add the tests' folder.
sys.path.insert(0, str(Path(__file__).parent))

# What an earlier run measured must not stand in for what this one would.
# Processes of one run share it: each would trace tiny-llava for itself.
if "PYTEST_XDIST_WORKER" not in os.environ:
    _CACHE = tempfile.mkdtemp(prefix="lmmprune-cache-")
    os.environ["LMMPRUNE_CACHE"] = _CACHE
    atexit.register(shutil.rmtree, _CACHE, ignore_errors=True)


@pytest.fixture
def cli(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """Run ``lmmprune`` with some arguments in this process: its exit code, stdout and stderr."""
    from lmmprune.compiler.cli import main

    def call(*arguments: object) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as caught:
            main([str(argument) for argument in arguments])
        out, err = capsys.readouterr()
        assert isinstance(caught.value.code, int)
        return caught.value.code, out, err

    return call
