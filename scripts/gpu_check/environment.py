"""Stage ``env``: driver, GPU, packages, and which of them load."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from typing import Any

from gpu_check.settings import Save, Settings
from lmmprune.compiler.inspect.doctor import diagnose

# Module -> what shows that it works; each is tried in a process of its own, where it may crash.
PROBES = {
    "torch": "import torch as m; e = [m.cuda.is_available(), m.version.cuda]",
    "onnxruntime": "import onnxruntime as m; e = m.get_available_providers()",
    "tensorrt": "import tensorrt as m; m.Builder; e = ''",
    "tensorrt_rtx": "import tensorrt_rtx as m; m.Builder; e = ''",
    "cuda.bindings": "import cuda.bindings as m; from cuda.bindings import runtime as r; "
    "e = [int(r.cudaGetDeviceCount()[0]), r.cudaDriverGetVersion()[1], r.cudaRuntimeGetVersion()[1]]",
}


def look(settings: Settings, save: Save) -> dict[str, Any]:
    """Return the facts of the machine."""
    data: dict[str, Any] = {"modules": {}, "nvidia_smi": nvidia_smi()}
    save(data)
    for module, code in PROBES.items():
        data["modules"][module] = probe(code)
        save(data)
    diagnosis = diagnose()
    data["machine"] = dataclasses.asdict(diagnosis.machine)
    data["targets"] = {verdict.target: dataclasses.asdict(verdict) for verdict in diagnosis.verdicts}
    data["warnings"] = list(diagnosis.warnings)
    return data


def probe(code: str) -> dict[str, Any]:
    """Return version and details of a module, or why it doesn't load."""
    script = f"{code}\nimport json; print(json.dumps([m.__version__, e]))"
    try:
        done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120, check=False)
    except subprocess.TimeoutExpired:
        return {"works": False, "reason": "importing it takes more than 120 s"}
    if done.returncode:
        return {"works": False, "reason": (done.stderr.strip().splitlines() or ["it crashes"])[-1]}
    return {"works": True, "found": done.stdout.strip().splitlines()[-1]}


def nvidia_smi() -> str | None:
    """Return what the driver's tool prints, None without it."""
    try:
        return subprocess.run(["nvidia-smi"], capture_output=True, text=True, timeout=30, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return None
