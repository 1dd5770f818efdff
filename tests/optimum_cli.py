"""Towers as ``optimum-cli export onnx`` itself writes them; its packages live in a folder of their own."""

from __future__ import annotations

import functools
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from foreign_towers import tower
from safetensors.torch import save_file

HOME = Path(sys.prefix) / "optimum"
_COMMAND = "from optimum.commands.optimum_cli import main; main()"


@functools.cache
def exported_by_optimum(kind: str) -> bytes:
    """Return the ONNX file of ``foreign_towers.tower(kind)``; its pictures have any number and size."""
    assert HOME.is_dir(), (
        f"no optimum-cli: pip install --no-deps --target {HOME} -r {Path(__file__).parent / 'optimum-requirements.txt'}"
    )
    model = tower(kind)
    # transformers 4 has one level more.
    weights = {f"vision_model.{name}": tensor.contiguous() for name, tensor in model.state_dict().items()}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        model.config.architectures = [type(model).__name__]
        model.config.save_pretrained(folder / "model")
        save_file(weights, folder / "model" / "model.safetensors", metadata={"format": "pt"})
        words = [
            "export",
            "onnx",
            "--model",
            str(folder / "model"),
            "--task",
            "feature-extraction",
            str(folder / "out"),
        ]
        done = subprocess.run(
            [sys.executable, "-c", _COMMAND, *words],
            env={**os.environ, "PYTHONPATH": str(HOME)},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return (folder / "out" / "model.onnx").read_bytes()
