"""Make a folder that a board is deployed from: the bundle, the plan, the run-time, and how to go on there."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path

from packaging.specifiers import SpecifierSet
from packaging.version import Version

from lmmprune.compiler.build.engine_spec import WORKSPACE
from lmmprune.compiler.build.memory import most_builder_bytes
from lmmprune.compiler.build.options import BuildOptions
from lmmprune.compiler.bundle.bundle import Bundle
from lmmprune.compiler.bundle.manifest import FILENAME
from lmmprune.compiler.bundle.replace import BOARD, check_apart, check_directory
from lmmprune.compiler.bundle.write_folder import place, write_folder, write_sums
from lmmprune.compiler.deploy.memory_plan import GIB, SYSTEM, MemoryPlan, check_fits, plan_memory
from lmmprune.compiler.deploy.stages import QUESTION
from lmmprune.compiler.deploy.variant import Variant, names_of, variant_of
from lmmprune.compiler.deploy.wheel import write_wheel
from lmmprune.compiler.deploy.write_plan import POWER, README, SCRIPT, fill_plan
from lmmprune.compiler.targets.boards import JetPack, jetpack
from lmmprune.compiler.targets.packages import BASE, packages
from lmmprune.compiler.targets.target import Target
from lmmprune.compiler.targets.targets import resolve

REQUIREMENTS, MEMORY = "requirements.txt", "memory.json"


@dataclass(frozen=True, kw_only=True)
class Deployed:
    """What was made: the folder, its target and board, the memory plan, and what the builder takes before that.

    ``lack`` says why a board of the given memory may be too small to build on; None: it isn't, or none was given.
    """

    folder: Path
    target: Target
    arch: str
    memory: MemoryPlan
    building: int
    lack: str | None


def deploy(
    path: Path | str,
    board: str,
    output: Path,
    *,
    ram: int | None = None,
    max_prompt: int | None = None,
    workspace: int = WORKSPACE,
    system: int = SYSTEM,
    force: bool = False,
) -> Deployed:
    """Write the folder of one bundle for one kind of board.

    Args:
        path: A bundle that suits the board's TensorRT.
        board: Alias of a target that names a board, such as ``jetson-orin-jp6``.
        output: The folder to be.
        ram: Memory of the board in bytes, which must hold everything; None: not checked.
        max_prompt: Longest prompt in tokens (None: as many as the model has positions).
        workspace: Scratch memory in bytes that a kernel may take.
        system: Bytes that the board keeps for itself.
        force: Replace such a folder that is there.

    Raises:
        BundleError: The bundle is missing or broken.
        InputError: The folder can't be written.
        MissingExtraError: onnx-ir isn't installed.
        TargetError: The board is unknown or too small, or the bundle doesn't suit it.
    """
    software = jetpack(board)
    target = resolve(board)
    bundle = Bundle.open(path)
    check_apart(output, bundle.path)
    check_directory(output, BOARD, force=force)
    name = next(iter(names_of([path])))
    variant = variant_of(name, bundle, target, QUESTION, max_prompt, BuildOptions(workspace=workspace))
    memory = plan_memory(bundle, target, max_prompt=max_prompt, workspace=workspace, system=system)
    if ram is not None:
        check_fits(memory, ram, bundle, target, workspace=workspace, system=system)
    arch = target.boards[board]
    building = most_builder_bytes(bundle)
    lack = None if ram is None else _lacking(bundle, building, ram, system)
    with write_folder(Path(output), BOARD, force=force) as folder:
        _, known = fill_plan(folder, target, [variant], arch=arch)
        for file, entry in bundle.manifest.files.items():
            if not (folder / name / file).exists():
                place(bundle.file(file), folder / name / file)
            known[f"{name}/{file}"] = entry.sha256
        place(bundle.path / FILENAME, folder / name / FILENAME)
        wheel = write_wheel(folder)
        (folder / REQUIREMENTS).write_text("".join(f"{line}\n" for line in requirements(software)), encoding="utf-8")
        (folder / MEMORY).write_text(json.dumps(memory.as_dict(), indent=2) + "\n", encoding="utf-8")
        text = _readme(variant, board, software, target, wheel.name, max_prompt, workspace, lack or _need(building))
        (folder / README).write_text(text, encoding="utf-8")
        write_sums(folder, known=known)
    return Deployed(folder=Path(output), target=target, arch=arch, memory=memory, building=building, lack=lack)


def _need(building: int) -> str:
    return (
        f"building takes about {building / GIB:.1f} GiB of the board's memory (three times the largest graph's weights)"
    )


def _lacking(bundle: Bundle, building: int, ram: int, system: int) -> str | None:
    """Return a warning; no refusal, because the factor was measured of TensorRT-RTX only, and swap helps."""
    if building + system <= ram:
        return None
    bits = bundle.manifest.precision.smaller
    smaller = "" if bits is None else f", or export with --int{bits}"
    return f"{_need(building)}, the board has {max(0, ram - system) / GIB:.1f} GiB beside its system: add swap{smaller}"


def requirements(software: JetPack) -> list[str]:
    """Return the packages that the run-time needs on a board, without torch and transformers."""
    found = packages(software.python)
    # TensorRT's own module comes with JetPack; CUDA's must be of the board's CUDA.
    cuda = next(package for package in found["gpu"] if package.name.startswith("cuda-"))
    others = [package for package in found["gpu"] if package.name in ("ml-dtypes", "onnx-ir")]
    major = int(software.cuda.split(".")[0])
    lower = [Version(each.version) for each in SpecifierSet(cuda.wanted) if each.operator == ">="]
    least = max(Version(f"{major}.0"), *lower)
    base = (f"{package.name}{package.wanted}" for package in (*found[BASE], *others))
    return [*base, f"{cuda.name}>={least},<{major + 1}"]


def _readme(
    variant: Variant,
    board: str,
    software: JetPack,
    target: Target,
    wheel: str,
    max_prompt: int | None,
    workspace: int,
    building: str,
) -> str:
    name = variant.name
    limits = "" if max_prompt is None else f" --max-prompt {max_prompt}"
    return f"""# {name} on {board}

For JetPack {software.release}: {target.requires}, CUDA {software.cuda}, Python {software.python}.

1. Check that the copy is whole:

       sha256sum -c --quiet SHA256SUMS

2. TensorRT and its Python module come with JetPack; the rest goes into an environment that sees them:

       sudo apt install nvidia-jetpack python3-venv
       python3 -m venv --system-site-packages ~/lmmprune
       ~/lmmprune/bin/pip install -r {REQUIREMENTS} ./{wheel}
       ~/lmmprune/bin/lmmprune doctor

3. Build the engines on the board, in its mode of full power, so that kernels are chosen for it. The number of that mode
   differs from board to board, so the script looks for its name, and checks and says what is set:

       sudo sh {POWER}
       ~/lmmprune/bin/lmmprune build {name} --target {board}{limits} --workspace {workspace // 2**20}MiB

   {building[0].upper()}{building[1:]}.

4. Ask:

       ~/lmmprune/bin/lmmprune run {name} --image photo.jpg --prompt 'What is shown?' --stats

Without Python, `sh {SCRIPT}` builds and times the engines with trtexec alone (`sh {SCRIPT} -h`); its result.json, with
the power mode, clocks and temperatures before and after, is shown by `lmmprune bench --import result.json` on any
machine. What the board's memory is taken by: {MEMORY}.
"""


def as_dict(made: Deployed) -> dict[str, object]:
    """Return what was made as plain JSON types."""
    return {
        "folder": str(made.folder),
        "target": made.target.name,
        "arch": made.arch,
        "memory": made.memory.as_dict(),
        "building": {"bytes": made.building, "warning": made.lack},
        "boards": [dataclasses.asdict(board) for board in made.memory.boards(made.arch)],
    }
