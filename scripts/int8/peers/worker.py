"""Run one tool in this process, which may be another Python's, and measure what it takes."""

from __future__ import annotations

import importlib
import json
import subprocess
import time
from pathlib import Path
from typing import Any

from peers.tools import TOOLS, Tool

_MODULES = {
    "lmmprune": "by_lmmprune",
    "onnxruntime": "by_onnxruntime",
    "ModelOpt": "by_modelopt",
    "neural-compressor": "by_neural_compressor",
}
# Their imports alone take hundreds of megabytes; the others' count as part of the work.
_HEAVY = {"ModelOpt": "modelopt.onnx.quantization", "neural-compressor": "neural_compressor"}
_ENTRY = Path(__file__).parents[1] / "int8_libraries.py"


def run_apart(tool: Tool, python: str, work: Path, folder: Path) -> dict[str, Any]:
    """Run a tool under a Python and return its result; without one, ``note`` says why."""
    command = [python, str(_ENTRY), "--worker", tool.name, "--work", str(work), "--folder", str(folder)]
    ran = subprocess.run(command, capture_output=True, text=True, check=False, cwd=folder)  # ourselves
    (folder / "log.txt").write_text(ran.stdout + ran.stderr, encoding="utf-8")
    if not (folder / "result.json").exists():
        last = (ran.stderr.strip().splitlines() or ["no output"])[-1]
        return {"note": f"stopped with code {ran.returncode}: {last[:200]}", "parts": {}}
    result: dict[str, Any] = json.loads((folder / "result.json").read_text(encoding="utf-8"))
    return result


def work_on(name: str, work: Path, folder: Path) -> None:
    """Run one tool here and write what came of it."""
    tool = TOOLS[name]
    if tool.library in _HEAVY:
        importlib.import_module(_HEAVY[tool.library])
    before, start = _peak_mb(), time.perf_counter()
    rows: dict[str, Any] = {}

    def done(part: str, note: str) -> None:
        rows[part] = {"note": note, "made": (folder / f"{part}.onnx").exists()}

    importlib.import_module(f"peers.{_MODULES[tool.library]}").run(work, folder, tool, done)
    result = {
        "parts": rows,
        "seconds": time.perf_counter() - start,
        "peak_mb": _peak_mb(),
        "peak_mb_before": before,
    }
    (folder / "result.json").write_text(json.dumps(result), encoding="utf-8")


def _peak_mb() -> float:
    """Return this process's own peak; ``ru_maxrss`` would count what its parent held before exec."""
    line = next(row for row in Path("/proc/self/status").read_text().splitlines() if row.startswith("VmHWM"))
    return int(line.split()[1]) / 1024
