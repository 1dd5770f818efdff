"""The folder of a run: what decides its measurements, and who may write into it."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from pathlib import Path

from lmmprune.compiler.bundle.replace import TUNING
from lmmprune.compiler.data.questions import Question
from lmmprune.compiler.export.request import Request
from lmmprune.compiler.study.record_folder import Record, open_record
from lmmprune.compiler.study.settings import Settings, identity

_RECORD = Record(file="tune.json", format=1, kind=TUNING, command="tune", temporary=(".*.tmp", "*/.*.tmp"))


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


def open_run(path: Path, about: dict[str, str], *, force: bool = False) -> contextlib.AbstractContextManager[Path]:
    """Open the folder, new or to go on with; one process at a time.

    Args:
        path: The folder.
        about: As ``run_identity`` says.
        force: Begin anew: what another run measured there is thrown away.

    Raises:
        InputError: It holds something else, or another run.
    """
    return open_record(path, _RECORD, about, force=force)
