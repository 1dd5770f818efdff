"""Look into things: what is in a graph, what a bundle keeps and whether it holds, and what there is to choose."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lmmprune.compiler.bundle import seal
from lmmprune.compiler.runtime.open_picture import Picture, open_picture
from lmmprune.compiler.runtime.runtime import Runtime
from lmmprune.compiler.runtime.show_kept import Drawing, check_drawing, show_kept
from lmmprune.compiler.targets.target import Target
from lmmprune.compiler.targets.targets import TARGETS
from lmmprune.errors import require
from lmmprune.progress import Progress, silent

if TYPE_CHECKING:
    from lmmprune.compiler.card.card import Card
    from lmmprune.compiler.inspect.doctor import Diagnosis
    from lmmprune.compiler.verify.verify import Check
    from lmmprune.models.aliases import Alias
    from lmmprune.models.family import Family
    from lmmprune.passes.methods import Method

File = str | PathLike[str]


@seal.may_be_unsealed
def verify(
    bundle: File,
    *,
    samples: int = 4,
    data: File | None = None,
    model: File | None = None,
    adapter: File | None = None,
    unsealed: bool = False,
    progress: Progress = silent,
) -> list[Check]:
    """Check a bundle's files and graphs, and its kept indices and logits against the PyTorch model.

    Args:
        bundle: Its directory.
        samples: Pictures with questions to compare on.
        data: A directory of them, or a JSON Lines file with ``image`` and ``prompt``; None: built-in ones.
        model: Where its checkpoint is, for a bundle that was exported from a directory; None: what the bundle names.
        adapter: LoRA directory that was merged into its weights.
        unsealed: Read a bundle whose manifest was edited, or is of the format before seals, as it is.
        progress: Called while it runs.

    Returns:
        The checks, failed ones included: ``name``, ``passed`` (None: it can't be told) and ``found``.

    Raises:
        LmmpruneError: The bundle can't be opened at all, or its checkpoint isn't found.

    Example::

        assert all(check.passed is not False for check in lmmprune.verify("out"))
    """
    require("onnx_ir", "export")
    from lmmprune.compiler.verify.verify import verify as run

    return run(
        Path(bundle),
        samples=samples,
        data=None if data is None else Path(data),
        model=None if model is None else str(model),
        adapter=None if adapter is None else Path(adapter),
        progress=progress,
    )


@seal.may_be_unsealed
def show(
    bundle: File,
    picture: Picture,
    out: File | None = None,
    *,
    prompt: str | None = None,
    site: str | None = None,
    threads: int | None = None,
    force: bool = False,
    unsealed: bool = False,
) -> Drawing:
    """Draw which patches a bundle keeps of a picture, one panel per site.

    Args:
        bundle: Its directory.
        picture: A path, the bytes of a file, an open binary file, or a PIL image.
        out: File for the drawing; its suffix names the kind of picture. None: it is only returned.
        prompt: The question; sites in the decoder depend on it.
        site: Draw this one only, such as ``vision_layer_3``.
        threads: Threads within an operator, where the CPU computes.
        force: Replace a drawing that is there.
        unsealed: Read a bundle whose manifest was edited, or is of the format before seals, as it is.

    Returns:
        The drawing as a PIL image, and the tokens that leave each site.

    Raises:
        LmmpruneError: The bundle, the picture, the site or the file can't be used.
    """
    from lmmprune.compiler.bundle.bundle import Bundle

    opened = Bundle.open(Path(bundle))
    if out is not None:
        check_drawing(Path(out), force=force)
    image = open_picture(picture)
    drawing = show_kept(Runtime(opened, threads=threads), image, prompt=prompt, site=site)
    if out is not None:
        drawing.save(Path(out))
    return drawing


@seal.may_be_unsealed
def inspect(
    path: File, *, target: str | None = None, image_size: tuple[int, int] | None = None, unsealed: bool = False
) -> dict[str, Any]:
    """Say what the passes see in a bundle or in an ONNX file, also of another tool.

    Args:
        path: The bundle's directory, or the file.
        target: Check Q/DQ pairs against this target's rules; None: the bundle's, or what the file looks like.
        image_size: Height and width of the picture, where another tool's tower leaves them open.
        unsealed: Read a bundle whose manifest was edited, or is of the format before seals, as it is.

    Returns:
        ``graphs``: inputs, outputs, operators, weights, sites, anchors and INT8 of each; ``engines``: their records.

    Raises:
        LmmpruneError: It is neither, or can't be read.
    """
    from lmmprune.compiler.inspect.inspect_path import inspect_path

    return inspect_path(Path(path), target=target, image_size=image_size)


@seal.may_be_unsealed
def card(
    bundle: File,
    out: File | None = None,
    *,
    evaluations: Sequence[File | Mapping[str, Any]] = (),
    comparisons: Sequence[File | Mapping[str, Any]] = (),
    benches: Sequence[File | Mapping[str, Any]] = (),
    force: bool = False,
    unsealed: bool = False,
) -> Card:
    """Make a bundle's model card in Markdown: what it is, what was measured and how, and what wasn't.

    Args:
        bundle: Its directory.
        out: File for the card; None: it is only returned.
        evaluations: What ``lmmprune eval --json`` printed: files, or what they say.
        comparisons: The same of ``compare``; ``Comparison.as_dict()`` is that, too.
        benches: The same of ``bench``; ``BenchReport.as_dict()`` is that, too.
        force: Replace a card that is there.
        unsealed: Read a bundle whose manifest was edited, or is of the format before seals, as it is.

    Raises:
        LmmpruneError: The bundle can't be opened, a result isn't one or says nothing of this bundle, or the file can't
            be written.
    """
    from lmmprune.compiler.bundle.bundle import Bundle
    from lmmprune.compiler.card import card as room

    def given(results: Sequence[File | Mapping[str, Any]]) -> list[Path | Mapping[str, Any]]:
        return [one if isinstance(one, Mapping) else Path(one) for one in results]

    if out is not None:
        room.check_card(Path(out), force=force)
    found = room.make_card(Bundle.open(Path(bundle)), given(evaluations), given(comparisons), given(benches))
    if out is not None:
        found.save(Path(out), force=force)
    return found


def doctor() -> Diagnosis:
    """Find out what this machine can export, build and run, and what to install for the rest."""
    from lmmprune.compiler.inspect.doctor import diagnose

    return diagnose()


def list_methods(method_file: File | None = None) -> Mapping[str, type[Method]]:
    """Return name -> pruning method: those of lmmprune, of installed packages, and of a file of yours.

    Args:
        method_file: Python file that defines more.

    Raises:
        InputError: A foreign method doesn't load.
        MissingExtraError: The extra 'export' isn't installed.

    Example::

        for name, method in lmmprune.list_methods().items():
            print(name, method.reference, method().parameters)
    """
    require("onnx_ir", "export")
    from lmmprune.passes.methods import find_methods

    return find_methods(None if method_file is None else Path(method_file))


def list_models() -> Mapping[str, Alias]:
    """Return alias -> what it stands for, as ``export`` takes it."""
    from lmmprune.models.aliases import ALIASES

    return dict(ALIASES)


def list_families() -> Mapping[str, Family]:
    """Return name -> family of models: what it can be cut at, and what it can't do."""
    from lmmprune.models.registry import FAMILIES

    return dict(FAMILIES)


def list_targets() -> Mapping[str, Target]:
    """Return name -> target: opset, operators taken as they are, INT8 scheme, architectures."""
    return dict(TARGETS)
