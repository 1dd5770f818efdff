"""How a server is run: its limits and what it may read."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

MIB = 2**20


@dataclass(frozen=True, kw_only=True)
class ServeOptions:
    """Limits of a server.

    Attributes:
        max_concurrency: Answers of one bundle that grow at the same time.
        queue: Requests of one bundle that may wait; more are refused with 429.
        timeout: Seconds that a request may take, from its first byte to the end of its answer.
        grace: Seconds that requests under way have to finish in when the server ends.
        max_tokens: New tokens of an answer at most.
        max_body: Bytes of a request at most.
        max_pixels: Pixels of a picture at most; it is refused before it is decoded.
        api_keys: A request must bear one of them; none: whoever reaches the port is answered.
        media_domains: Hosts that pictures may be fetched from, by https only.
        media_path: Directory that ``file:`` pictures may lie below; None: none are read.
        fetch_timeout: Seconds that fetching a picture may take.
        image_cache: Bytes of visual tokens that a bundle keeps of the latest pictures, for those that come again.
        conversations: How many a bundle keeps in its decoder's cache, to go on from; 0: requests are read as a whole.
        access_log: Whether each request is a line on stderr.
    """

    max_concurrency: int = 1
    queue: int = 32
    timeout: float = 300.0
    grace: float = 30.0
    max_tokens: int = 1024
    max_body: int = 20 * MIB
    max_pixels: int = 32_000_000
    api_keys: tuple[str, ...] = ()
    media_domains: tuple[str, ...] = ()
    media_path: Path | None = None
    fetch_timeout: float = 10.0
    image_cache: int = 64 * MIB
    conversations: int = 0
    access_log: bool = True
