"""Helper modules beside the tests are importable, caches are the run's own, a thread per test, a command line."""

from __future__ import annotations

import atexit
import gc
import os
import shutil
import signal
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest

# pytest's importlib mode doesn't add the tests' folder.
sys.path.insert(0, str(Path(__file__).parent))

# A shell starts what it puts into the background deaf to Ctrl-C, and processes of the tests would inherit that.
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# What an earlier run measured must not stand in for what this one would.
# Processes of one run share it: each would trace tiny-llava, and export it in the same ways, for itself.
if "PYTEST_XDIST_WORKER" not in os.environ:
    _OURS = tempfile.mkdtemp(prefix="lmmprune-tests-")
    os.environ |= {"LMMPRUNE_TESTS": _OURS, "LMMPRUNE_CACHE": f"{_OURS}/cache"}
    atexit.register(shutil.rmtree, _OURS, ignore_errors=True)

# Files that take minutes, the longest first: begun last, one of them would keep a single worker busy at the end.
_LONGEST = (
    "test_methods_fidelity",
    "test_engines_of_methods",
    "test_llava7b_widths",
    "test_hub_layouts",
    "test_docs_code",
    "test_study_runs",
    "test_targets_parity",
    "test_export",
    "test_engines_of_exports",
    "test_qwen",
    "test_api",
    "test_tiles",
    "test_blocks",
    "test_trace_cache",
    "test_hub",
    "test_reach",
    "test_harness",
    "test_video",
    "test_sizes",
    "test_several_pictures",
    "test_sizes_everywhere",
    "test_several_pictures_everywhere",
    "test_tile_grids",
    "test_tile_grids_everywhere",
    "test_batch",
    "test_own_layer",
    "test_stream_export",
    "test_quantized_checkpoints",
    "test_conversation",
)


def _one_thread() -> None:
    """As many tests run side by side as there are cores: no library starts threads unless a test asks for them."""
    # Read when NumPy and PyTorch are imported, here and in processes that tests start.
    for library in ("OMP", "MKL", "OPENBLAS"):
        os.environ.setdefault(f"{library}_NUM_THREADS", "1")
    # Read when it is imported, which is here before anything of ours.
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    import onnxruntime

    class OneThread(onnxruntime.SessionOptions):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.intra_op_num_threads = 1

    onnxruntime.SessionOptions = OneThread


_one_thread()
# Looking for cycles among the hundreds of thousands of objects of a graph took a fifth of the time.
gc.set_threshold(100_000, 20, 10)

Call = Callable[..., tuple[int, str, str]]


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--cube", action="store_true", help="engines of all methods in all types for all architectures")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    place = {name: place for place, name in enumerate(_LONGEST)}
    items.sort(key=lambda item: place.get(item.path.stem, len(place)))


def pytest_collection_finish() -> None:
    # What is imported by now stays.
    gc.collect()
    gc.freeze()


@pytest.hookimpl(trylast=True)
def pytest_runtest_teardown(item: pytest.Item, nextitem: pytest.Item | None) -> None:
    if nextitem is None or nextitem.path != item.path:
        gc.collect()


@pytest.fixture
def cli(capsys: pytest.CaptureFixture[str]) -> Call:
    """Run ``lmmprune`` with some arguments in this process: its exit code, stdout and stderr."""
    from lmmprune.compiler.cli import main

    def call(*arguments: object) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as caught:
            main([str(argument) for argument in arguments])
        out, err = capsys.readouterr()
        assert isinstance(caught.value.code, int)
        return caught.value.code, out, err

    return call


@pytest.fixture
def refusal(cli: Call, tmp_path: Path) -> Callable[..., str]:
    """Run ``lmmprune`` with a mistake in its arguments: the one line that it says; no file comes, goes or changes."""

    def files() -> dict[Path, bytes | None]:
        return {path: path.read_bytes() if path.is_file() else None for path in tmp_path.rglob("*")}

    def call(*arguments: object) -> str:
        before = files()
        code, out, err = cli(*arguments)
        assert (code, out) == (2, ""), err
        assert err.count("\n") == 1
        assert err.startswith("lmmprune: error: ")
        assert files() == before
        return err

    return call
