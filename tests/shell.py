"""Shell scripts that we write, before ShellCheck."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path


def assert_clean(script: Path) -> None:
    """Fail with what ShellCheck says."""
    beside = Path(sys.executable).parent / "shellcheck"
    program = str(beside) if beside.exists() else shutil.which("shellcheck")
    assert program, "install the dev extra: it brings shellcheck"
    done = subprocess.run([program, str(script)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
