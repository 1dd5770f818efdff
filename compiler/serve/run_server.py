"""Run the server: bind, load, answer, and end when told to, after what is under way."""

from __future__ import annotations

import signal
import socket
from collections.abc import Callable, Mapping
from pathlib import Path

import uvicorn

from lmmprune.compiler.serve.app import make_app
from lmmprune.compiler.serve.connection import Connection
from lmmprune.compiler.serve.options import ServeOptions
from lmmprune.compiler.serve.served import load_served
from lmmprune.errors import InputError

_JOINED = 5.0  # seconds for the threads, whose jobs are cancelled by then, to reach the next token


def run_server(
    directories: Mapping[str, Path],
    *,
    host: str,
    port: int,
    options: ServeOptions,
    threads: int | None = None,
    ready: Callable[[str], None] = lambda url: None,
) -> None:
    """Serve bundles until SIGTERM or SIGINT.

    Args:
        directories: Bundles by the names that requests call them.
        host: Address to listen at.
        port: Port; 0 takes a free one.
        options: Limits.
        threads: Threads within an operator, where the CPU computes.
        ready: Called with the server's URL when the bundles are loaded.

    Raises:
        InputError: The address can't be listened at.
        LmmpruneError: A bundle can't be used here.
    """
    listener = _bind(host, port)
    try:
        served = load_served(directories, options, threads=threads)
        try:
            config = uvicorn.Config(
                make_app(served, options),
                http=Connection,
                loop="asyncio",
                ws="none",
                lifespan="off",
                log_config=None,
                access_log=False,
                server_header=False,
                proxy_headers=False,
                timeout_graceful_shutdown=max(round(options.grace), 1),
            )
            server = uvicorn.Server(config)
            # uvicorn raises a signal once more when it has ended: that is no reason to die of it.
            for one in (signal.SIGTERM, signal.SIGINT):
                signal.signal(one, lambda number, frame: None)
            listener.listen(config.backlog)  # from here on nobody is refused
            ready(f"http://{_shown(listener)}")
            server.run(sockets=[listener])
        finally:
            for bundle in served.values():
                bundle.close(_JOINED)
    finally:
        listener.close()


def _bind(host: str, port: int) -> socket.socket:
    """Take the port before anything slow begins; nobody is let in before ``listen``."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listener = socket.socket(family, kind, protocol)
        try:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(address)
        except BaseException:
            listener.close()
            raise
    except (OSError, OverflowError, UnicodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise InputError(f"can't listen at {host}:{port} ({reason}): give another --host or --port") from error
    return listener


def _shown(listener: socket.socket) -> str:
    host, port = listener.getsockname()[:2]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
