"""Write the model repository of a bundle for Triton Inference Server.

DIR/README.md, client.py                 how to start it, how to ask
DIR/preprocess/  config.pbtxt, 1/        picture -> pixel values (Python)
DIR/vision/      config.pbtxt, 1/        the bundle's graphs (onnxruntime, tensorrt or python)
DIR/decoder/, DIR/bucket_K/, DIR/selection/
DIR/lmmprune/    config.pbtxt, 1/        picture and question -> text (Python, calls the others)
DIR/build_engines.sh, */graph/           where TensorRT engines are yet to be built
"""

from __future__ import annotations

import os
import shlex
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from lmmprune.compiler.build import trtexec
from lmmprune.compiler.build.engine_spec import engine_spec
from lmmprune.compiler.build.read_graph import check_graphs
from lmmprune.compiler.bundle import engines
from lmmprune.compiler.bundle.bundle import ASSETS, PREPROCESSOR, Bundle
from lmmprune.compiler.bundle.manifest import FILENAME
from lmmprune.compiler.bundle.replace import REPOSITORY, check_apart, check_directory
from lmmprune.compiler.bundle.workplace import replace_directory
from lmmprune.compiler.targets.targets import resolve
from lmmprune.compiler.triton.models import ANSWER, DEFAULT, PLAN, PREPROCESS, VERSION, Backend, backend_of, configs
from lmmprune.compiler.triton.readme import readme
from lmmprune.compiler.triton.text_format import to_text
from lmmprune.errors import InputError

GRAPH = "graph"
BUILD = "build_engines.sh"
_CLIENT = "client.py"


@dataclass(frozen=True, kw_only=True)
class Repository:
    """What was written: the backend of the graphs, the models, and whether TensorRT engines are yet to be built."""

    path: Path
    backend: Backend
    models: tuple[str, ...]
    engines_missing: bool

    @property
    def line(self) -> str:
        """What a person wants to know of it."""
        then = (
            f"; build the engines on the GPU that will serve: sh '{self.path / BUILD}'" if self.engines_missing else ""
        )
        return f"Triton model repository in '{self.path}' ({', '.join(self.models)}; {self.backend} backend){then}"


def check_engines(
    bundle: Bundle, *, target: str | None, arch: str | None, components: Sequence[str], max_prompt: int | None
) -> None:
    """Refuse options of ``build`` whose engines a repository can't take.

    Raises:
        InputError: Engines for another target than the bundle's, or not for every graph.
    """
    own = bundle.manifest.target
    if target is not None and resolve(target).name != own:
        raise InputError(
            f"--triton serves engines of the bundle's own target '{own}', not of '{target}': export for it"
        )
    if components and set(components) != set(bundle.manifest.graphs):
        raise InputError("--triton needs an engine of every graph: leave --component out")
    for option, value in (("--arch", arch), ("--max-prompt", max_prompt)):
        if value is not None and not resolve(own).compiled:
            raise InputError(f"{option} is for engines, '{own}' has none: leave it out")


def check_destination(destination: Path, bundle: Path, *, force: bool = False) -> Path:
    """Return the absolute path of a repository to be.

    Args:
        destination: Where it shall go.
        bundle: The bundle that it is made from; it may not exist yet.
        force: Whether a repository that is there may go.

    Raises:
        InputError: Something is there already, or one would lie inside of the other.
    """
    if any(letter.isspace() for letter in str(destination.resolve())):
        raise InputError(
            f"--triton '{destination}': Triton's Python backend serves nothing from a path with a space in it, and two"
            " of the repository's models need it: give another place"
        )
    check_apart(destination, bundle, option="--triton")
    check_directory(destination, REPOSITORY, force=force, option="--triton")
    return destination.resolve()


def check_cache(capacity: int | None) -> None:
    """Refuse a key/value cache of fixed length, given by its length.

    Raises:
        InputError: Triton gives every output memory of its own; such a cache would be copied whole with every token.
    """
    if capacity is not None:
        raise InputError(
            f"--triton: a key/value cache of fixed length ({capacity} tokens) is updated in place, which Triton can't "
            "do between its models: export without --static-cache"
        )


def write_repository(
    bundle: Bundle, destination: Path, *, backend: str = DEFAULT, arch: str | None = None, force: bool = False
) -> Repository:
    """Write a model repository that serves a bundle; all of it appears, or nothing.

    Graphs and weights are copies; engines are hard links to the bundle's where the file system allows it.

    Args:
        bundle: What to serve.
        destination: Directory of the repository: absent or empty, with ``force`` also a repository.
        backend: ``python`` runs the graphs inside of Python models; ``default``: the target's own backend.
        arch: GPU architecture whose engines of the bundle are taken; None: a script that builds them is written.
        force: Replace a repository that is there, whose configuration may have been edited.

    Raises:
        InputError: The destination isn't empty or can't be written, or the bundle's cache has a fixed length.
        TargetError: Triton can't serve the bundle's target that way.
        BundleError: An engine is missing or stale; or a graph is damaged, or isn't what the manifest says.
    """
    destination = destination.resolve()

    def check() -> None:
        check_destination(destination, bundle.path, force=force)

    check()
    manifest = bundle.manifest
    check_cache(manifest.cache.capacity)
    chosen = backend_of(resolve(manifest.target), manifest.precision.dtype, backend)
    models = configs(manifest, chosen)
    missing = chosen == "tensorrt" and arch is None
    check_graphs(bundle)
    with replace_directory(destination, check) as root:
        for name, config in models.items():
            (root / name / VERSION).mkdir(parents=True)
            (root / name / "config.pbtxt").write_text(to_text(config), encoding="utf-8")
        _copy(bundle.file(PREPROCESSOR), root / PREPROCESS / VERSION)
        for asset in ASSETS:
            _copy(bundle.file(asset), root / ANSWER / VERSION)
        _copy(bundle.path / FILENAME, root / ANSWER / VERSION)
        _write_model(root / PREPROCESS, "preprocess_model")
        _write_model(root / ANSWER, "answer_model")
        for component in manifest.graphs:
            if chosen == "tensorrt" and arch is not None:
                plan = engines.open_engine(bundle, manifest.target, arch, component)
                _link(plan, root / component / VERSION / PLAN)
                continue
            folder = root / component / (GRAPH if missing else VERSION)
            folder.mkdir(exist_ok=True)
            for file in engines.sources(bundle, component):
                _copy(bundle.file(file), folder)
            if chosen == "python":
                _write_model(root / component, "graph_model")
        if missing:
            (root / BUILD).write_text(_build_script(bundle), encoding="utf-8", newline="\n")
        shutil.copyfile(Path(__file__).with_name(_CLIENT), root / _CLIENT)
        (root / "README.md").write_text(readme(manifest, chosen, missing=missing), encoding="utf-8")
    return Repository(path=destination, backend=chosen, models=tuple(models), engines_missing=missing)


def _write_model(folder: Path, module: str) -> None:
    """Write the file that the Python backend imports; the code is lmmprune's own."""
    text = (
        f'"""Runs lmmprune\'s {module}; the server\'s Python needs lmmprune (see README.md)."""\n\n'
        f"from lmmprune.compiler.triton.{module} import TritonPythonModel\n\n"
        '__all__ = ["TritonPythonModel"]\n'
    )
    (folder / VERSION / "model.py").write_text(text, encoding="utf-8")


def _build_script(bundle: Bundle) -> str:
    target = resolve(bundle.manifest.target)
    lines = [
        "#!/bin/sh",
        f"# Builds the engines with trtexec. Run it on the GPU that will serve, with {target.summary}",
        "# as it is in the server's container; TensorRT's container of the same month has both.",
        "set -eu",
        'cd "$(dirname "$0")"',
        trtexec.find_program(target),
    ]
    spec = engine_spec(bundle.manifest, target)
    for component, graph in bundle.manifest.graphs.items():
        folder, plan = Path(component), f"{component}/{VERSION}/{PLAN}"
        profiles = spec.profiles[component]
        words = trtexec.build_command(
            target, folder / GRAPH / graph.file, Path(f"{plan}.part"), profiles, options=[*spec.flags()]
        )
        lines.append(f'"$trtexec" {shlex.join(words[1:])}')
        lines.append(f"mv {plan}.part {plan}")
    return "\n".join(lines) + "\n"


def _copy(source: Path, folder: Path) -> None:
    # No hard link: onnx's checker refuses weights with several names (seen in 1.23), in the bundle too.
    shutil.copyfile(source, folder / source.name)


def _link(source: Path, destination: Path) -> None:
    try:
        os.link(source, destination)
    except OSError:  # another file system, or one without hard links; a full disk shows in the copy
        shutil.copyfile(source, destination)
