"""Fetch a picture by https from a host that is allowed, and from nowhere else that its name may lead to."""

from __future__ import annotations

import http.client
import ipaddress
import socket
import ssl
import time
from collections.abc import Callable, Sequence
from urllib.parse import urlsplit

from lmmprune.compiler.serve.errors import ApiError
from lmmprune.version import __version__

_PARAM = "messages"
_SLOW = "image_url: the host is too slow"
_PORT = 443
_PIECE = 2**16

Resolve = Callable[[str], list[str]]


def resolve(host: str) -> list[str]:
    """Return the addresses of a host.

    Raises:
        OSError: It has none.
    """
    return [str(entry[4][0]) for entry in socket.getaddrinfo(host, _PORT, type=socket.SOCK_STREAM)]


def is_public(address: str) -> bool:
    """Say whether an address is one of the whole internet: not this machine, not its networks."""
    found = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(found, ipaddress.IPv6Address):
        inner = found.ipv4_mapped or found.sixtofour or (found.teredo or (None, None))[1]
        if inner is not None:
            return is_public(str(inner))
        if found in ipaddress.ip_network("64:ff9b::/96"):  # NAT64: an IPv4 address in its last four bytes
            return is_public(str(ipaddress.IPv4Address(int(found) & 0xFFFFFFFF)))
    return found.is_global and not found.is_multicast


class _Pinned(http.client.HTTPSConnection):
    """A connection to an address that was looked at, whatever the name says when it is asked again."""

    def __init__(self, host: str, address: tuple[str, int], context: ssl.SSLContext, timeout: float) -> None:
        super().__init__(host, context=context, timeout=timeout)
        self._address, self._tls = address, context

    def connect(self) -> None:
        plain = socket.create_connection(self._address, self.timeout)
        try:
            self.sock = self._tls.wrap_socket(plain, server_hostname=self.host)
        except BaseException:
            plain.close()
            raise


def fetch(
    url: str,
    domains: Sequence[str],
    *,
    timeout: float,
    limit: int,
    resolve: Resolve = resolve,
    public: Callable[[str], bool] = is_public,
    context: ssl.SSLContext | None = None,
    port: int = _PORT,
) -> bytes:
    """Return what stands behind a URL.

    Args:
        url: It must be https, without user, and of the usual port.
        domains: Hosts that are allowed, by their whole names.
        timeout: Seconds that it may take in all.
        limit: Bytes at most.
        resolve: Name -> addresses.
        public: Which addresses are allowed; all of a host must be.
        context: How certificates are checked; None: as the system does.
        port: Where the host is asked.

    Raises:
        ApiError: It isn't allowed, answers with anything but 200 (a redirect too), or is too slow or too large.
    """
    try:
        parts = urlsplit(url)
        host, given = (parts.hostname or "").rstrip("."), parts.port
    except ValueError as error:
        raise ApiError("image_url: the URL is damaged", param=_PARAM) from error
    if host not in {domain.lower().rstrip(".") for domain in domains}:
        raise ApiError("image_url: this server fetches nothing from that host", param=_PARAM)
    if parts.username is not None or parts.password is not None or given not in (None, _PORT) or not url.isascii():
        raise ApiError("image_url: expected https://HOST/PATH, without user and port", param=_PARAM)
    end = time.monotonic() + timeout
    failed = ApiError("image_url: the picture can't be fetched", param=_PARAM)
    try:
        addresses = resolve(host)
        if not addresses or not all(map(public, addresses)):
            raise ApiError("image_url: that host isn't on the public internet", param=_PARAM)
        tls = context or ssl.create_default_context()
        connection = _Pinned(host, (addresses[0], port), tls, timeout)
        try:
            target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
            agent = {"User-Agent": f"lmmprune/{__version__}", "Accept": "image/*", "Accept-Encoding": "identity"}
            connection.request("GET", target, headers=agent)
            return _read(connection, end, limit)
        finally:
            connection.close()
    except TimeoutError as error:
        raise ApiError(_SLOW, param=_PARAM) from error
    except (OSError, http.client.HTTPException, ValueError) as error:
        raise failed from error


def _read(connection: http.client.HTTPSConnection, end: float, limit: int) -> bytes:
    stream = connection.sock  # the connection lets go of it when the host will close
    response = connection.getresponse()
    if response.status != 200:
        raise ApiError(f"image_url: the host answered {response.status}, and no redirect is followed", param=_PARAM)
    data = bytearray()
    while True:
        left = end - time.monotonic()
        if left <= 0:
            raise ApiError(_SLOW, param=_PARAM)
        if stream is not None:
            stream.settimeout(left)
        piece = response.read1(_PIECE)  # whatever came: a host that drips is found out at the deadline
        if not piece:
            return bytes(data)
        data += piece
        if len(data) > limit:
            raise ApiError(f"image_url: the picture has more than {limit:,} bytes", param=_PARAM)
