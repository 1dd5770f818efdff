"""The bundles of a server, each under its name with its run-time and its queue."""

from __future__ import annotations

import calendar
import functools
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lmmprune.compiler.backends.open_sessions import Loaded, open_sessions
from lmmprune.compiler.bundle.bundle import Bundle
from lmmprune.compiler.runtime.runtime import Runtime
from lmmprune.compiler.serve.desk import Desk
from lmmprune.compiler.serve.errors import ApiError
from lmmprune.compiler.serve.options import ServeOptions
from lmmprune.compiler.serve.prefixes import Prefixes
from lmmprune.compiler.serve.together import answer_together
from lmmprune.errors import InputError, suggestion
from lmmprune.limits import is_directory


class Served:
    """One bundle."""

    def __init__(self, name: str, runtime: Runtime, options: ServeOptions) -> None:
        """Serve a loaded bundle.

        Args:
            name: What requests call it.
            runtime: The bundle, loaded.
            options: Of the server.

        Raises:
            InputError: Conversations can't be kept.
        """
        self.name, self.runtime = name, runtime
        self.manifest = runtime.bundle.manifest
        self.longest_text = runtime.prompter.longest_text
        if options.conversations and not options.image_cache:
            raise InputError(
                f"--conversations {options.conversations} knows a conversation by its picture: leave --image-cache on"
            )
        self.prefixes = Prefixes(runtime, options.conversations)
        batch = self.manifest.batch
        self.desk = Desk(
            name,
            workers=options.max_concurrency,
            room=options.queue,
            at_once=self.manifest.rows,
            together=None if batch is None else functools.partial(answer_together, runtime),
        )

    def describe(self) -> dict[str, Any]:
        """Return its entry in the list of models; what OpenAI's API doesn't have stands under ``lmmprune``."""
        manifest = self.manifest
        about = {
            "model": manifest.model,
            "method": manifest.method,
            "images": manifest.images,
            "batch": manifest.rows,
            "tokens_before": manifest.tokens_before,
            "image_tokens": manifest.image_tokens,
            "average_tokens": manifest.average_tokens,
            "tile_grids": manifest.tile_grids.names if manifest.tile_grids else [],
            "buckets": [bucket.tokens for bucket in manifest.buckets],
            "sizes": [view.name for view in manifest.sizes],
            "precision": manifest.precision.integers or manifest.precision.dtype,
            "target": manifest.target,
            "max_tokens": manifest.max_tokens,
        }
        return {
            "id": self.name,
            "object": "model",
            "created": _seconds(manifest.created),
            "owned_by": "lmmprune",
            "lmmprune": about,
        }

    def close(self, timeout: float) -> None:
        """End its threads and let go of its graphs."""
        self.desk.close(timeout)
        self.runtime.close()


def names_of(directories: Sequence[str]) -> dict[str, Path]:
    """Return the bundles' directories by the names that they are served under: ``DIR`` or ``NAME=DIR``.

    Raises:
        InputError: Two have the same name, or one is empty.
    """
    found: dict[str, Path] = {}
    for given in directories:
        name, equals, directory = given.partition("=")
        # A directory may have such a sign in its own name.
        if not equals or is_directory(Path(given)) or "/" in name:
            name, directory = Path(given).resolve().name, given
        if not name or not directory:
            raise InputError(f"'{given}' isn't a bundle to serve: expected DIR or NAME=DIR")
        if name in found:
            raise InputError(f"'{found[name]}' and '{directory}' are both called '{name}': write NAME=DIR for one")
        found[name] = Path(directory)
    return found


def load_served(
    directories: Mapping[str, Path], options: ServeOptions, *, threads: int | None = None
) -> dict[str, Served]:
    """Load bundles; graphs of several that are equal, with their weights, are loaded once.

    Args:
        directories: By name.
        options: Of the server.
        threads: Threads within an operator, where the CPU computes.

    Raises:
        LmmpruneError: One can't be used here, as ``Runtime``.
    """
    bundles = {name: Bundle.open(path) for name, path in directories.items()}
    for name, bundle in bundles.items():
        if (video := bundle.manifest.video) is not None:
            raise InputError(f"'{name}' answers about {video.takes}, and requests bring pictures: leave it out")
    loaded: Loaded = {}
    runtimes = {
        name: Runtime(
            bundle,
            sessions=open_sessions(bundle, threads=threads, loaded=loaded),
            image_cache=options.image_cache,
        )
        for name, bundle in bundles.items()
    }
    return {name: Served(name, runtime, options) for name, runtime in runtimes.items()}


def find(served: Mapping[str, Served], name: str) -> Served:
    """Return the bundle of a name.

    Raises:
        ApiError: There is none.
    """
    if name not in served:
        hint = suggestion(name, served)
        raise ApiError(f"no model '{name[:64]}'{hint}", status=404, param="model", code="model_not_found")
    return served[name]


def _seconds(created: str) -> int:
    """Return a manifest's time in seconds since 1970."""
    try:
        return calendar.timegm(time.strptime(created[:19], "%Y-%m-%dT%H:%M:%S"))
    except ValueError:
        return 0
