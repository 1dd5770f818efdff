"""``lmmprune show``: draw the kept patches over a picture."""

from __future__ import annotations

from pathlib import Path

import click

from lmmprune.compiler.cli.output import json_option, print_json, show
from lmmprune.errors import InputError


@click.command("show")
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option("--image", required=True, type=click.Path(path_type=Path), help="The picture.")
@click.option("-o", "--output", required=True, type=click.Path(path_type=Path, dir_okay=False), help="The drawing.")
@click.option("--threads", type=click.IntRange(min=1), help="Threads within an operator.")
@json_option
def command(bundle: Path, image: Path, output: Path, threads: int | None, as_json: bool) -> None:
    """Draw which patches a bundle keeps of a picture; dropped ones are dark."""
    import numpy as np
    from PIL import Image

    from lmmprune.compiler.bundle import Bundle
    from lmmprune.compiler.draw import draw_kept
    from lmmprune.compiler.preprocess import load_image
    from lmmprune.compiler.runtime import Runtime

    opened = Bundle.open(bundle)
    if output.suffix.lower() not in Image.registered_extensions():
        raise InputError(f"can't write '{output}': give it the suffix of a picture, as .png")
    if not output.parent.is_dir():
        raise InputError(f"can't write '{output}': there is no directory '{output.parent}'")
    picture = load_image(image)
    runtime = Runtime(opened, threads=threads)
    manifest = opened.manifest
    kept = runtime.look(picture).kept
    if kept is None and manifest.image_tokens < manifest.tokens_before:
        raise InputError(f"method '{manifest.method}' merges tokens instead of choosing some: there is nothing to draw")
    indices = np.arange(manifest.tokens_before) if kept is None else kept
    tokens = f"{manifest.tokens_before} -> {len(indices)} visual tokens"
    caption = (
        f"{tokens}  ·  {manifest.method or 'not pruned'}  ·  {manifest.precision.int8 or manifest.precision.dtype}"
    )
    drawing = draw_kept(runtime.preprocessor.pixels(picture), indices, manifest.grid, caption)
    try:
        drawing.save(output)
    except OSError as error:
        output.unlink(missing_ok=True)
        raise InputError(f"can't write '{output}' ({error.strerror or error})") from error
    if as_json:
        print_json({"output": str(output), "tokens_before": manifest.tokens_before, "kept_indices": indices.tolist()})
    else:
        show(f"{tokens}; drawn in {output}")
