"""The folder of a run: what decides its measurements, and who may write into it."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path

from lmmprune.compiler.bundle.lock import only_writer
from lmmprune.compiler.data.questions import Question
from lmmprune.compiler.export.request import Request
from lmmprune.compiler.study.folder import write_text
from lmmprune.compiler.study.settings import Settings, differences, identity
from lmmprune.errors import InputError

TUNE = "tune.json"
_FORMAT = 1


def run_identity(
    template: Request, tuning: Sequence[Question], heldout: Sequence[Question], **more: object
) -> dict[str, str]:
    """Return what must be equal for measurements to be used again.

    Args:
        template: Of what model bundles are made.
        tuning: Examples that decide.
        heldout: Examples that are reported on.
        more: What else does, by name.
    """
    from lmmprune.models.source import resolve

    source = resolve(template.model, weights=template.weights, layers=template.layers)
    settings = Settings(
        model=template.model,
        data="",
        limit=None,
        max_new_tokens=0,
        target=template.target,
        calibration=template.calibration,
        calibration_samples=template.calibration_samples,
    )
    found = identity(settings, source.directory, [*tuning, *heldout])
    own = {"tuned on": len(tuning), "weights": template.weights, "layers": template.layers}
    return found | {name: str(value) for name, value in {**own, **more}.items()}


@contextlib.contextmanager
def open_run(path: Path, about: dict[str, str]) -> Iterator[Path]:
    """Open the folder, new or to go on with; one process at a time.

    Args:
        path: The folder.
        about: As ``run_identity`` says.

    Raises:
        InputError: It holds something else, or another run.
    """
    if path.exists() and not path.is_dir():
        raise InputError(f"'{path}' is a file: give a directory")
    if path.is_dir() and any(entry.name != ".lock" for entry in path.iterdir()):
        try:
            earlier = json.loads((path / TUNE).read_text(encoding="utf-8"))
            there = {str(name): str(value) for name, value in earlier["identity"].items()}
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise InputError(f"'{path}' isn't empty and isn't of 'lmmprune tune': give another folder") from error
        if differ := list(differences(there, about)):
            raise InputError(f"'{path}' holds another run, which differs in {', '.join(differ)}: give another folder")
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"can't write into '{path}' ({error.strerror}): give another folder") from error
    with only_writer(path / ".lock", f"another process works in '{path}': wait for it, or give another folder"):
        write_text(path / TUNE, json.dumps({"format": _FORMAT, "identity": about}, indent=1) + "\n")
        yield path
