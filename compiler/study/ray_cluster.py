"""Run jobs on a Ray cluster whose nodes share the folder."""

from __future__ import annotations

import logging
import socket
import subprocess
import sys
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from lmmprune.errors import InputError, LmmpruneError, require

_PATIENCE = 5.0  # seconds
Job = TypeVar("Job")


def check_ray(address: str) -> None:
    """Refuse, before anything is done, a cluster that can't be reached.

    Args:
        address: ``host:port`` of the head node, or ``auto`` for the cluster that this machine belongs to.

    Raises:
        MissingExtraError: Ray isn't installed.
        InputError: The address is none, or nothing answers there.
    """
    require("ray", "ray")
    host, colon, port = address.rpartition(":")
    if address == "auto":
        return _check_health(address)
    if not (colon and host and port.isdigit() and 0 < int(port) < 65536) or "/" in host:
        raise InputError(
            f"--ray {address}: expected host:port of a cluster's head node, such as 10.0.0.1:6379, or auto"
        )
    try:
        socket.create_connection((host, int(port)), timeout=_PATIENCE).close()
    except OSError as error:
        raise _unreachable(address, error) from error
    _check_health(address)


def _check_health(address: str) -> None:
    """Ask Ray's own command in a process of its own, because ``ray.init`` itself tries for minutes."""
    where = [] if address == "auto" else ["--address", address]
    command = [sys.executable, "-m", "ray.scripts.scripts", "health-check", *where]
    try:
        subprocess.run(command, timeout=4 * _PATIENCE, check=True, capture_output=True, text=True)
    except subprocess.TimeoutExpired as error:
        raise _unreachable(address, TimeoutError("what listens there isn't Ray, or it is too busy")) from error
    except subprocess.CalledProcessError as error:
        last = (error.stderr.strip().splitlines() or ["no message"])[-1]
        raise _unreachable(address, ConnectionError(last)) from error


def run_on_ray(jobs: Sequence[Job], address: str, on_done: Callable[[str], None], work: Callable[[Job], str]) -> None:
    """Run jobs on a cluster, one per CPU that it offers.

    Args:
        jobs: In the order in which they are started.
        address: As for ``check_ray``.
        on_done: Called with the name of each one when it is finished.
        work: What to do, returns the job's name; lmmprune must be installed on every node.

    Raises:
        LmmpruneError: A job's, or the cluster can't be reached or lost a worker.
    """
    if not jobs:
        return
    ray: Any = require("ray", "ray")
    try:
        ray.init(address=address, logging_level=logging.ERROR, log_to_driver=False)
    except (ConnectionError, RuntimeError, ValueError, TimeoutError) as error:
        raise _unreachable(address, error) from error
    try:
        # A worker that has traced the model is used again for the next job.
        remote = ray.remote(num_cpus=1)(work)
        waiting = [remote.remote(job) for job in jobs]
        while waiting:
            done, waiting = ray.wait(waiting, num_returns=1)
            for reference in done:
                on_done(_value(ray, reference))
    finally:
        ray.shutdown()


def _value(ray: Any, reference: Any) -> str:
    try:
        name: str = ray.get(reference)
    except ray.exceptions.RayTaskError as error:
        # Ray wraps what the job raised; a user's mistake stays one line.
        if isinstance(error.cause, LmmpruneError):
            raise error.cause from None
        raise
    except ray.exceptions.RayError as error:
        first = str(error).strip().splitlines()[0]
        raise LmmpruneError(
            f"the Ray cluster lost a job ({first}): look at its nodes, then start again; what is finished is kept"
        ) from error
    return name


def _unreachable(address: str, error: Exception) -> InputError:
    reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    return InputError(
        f"--ray {address}: no Ray cluster answers there ({reason[:160]}): "
        " start one with 'ray start --head', or leave --ray out"
    )
