"""``lmmprune doctor``: what this machine can export, build and run."""

from __future__ import annotations

import click

from lmmprune.compiler.cli.command import Command
from lmmprune.compiler.cli.output import json_option, print_json, show, warn
from lmmprune.compiler.cli.table import Column, details, table
from lmmprune.units import human_bytes


@click.command("doctor", cls=Command)
@json_option
def command(as_json: bool) -> None:
    """Say what this machine can export, build and run, and what to install for the rest."""
    from lmmprune.compiler.inspect.doctor import Ability, diagnose, missing
    from lmmprune.compiler.targets.packages import install_command

    found = diagnose()
    if as_json:
        print_json(found.as_dict())
        return

    machine = found.machine
    flags = " ".join(machine.cpu_flags) or "no known extensions"
    gpus = [
        f"{gpu.name} ({gpu.arch or 'unknown architecture'}, driver {gpu.driver or 'unknown'}, "
        f"{human_bytes(gpu.memory) if gpu.memory else 'memory unknown'})"
        for gpu in machine.gpus
    ]
    facts = {
        "system": f"{machine.system}, Python {machine.python}",
        "processor": f"{machine.processor}, {machine.cores} cores; {flags}",
        "memory": human_bytes(machine.memory) if machine.memory else "unknown",
        "free disk": human_bytes(machine.disk_free),
        "GPU": "; ".join(gpus) or "none found",
    }
    show(details(facts))

    rows = []
    for extra, wanted in found.packages.items():
        lacking = missing(found.packages, extra)
        have = ", ".join(f"{package.name} {package.installed}" for package in wanted if package.suits)
        rows.append([extra, have or "-", ", ".join(lacking) or "-", install_command(extra) if lacking else ""])
    show(table(["extra", Column(title="installed", drop=1), "missing", Column(title="to install it", drop=2)], rows))

    def cell(ability: Ability) -> str:
        return f"yes{f' ({ability.why})' if ability.why else ''}" if ability.can else f"no: {ability.why}"

    show(
        table(
            ["target", "export", "build", "run"],
            [[row.target, cell(row.export), cell(row.build), cell(row.run)] for row in found.verdicts],
        )
    )
    for warning in found.warnings:
        warn(warning)
