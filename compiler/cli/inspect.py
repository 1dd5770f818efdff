"""``lmmprune inspect``: what the passes see in a bundle or a graph."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from lmmprune.compiler.cli.output import human_bytes, json_option, print_json, show, table


@click.command()
@click.argument("path", type=click.Path(path_type=Path))
@json_option
def command(path: Path, as_json: bool) -> None:
    """Show sites, anchors and shapes of a bundle or an ONNX file."""
    from lmmprune.compiler.bundle import Bundle
    from lmmprune.compiler.inspection import inspect_graph
    from lmmprune.errors import InputError

    if path.is_dir():
        bundle = Bundle.open(path)
        graphs = [inspect_graph(bundle.vision), inspect_graph(bundle.decoder)]
        manifest = bundle.manifest
        head = (
            f"{manifest.model}: {manifest.tokens_before} -> {manifest.image_tokens} visual tokens,"
            f" {manifest.method or 'not pruned'}, positions {manifest.positions}, target {manifest.target}"
        )
    elif path.is_file():
        graphs, head = [inspect_graph(path)], str(path)
    else:
        raise InputError(f"'{path}' doesn't exist: give a bundle or an ONNX file")
    if as_json:
        print_json({"path": str(path), "graphs": graphs})
        return
    show(head)
    for graph in graphs:
        _show(graph)


def _show(graph: dict[str, Any]) -> None:
    rows = [[v["name"], way, v["dtype"], str(v["shape"])] for way in ("inputs", "outputs") for v in graph[way]]
    # One line stands for the cache of all layers: they only differ in their number.
    shown = [row for row in rows if (".key" not in row[0] and ".value" not in row[0]) or ".0." in row[0]]
    show(table(["value", "", "type", "shape"], shown, title=graph["file"]))
    operators = ", ".join(f"{count} {name}" for name, count in graph["operators"].items())
    show(
        f"opset {graph['opset']}; {operators}",
        f"{graph['weights']['count']} initializers, {human_bytes(graph['weights']['bytes'])};"
        f" {graph['int8_matmuls']} weights in INT8, {graph['float_matmuls']} in floating point",
    )
    site = graph["site"]
    if "refusal" in site:
        show(f"no site for selection: {site['refusal']}")
    elif site["pruned"]:
        show(f"site {site['site']}: pruned to {site['tokens_out']} tokens by {site['method']} ({site['nodes']} nodes)")
    else:
        cls = "after CLS was dropped" if site["has_cls"] else "no CLS"
        show(f"site {site['site']}: {site['tokens']} tokens at '{site['patches']}', {cls}, not pruned")
    layers = [[str(index), row["node"], str(row["queries"])] for index, row in enumerate(graph["attention_layers"])]
    if layers:
        show(table(["layer", "node", "queries"], layers))
