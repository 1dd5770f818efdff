"""The stages, and how one is run: in a process of its own, with a time limit, keeping what it found before it broke."""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import Any

from gpu_check.settings import Settings
from lmmprune.errors import InputError, LmmpruneError, suggestion

# Name -> (module of this package, function). The modules import what they measure with.
STAGES: dict[str, tuple[str, str]] = {
    "env": ("environment", "look"),
    "cuda": ("driver", "check"),
    "peak": ("peak", "measure"),
    "torch-sdpa": ("torch_layers", "sdpa"),
    "torch-compile": ("torch_layers", "compiled"),
    **{f"{backend}-tiny": ("tiny", "check") for backend in ("ort", "rtx", "trt", "cpu")},
    **{f"{backend}-7b": ("layers", "check") for backend in ("ort", "rtx", "trt", "cpu")},
}
DEFAULT = tuple(name for name in STAGES if not name.startswith("cpu-"))


def select(text: str | None) -> list[str]:
    """Return the stages of ``env,rtx,ort-7b``: names, or what stands before their hyphen; None: all but ``cpu``'s.

    Raises:
        InputError: One isn't known.
    """
    if text is None:
        return list(DEFAULT)
    chosen: list[str] = []
    for word in text.split(","):
        found = [name for name in STAGES if word in (name, name.split("-")[0])]
        if not found:
            raise InputError(f"no stage '{word}'{suggestion(word, STAGES)}")
        chosen += found
    return list(dict.fromkeys(chosen))


def run(name: str, settings: Settings, result: Path) -> None:
    """Run a stage in this process; ``result`` holds what it has found whenever it is read.

    A refusal of lmmprune is a result; any other exception ends the process.
    """
    module, function = STAGES[name]

    def save(data: dict[str, Any]) -> None:
        write_json(result, {"data": data})

    try:
        stage = getattr(importlib.import_module(f"gpu_check.{module}"), function)
        if module in ("tiny", "layers"):
            stage = partial(stage, backend=name.split("-")[0])
        write_json(result, {"status": "ok", "data": stage(settings, save)})
    except LmmpruneError as error:
        before = read_json(result)
        write_json(result, {**before, "status": "unavailable", "reason": str(error)})


def run_apart(command: Iterable[str], result: Path, limit: float) -> dict[str, Any]:
    """Run a stage's process and return its entry: status, seconds, reason, and the data that it left.

    ``status`` is ``ok``, ``unavailable`` (this machine can't), ``failed`` (it broke) or ``timeout``.
    """
    result.unlink(missing_ok=True)
    start = time.perf_counter()
    reason = ""
    with subprocess.Popen(
        list(command), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, start_new_session=True
    ) as process:
        try:
            _, errors = process.communicate(timeout=limit)
            status = "failed" if process.returncode else "ok"
            if process.returncode:
                lines = errors.strip().splitlines()
                reason = lines[-1] if lines else f"it ended with code {process.returncode}"
        except subprocess.TimeoutExpired:
            # With its children: a compiler's workers would go on.
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            _, errors = process.communicate()
            status, reason = "timeout", f"it took more than {limit:.0f} s"
    entry = {"status": status, "reason": reason, **read_json(result), "seconds": time.perf_counter() - start}
    if status in ("failed", "timeout"):
        entry |= {"status": status, "reason": reason, "stderr": errors[-4000:]}
    return entry


def command_of(script: Path, name: str, settings: Settings, result: Path) -> list[str]:
    """Return the command line that runs one stage."""
    words = [sys.executable, str(script), "--work", str(settings.work), "--layers", str(settings.layers)]
    return [*words, *(["--quick"] if settings.quick else []), "--one", name, "--result", str(result)]


def read_json(path: Path) -> dict[str, Any]:
    """Return what a stage wrote, nothing if it wrote nothing."""
    try:
        found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    return found


def write_json(path: Path, data: dict[str, Any]) -> None:
    """Write a file that is whole whenever it is read."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_text(json.dumps(data, indent=1) + "\n", encoding="utf-8")
    temporary.replace(path)
