"""Run all tools on one model and judge what they made."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from lmmprune.compiler.quantize.sensitivity import answers_of
from peers.inputs import held_out
from peers.judge import accuracy, judge, open_session
from peers.latency import latency
from peers.tools import PARTS, TINY, TOOLS
from peers.worker import run_apart


def measure(
    work: Path, setup: dict[str, Any], pythons: Mapping[str, str], *, limit: int, rounds: int, threads: int
) -> dict[str, Any]:
    """Return the numbers of every tool.

    Args:
        work: What ``prepare`` wrote.
        setup: The model and how it is exported.
        pythons: Library -> Python of its environment, empty if there is none; the others run in this one.
        limit: Questions.
        rounds: For latency.
        threads: For latency.
    """
    test = held_out(work, setup)
    samples = {"vision": test.vision(), "decoder": test.decoder()}
    exact = {part: answers_of(open_session(work / "float" / f"{part}.onnx"), samples[part]) for part in PARTS}
    tools: dict[str, Any] = {}
    graphs: dict[str, dict[str, Path]] = {part: {"float32": work / "float" / f"{part}.onnx"} for part in PARTS}
    for name, tool in TOOLS.items():
        folder = work / "".join(c if c.isalnum() else "_" for c in name)
        folder.mkdir()
        python = pythons.get(tool.library, sys.executable)
        if not python:
            tools[name] = {"note": "not installed in this run", "parts": {}}
            continue
        row = tools[name] = run_apart(tool, python, work, folder)
        for part, found in row["parts"].items():
            if not found["made"]:
                continue
            found |= judge(folder / f"{part}.onnx", samples[part], exact[part], tool.scheme)
            if found.get("runs"):
                graphs[part][name] = folder / f"{part}.onnx"
        ran = row["parts"] and all(found.get("runs") for found in row["parts"].values())
        if setup["model"] == TINY and ran:
            row["accuracy"] = accuracy(work, folder, limit)
        click.echo(f"{work.name}: {name}: {json.dumps(row)[:400]}")
    times = latency(work, graphs, rounds, threads, large=setup["large"])
    result: dict[str, Any] = {"setup": setup, "tools": tools, "latency": times}
    if setup["model"] == TINY:
        result["accuracy_float32"] = _accuracy_float32(work, limit)
    return result


def _accuracy_float32(work: Path, limit: int) -> float:
    folder = work / "plain"
    folder.mkdir()
    for part in PARTS:
        for file in (work / "float").glob(f"{part}.onnx*"):
            shutil.copy(file, folder)
    return accuracy(work, folder, limit)
