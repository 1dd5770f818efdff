"""Streams that are closed or full, signals at bad moments, locales, empty paths: one line each, nothing left behind."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
import runtime_fixtures as fx
from PIL import Image

from lmmprune.compiler.bundle.atomic import replace_file
from lmmprune.compiler.cli.signals import Signals
from lmmprune.compiler.runtime.open_picture import FORMATS, decode_image, load_image
from lmmprune.compiler.runtime.runtime import Runtime
from lmmprune.errors import InputError

Cli = Callable[..., tuple[int, str, str]]


def run(*words: object, shell: str = "", **environment: str) -> subprocess.CompletedProcess[str]:
    """Run ``lmmprune`` in a process of its own; ``shell`` follows its words."""
    command = " ".join(["exec", f"'{sys.executable}' -m lmmprune", *(f"'{word}'" for word in words), shell])
    return subprocess.run(
        ["sh", "-c", command], capture_output=True, text=True, check=False, env={**os.environ, **environment}
    )


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return fx.make_bundle(tmp_path_factory.mktemp("made") / "out", keep=4).path


def test_a_full_stdout_is_one_line() -> None:
    done = run("targets", shell="> /dev/full")
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "No space left on device" in done.stderr


def test_a_closed_stdout_is_no_failure_and_no_file_gets_its_place(bundle: Path, tmp_path: Path) -> None:
    done = run("inspect", bundle, shell=">&- 2>&-")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    done = run("inspect", tmp_path / "nowhere", "--json", shell=">&-")
    assert done.returncode == 2
    assert done.stderr.startswith("lmmprune: error: ")


def test_a_reader_who_has_gone_is_no_failure() -> None:
    done = run("targets", shell="| head -c 1 >/dev/null")
    assert done.stderr == ""


def test_letters_that_stdout_cant_encode_are_escaped(bundle: Path, tmp_path: Path) -> None:
    done = run("inspect", tmp_path / "ü", PYTHONIOENCODING="ascii")
    assert done.returncode == 2
    assert done.stderr.startswith(f"lmmprune: error: '{tmp_path}/\\xfc'")
    done = run("inspect", bundle, PYTHONIOENCODING="ascii")  # a table with lines
    assert done.returncode == 0, done.stderr


def test_a_locale_that_cant_name_a_path_is_named() -> None:
    done = run("inspect", "/tmp/ü", PYTHONUTF8="0", PYTHONCOERCECLOCALE="0", LC_ALL="POSIX")
    assert done.returncode == 2
    assert "set LC_ALL=C.UTF-8 or PYTHONUTF8=1" in done.stderr
    assert done.stderr.count("\n") == 1


def test_bytes_that_arent_letters_are_refused(cli: Cli) -> None:
    code, out, err = cli("inspect", "a\udcff")
    assert (code, out) == (2, "")
    assert "isn't valid UTF-8: rename what it names" in err


@pytest.mark.parametrize(
    "words",
    [
        ("inspect", "/nowhere"),
        ("run", "/nowhere", "--image", "x", "--prompt", "x"),
        ("export", "--model", "tiny-llava", "-o", ""),
        ("no-such-command",),
        ("targets", "--no-such-option"),
        ("build",),
    ],
)
def test_an_error_is_json_too(words: tuple[str, ...], cli: Cli) -> None:
    code, out, err = cli(*words, "--json")
    assert code == 2
    assert err == f"lmmprune: error: {json.loads(out)['error']}\n"


def test_an_empty_path_isnt_the_present_directory(cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    code, _, err = cli("export", "--model", "tiny-llava", "-o", "")
    assert code == 2
    assert "an empty name: give one" in err
    assert not any(tmp_path.iterdir())


def test_a_refusal_of_the_system_is_one_line(cli: Cli, bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def closed(self: Path, *_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied", str(self))

    monkeypatch.setattr(Path, "is_dir", closed)
    code, out, err = cli("inspect", bundle)
    assert (code, out) == (2, "")
    assert err.startswith(f"lmmprune: error: '{bundle}' can't be used (Permission denied): may you read it")
    assert err.count("\n") == 1


def test_onnxruntime_reports_to_nobody(bundle: Path, tmp_path: Path) -> None:
    """Where it does, it leaves the number of this machine in the cache folder."""
    picture = fx.save_picture(tmp_path / "p.png", 3)
    home = tmp_path / "home"
    home.mkdir()
    environment = {name: value for name, value in os.environ.items() if name != "ORT_DISABLE_TELEMETRY"}
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "lmmprune",
            "run",
            bundle,
            "--image",
            picture,
            "--prompt",
            "hi",
            "--max-new-tokens",
            "1",
        ],
        env={**environment, "HOME": str(home), "TMPDIR": str(home), "XDG_CACHE_HOME": ""},
        check=False,
        capture_output=True,
    )
    assert done.returncode == 0, done.stderr
    assert list(home.rglob("*")) == []


PROGRAM = """
import os, signal, sys
sys.argv = ["lmmprune", "targets"]
from lmmprune.compiler.cli import main, COMMANDS
import lmmprune.compiler.cli.targets as targets
def stop(*_, **__):
    os.kill(os.getpid(), signal.{number})
    {then}
targets.command.callback = stop
main()
"""


@pytest.mark.parametrize(
    ("number", "then", "code", "says"),
    [
        ("SIGINT", "import time; time.sleep(900)", 130, "interrupted; "),
        ("SIGTERM", "import time; time.sleep(900)", 143, "terminated; "),
        # What C code makes of it.
        ("SIGINT", "raise SystemError('initialization failed')", 130, "interrupted; "),
    ],
)
def test_signals_end_in_a_line(number: str, then: str, code: int, says: str) -> None:
    program = PROGRAM.format(number=number, then=then)
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (code, "")
    # click begins a new line, below the terminal's ^C.
    assert done.stderr.lstrip("\n").startswith(f"lmmprune: error: {says}")
    assert done.stderr.strip().count("\n") == 0


def test_an_interrupt_waits_for_an_import(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "slow_module.py").write_text(
        "import os, signal, time\nos.kill(os.getpid(), signal.SIGINT)\ntime.sleep(0.3)\nwhole = True\n"
    )
    program = "import lmmprune.compiler.cli.signals as s\nimport sys, time\n" + (
        "with s.remembered():\n"
        "    try:\n        import slow_module\n        time.sleep(900)\n"
        "    except KeyboardInterrupt:\n        print(slow_module.whole)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), *filter(None, sys.path)])},
    )
    assert done.stdout == "True\n", done.stderr


def test_a_second_interrupt_waits_for_nothing() -> None:
    signals = Signals()
    code = compile("signals.handle(2, sys._getframe())", "<frozen importlib._bootstrap>", "exec")
    before = signal.signal(signal.SIGALRM, signal.SIG_IGN)
    try:
        exec(code, {"signals": signals, "sys": sys})  # waits
        with pytest.raises(KeyboardInterrupt):
            exec(code, {"signals": signals, "sys": sys})
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def test_pictures_of_kinds_that_start_programs_arent_read(tmp_path: Path) -> None:
    (tmp_path / "p.png").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\nshowpage\n")
    with pytest.raises(InputError, match="isn't a picture that pillow can read"):
        load_image(tmp_path / "p.png")
    for kind in ("PNG", "WEBP", "TIFF", "BMP", "GIF", "JPEG", "PPM"):
        assert kind in FORMATS
        fx.picture(3).save(tmp_path / "p", format=kind)
        assert load_image(tmp_path / "p").size == (8, 8)
        assert decode_image((tmp_path / "p").read_bytes(), "p").size == (8, 8)
    Image.init()
    assert not {"EPS", "WMF", "PSD"} & {*FORMATS}


def test_a_pipe_is_written_to_as_it_is(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    read: list[bytes] = []
    reader = threading.Thread(target=lambda: read.append((tmp_path / "pipe").read_bytes()))
    reader.start()
    with replace_file(tmp_path / "pipe") as stream:
        stream.write(b"all")
    reader.join()
    assert read == [b"all"]
    assert os.listdir(tmp_path) == ["pipe"]


def test_a_drawing_on_a_full_disk_leaves_what_was_there(
    bundle: Path, tmp_path: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    picture, out = fx.save_picture(tmp_path / "p.png", 3), tmp_path / "out.png"
    out.write_bytes(b"old")

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    code, _, err = cli("show", bundle, "--image", picture, "-o", out, "--force")
    assert code == 2
    assert "No space left on device" in err
    assert out.read_bytes() == b"old"
    assert sorted(os.listdir(tmp_path)) == ["out.png", "p.png"]


def test_links_are_not_followed_by_writers(tmp_path: Path) -> None:
    (tmp_path / "precious").mkdir()
    (tmp_path / "precious" / "thesis").write_text("precious")
    (tmp_path / ".out.partial").symlink_to(tmp_path / "precious")
    with pytest.raises(InputError, match="isn't a directory of yours"):
        fx.make_bundle(tmp_path / "out")
    (tmp_path / ".out.partial").unlink()
    (tmp_path / ".out.lock").symlink_to(tmp_path / "precious" / "thesis")
    with pytest.raises(InputError, match="is a link"):
        fx.make_bundle(tmp_path / "out")
    assert (tmp_path / "precious" / "thesis").read_text() == "precious"


def test_a_device_is_no_place_for_a_graph(refusal: Callable[..., str], tmp_path: Path) -> None:
    (tmp_path / "in.onnx").write_bytes(b"x")
    os.mkfifo(tmp_path.parent / "pipe.onnx")
    said = refusal("rewrite", tmp_path / "in.onnx", "-o", tmp_path.parent / "pipe.onnx", "--ratio", "0.5", "--force")
    assert "is a device or a pipe: give the name of a file" in said


def test_triton_serves_nothing_with_a_space(refusal: Callable[..., str], bundle: Path, tmp_path: Path) -> None:
    assert "a path with a space in it" in refusal("build", bundle, "--triton", tmp_path / "a b")


def test_many_answers_in_threads_are_those_of_one(bundle: Path) -> None:
    """The cache is lent to one thread at a time; the answers are as long as it takes to meet."""
    runtime = Runtime(fx.Bundle.open(bundle), threads=1)
    pictures = [fx.picture(*range(number)) for number in range(4)]
    alone = [[*runtime.answer(picture, "what?", 12)] for picture in pictures]
    wrong: list[int] = []

    def ask(number: int) -> None:
        for _ in range(25):
            if [*runtime.answer(pictures[number], "what?", 12)] != alone[number]:
                wrong.append(number)

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
