"""Check lmmprune on a machine with a CUDA GPU: what works there, whether it is right, and how fast it is.

    python scripts/gpu_check -o gpu_check.json

Every stage runs in a process of its own; one that can't, breaks or takes too long is recorded with its reason and the
others go on. Results are merged into the file: what is "ok" there isn't run again, so that a machine that is lent for
minutes can do the work in pieces (``--stages env,peak,rtx --budget 540``). See docs/results/gpu_check.md.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

import click

sys.path.insert(0, str(Path(__file__).parents[1]))  # a folder that is run has itself on the path, not its parent

from results import head, how_it_was_made, write_part

from gpu_check.settings import Settings
from gpu_check.stages import STAGES, command_of, read_json, run, run_apart, select, write_json
from gpu_check.table import products, report, summarize
from lmmprune.errors import InputError


@click.command()
@click.option("-o", "--output", type=click.Path(path_type=Path), default=Path("gpu_check.json"), show_default=True)
@click.option("--stages", "chosen", help=f"Comma-separated, of {', '.join(STAGES)}; 'rtx' is all of rtx's.")
@click.option("--quick", is_flag=True, help="Fewer rounds and questions: does it work at all?")
@click.option("--layers", default=4, show_default=True, type=click.IntRange(1, 32), help="Depth at LLaVA-7B's width.")
@click.option("--work", type=click.Path(path_type=Path), default=Path("gpu_check_work"), show_default=True)
@click.option("--timeout", default=1800.0, show_default=True, help="Seconds that a stage may take.")
@click.option("--budget", default=86400.0, show_default=True, help="Seconds that this call may take.")
@click.option("--again", is_flag=True, help="Run what is 'ok' already, too.")
@click.option("--one", hidden=True, help="Run this stage in this process.")
@click.option("--result", type=click.Path(path_type=Path), hidden=True)
def main(
    output: Path,
    chosen: str | None,
    quick: bool,
    layers: int,
    work: Path,
    timeout: float,
    budget: float,
    again: bool,
    one: str | None,
    result: Path | None,
) -> None:
    """Write OUTPUT (JSON) and the same name with .md (tables)."""
    start = time.monotonic()
    settings = Settings(work=work, quick=quick, layers=layers)
    if one is not None and result is not None:
        run(one, settings, result)
        return
    try:
        names = select(chosen)
    except InputError as error:
        raise click.UsageError(str(error)) from error
    work.mkdir(parents=True, exist_ok=True)
    stages: dict[str, Any] = read_json(output).get("stages", {})
    for name in names:
        if not again and done(stages.get(name, {}), settings):
            click.echo(f"{name}: there already", err=True)
            continue
        left = min(timeout, budget - (time.monotonic() - start))
        if left > 5:
            click.echo(f"{name} ...", err=True)
            place = work / f"{name}.json"
            stages[name] = run_apart(command_of(Path(__file__).parent, name, settings, place), place, left)
        else:
            stages[name] = {"status": "timeout", "reason": "the call's --budget was spent before it", "seconds": 0.0}
        stages[name] |= {"quick": quick, "layers": layers}
        click.echo(f"{name}: {stages[name]['status']} {stages[name].get('reason', '')}", err=True)
        rows = summarize(stages)
        write_json(output, {"stages": stages, "layers": rows, "products": products(rows)})
    text = report(stages)
    write_part(output.with_suffix(".md"), output.stem, f"{head(how_it_was_made(), output.stem)}\n\n{text}")
    click.echo(text)


def done(stage: dict[str, Any], settings: Settings) -> bool:
    """Return whether an earlier call did this stage as this one would."""
    same = stage.get("layers") == settings.layers and stage.get("quick") in (False, settings.quick)
    return same and stage.get("status") == "ok"


if __name__ == "__main__":
    main()
