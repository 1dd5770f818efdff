"""What worker processes do in the tests of a study; a module of its own, so that they can import it by its name."""

from __future__ import annotations

import os
import signal
import time

from lmmprune.compiler.study.grid import UNPRUNED
from lmmprune.compiler.study.run_cell import Job
from lmmprune.compiler.study.write_file import write_text
from lmmprune.errors import InputError


def sleep(job: Job) -> str:
    write_text(job.folder.path / f"{os.getpid()}", "")
    time.sleep(60)
    return job.cell.name


def die(job: Job) -> str:
    os.kill(os.getpid(), signal.SIGKILL)
    return job.cell.name


def refuse(job: Job) -> str:
    if job.cell == UNPRUNED:
        raise InputError("not this one")
    return sleep(job)
