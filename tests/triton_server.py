"""NVIDIA's Triton server, as the package nvidia-pytriton carries it, on a repository of ours; and a client beside it.

The server and what it needs live in a folder of their own (triton-requirements.txt says why). The Python models run in
this interpreter's version and find NumPy 1 there, lmmprune in this tree, and everything else where the tests have it.
"""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import platform
import shutil
import socket
import subprocess
import sys
import sysconfig
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

TESTS = Path(__file__).parent
HOME = Path(sys.prefix) / "triton"
_SERVER = HOME / "pytriton" / "tritonserver"
_START_SECONDS, _STOP_SECONDS = 60, 20
_STOPPING: list[subprocess.Popen[bytes]] = []


def need_triton() -> None:
    """Skip where the package has no server; fail where it only wasn't installed."""
    if (sys.platform, platform.machine()) != ("linux", "x86_64"):
        pytest.skip("nvidia-pytriton carries a server for Linux on x86-64 only")
    assert _SERVER.is_dir(), (
        f"no Triton server: pip install --no-deps --target {HOME} -r {TESTS / 'triton-requirements.txt'}"
    )


def in_client(script: str, *arguments: object, payload: object = None) -> Any:
    """Run one of the scripts beside this file with Triton's client packages; return the JSON that it prints."""
    done = subprocess.run(
        [sys.executable, str(TESTS / script), *map(str, arguments)],
        env={**os.environ, "PYTHONPATH": str(HOME)},
        input=json.dumps(payload),
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@contextlib.contextmanager
def serving(repository: Path, scratch: Path) -> Iterator[str]:
    """Serve a repository; yield host and port of its gRPC service. The server's log is ``scratch/log``."""
    need_triton()
    http, grpc = _free_ports()
    command = [_SERVER / "bin" / "tritonserver", "--model-repository", repository]
    command += ["--backend-directory", _backends(scratch), "--http-address", "127.0.0.1", "--http-port", http]
    command += [
        "--grpc-address",
        "127.0.0.1",
        "--grpc-port",
        grpc,
        "--allow-metrics",
        "0",
        "--exit-timeout-secs",
        str(_STOP_SECONDS),
    ]
    libraries = [sysconfig.get_config_var("LIBDIR"), str(HOME / "nvidia_pytriton.libs")]
    environment = {
        **os.environ,
        "LD_LIBRARY_PATH": os.pathsep.join(libraries),
        "PATH": os.pathsep.join([str(_python(scratch)), os.environ["PATH"]]),
    }
    with (scratch / "log").open("wb") as log:
        process = subprocess.Popen([str(word) for word in command], env=environment, stdout=log, stderr=log)
        try:
            _wait(f"http://127.0.0.1:{http}/v2/health/ready", process, scratch / "log")
            yield f"127.0.0.1:{grpc}"
            assert process.poll() is None, (scratch / "log").read_text()[-2000:]
        finally:
            # Its models leave one after the other, more than a second each: nobody has to wait for that now.
            process.terminate()
            _STOPPING.append(process)


@atexit.register
def _stop() -> None:
    """Wait until every server has given back its shared memory; stop by force what hangs."""
    for process in _STOPPING:
        try:
            process.wait(_STOP_SECONDS + 5)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _backends(scratch: Path) -> Path:
    """Return a folder with the Python backend and the stub of this interpreter's version beside it."""
    folder = scratch / "backends" / "python"
    folder.mkdir(parents=True)
    for file in (_SERVER / "backends" / "python").iterdir():
        (folder / file.name).symlink_to(file)
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    stub = folder / "triton_python_backend_stub"
    stub.unlink(missing_ok=True)
    shutil.copyfile(_SERVER / "python_backend_stubs" / version / stub.name, stub)
    for program in (stub, _SERVER / "bin" / "tritonserver"):
        program.chmod(0o755)
    return folder.parent


def _python(scratch: Path) -> Path:
    """Return the programs of a virtual environment for the models: the stub finds it by PATH, not by PYTHONPATH."""
    home = scratch / "python"
    packages = home / "lib" / f"python{sys.version_info.major}.{sys.version_info.minor}" / "site-packages"
    packages.mkdir(parents=True)
    (home / "bin").mkdir()
    (home / "bin" / "python3").symlink_to(Path(sys.executable).resolve())
    (home / "pyvenv.cfg").write_text(f"home = {Path(sys.executable).resolve().parent}\n")
    places = (HOME, TESTS.parent / "src", sysconfig.get_paths()["purelib"])
    (packages / "places.pth").write_text("".join(f"{place}\n" for place in places))
    return home / "bin"


def _free_ports() -> Sequence[int]:
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(2)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [int(one.getsockname()[1]) for one in sockets]


def _wait(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    end = time.monotonic() + _START_SECONDS
    while process.poll() is None and time.monotonic() < end:
        with contextlib.suppress(urllib.error.URLError, ConnectionError), urllib.request.urlopen(url, timeout=1):
            return
        time.sleep(0.1)
    raise AssertionError(f"the server isn't ready:\n{log.read_text()[-4000:]}")
