"""Answer over HTTP as OpenAI's chat API does."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING

from lmmprune.compiler.bundle import seal
from lmmprune.errors import require

if TYPE_CHECKING:
    from lmmprune.compiler.serve.options import ServeOptions

_MODULES = ("starlette", "uvicorn", "pydantic", "prometheus_client")


def require_serve() -> None:
    """Refuse to go on where a package of the extra is missing.

    Raises:
        MissingExtraError: One is.
    """
    for module in _MODULES:
        require(module, "serve")


@seal.may_be_unsealed
def serve(
    bundles: Mapping[str, str | PathLike[str]],
    *,
    host: str = "127.0.0.1",
    port: int = 8000,
    options: ServeOptions | None = None,
    threads: int | None = None,
    ready: Callable[[str], None] = lambda url: None,
    unsealed: bool = False,
) -> None:
    """Serve bundles until the process is told to end (SIGTERM, SIGINT); call it in the main thread.

    Args:
        bundles: Directories by the names that requests call them.
        host: Address to listen at.
        port: Port; 0 takes a free one.
        options: Limits, keys and where pictures may come from; None: those of the command.
        threads: Threads within an operator, where the CPU computes.
        ready: Called with the server's URL when requests are answered.
        unsealed: Read a bundle whose manifest was edited, or is of the format before seals, as it is.

    Raises:
        LmmpruneError: Anything that you can mend, in one line.
    """
    require_serve()
    from lmmprune.compiler.serve.options import ServeOptions
    from lmmprune.compiler.serve.run_server import run_server

    directories = {name: Path(directory) for name, directory in bundles.items()}
    run_server(directories, host=host, port=port, options=options or ServeOptions(), threads=threads, ready=ready)
