"""``lmmprune inspect``: what the passes see in a bundle or a graph."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from lmmprune.compiler.bundle.views import counts_of_sizes
from lmmprune.compiler.cli.command import GENERAL, Command, argument, option
from lmmprune.compiler.cli.options import target_option, unsealed_option
from lmmprune.compiler.cli.output import json_option, print_json, show
from lmmprune.compiler.cli.table import Column, table
from lmmprune.compiler.cli.values import number_pair
from lmmprune.units import human_bytes

if TYPE_CHECKING:
    from lmmprune.compiler.bundle.manifest import Manifest


@click.command("inspect", cls=Command)
@argument("path", type=click.Path(path_type=Path))
@target_option(
    None,
    about="Check Q/DQ against this target's rules.  [default: the bundle's, or what the graph looks like]",
    group=GENERAL,
)
@option("--image-size", metavar="PIXELS|HxW", help="Size of the picture, where another tool's tower leaves it open.")
@unsealed_option
@json_option
def command(path: Path, target: str | None, image_size: str | None, as_json: bool) -> None:
    """Show sites, anchors, shapes and quantization of a bundle or an ONNX file, also of another tool's."""
    from lmmprune.compiler.bundle.manifest import FILENAME, Manifest
    from lmmprune.compiler.inspect.inspect_path import inspect_path

    found = inspect_path(path, target=target, image_size=number_pair("--image-size", image_size, single=True))
    if as_json:
        print_json(found)
        return
    head = str(path)
    if path.is_dir():
        manifest = Manifest.load(path / FILENAME)
        head = (
            f"{manifest.model}: {_counts(manifest)} visual tokens"
            f"{manifest.whose_tokens}, {manifest.method or 'not pruned'}, positions {_positions(manifest)},"
            f" target {manifest.target}"
        )
    show(head)
    for graph in found["graphs"]:
        _show(graph)
    for engine in found["engines"]:
        weights = ", ".join(f"{human_bytes(size)} {kind}" for kind, size in engine["weights"].items())
        show(
            f"engine {engine['component']} for {engine['target']} on {engine['arch']}: {human_bytes(engine['bytes'])};"
            f" weights that went in: {weights or 'not counted'}"
        )


def _counts(manifest: Manifest) -> str:
    return counts_of_sizes(manifest) or f"{manifest.tokens_before} -> {manifest.average_tokens:.4g}"


def _positions(manifest: Manifest) -> str:
    """Say how tokens are numbered, before and behind cuts inside the decoder."""
    inside = {site.in_decoder for site in manifest.schedule}
    if True not in inside or manifest.positions == manifest.llm_positions:
        return manifest.positions
    behind = f"{manifest.llm_positions} behind cuts in the decoder"
    return f"{manifest.positions}, {behind}" if False in inside else behind


def _show(graph: dict[str, Any]) -> None:
    rows = [[v["name"], way, v["dtype"], str(v["shape"])] for way in ("inputs", "outputs") for v in graph[way]]
    # One line stands for the cache of all layers: they only differ in their number.
    shown = [row for row in rows if (".key" not in row[0] and ".value" not in row[0]) or ".0." in row[0]]
    show(table(["value", "", Column(title="type", drop=1), "shape"], shown, title=graph["file"]))
    operators = ", ".join(f"{count} {name}" for name, count in graph["operators"].items())
    kinds = ", ".join(
        f"{graph[f'{kind}_matmuls']} in {words}"
        for kind, words in (("int8", "INT8"), ("int4", "INT4"), ("float", "floating point"))
    )
    show(
        f"opset {graph['opset']}; {operators}",
        f"{graph['weights']['count']} initializers, {human_bytes(graph['weights']['bytes'])};"
        f" weights of products: {kinds}",
    )
    _show_int8(graph["int8"])
    if graph["sites"]:
        show(
            table(
                ["tokens are cut at", "tokens out", "", Column(title="nodes", drop=1)],
                [_site(row) for row in graph["sites"]],
            )
        )
    else:
        show(_offer(graph["anchors"]))
    if graph["cache"]:
        show("; ".join(f"cache of layers {_span(row['layers'])}: {row['shape']}" for row in graph["cache"]))
    layers = [[str(index), row["node"], str(row["queries"])] for index, row in enumerate(graph["attention_layers"])]
    if layers:
        show(table(["layer", "node", "queries"], layers))


def _show_int8(int8: dict[str, Any]) -> None:
    """Show which blocks are quantized, and every broken rule once with the number of places."""
    if int8["scheme"] is None:
        return
    stayed = [name for name, kind in int8["blocks"].items() if "float" in kind]
    show(f"quantized as {int8['scheme']}; in floating point: {', '.join(stayed) or 'no block'}")
    if not int8["findings"]:
        show("every pair keeps the rules of the scheme")
        return
    rows: dict[str, list[Any]] = {}
    for finding in int8["findings"]:
        row = rows.setdefault(
            finding["rule"], [finding["says"], finding["why"], f"{finding['node']}: {finding['found']}", 0]
        )
        row[3] += 1
    show(
        table(
            ["broken rule", Column(title="why it matters", drop=1), "first place", "places"],
            [[str(c) for c in row] for row in rows.values()],
        )
    )


def _site(row: dict[str, Any]) -> list[str]:
    count = "a bucket's" if row["tokens_out"] is None else str(row["tokens_out"])
    return [f"{row['site']}, by {row['method']}", count, "merged" if row["merges"] else "dropped", str(row["nodes"])]


def _offer(anchors: dict[str, Any]) -> str:
    """Say what an unpruned graph offers, or why it can't be pruned."""
    if "refusal" in anchors:
        return f"no site for pruning: {anchors['refusal']}"
    command = f" (for 'lmmprune {anchors['command']}')" if "command" in anchors else ""
    sites = f"not pruned; sites {', '.join(anchors['sites'])}{command}"
    if "patches" in anchors:
        dropped = "beside CLS" if command else "after CLS was dropped"
        cls = dropped if anchors["has_cls"] else "no CLS"
        many = anchors["patches_per_token"]
        made = f" of {many} patches each" if many > 1 else ""
        return f"{sites}; {anchors['tokens']} tokens{made} at '{anchors['patches']}', {cls}"
    heads = f"{anchors['heads']} heads on {anchors['kv_heads']} key heads of width {anchors['head_dim']}"
    return f"{sites}; {anchors['layers']} layers of {heads}"


def _span(layers: list[int]) -> str:
    return f"{layers[0]}..{layers[-1]}" if len(layers) > 1 else str(layers[0])
