"""What does a server answer to one GET, with no more of it read than was asked for?"""

from __future__ import annotations

import socket
import ssl
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from dcclip_cli.curation.fetch.clock import TimedTlsSocket, time_left
from dcclip_cli.curation.fetch.connect import Connector
from dcclip_cli.curation.fetch.fault import Fault, fault_of, timeout
from dcclip_cli.curation.fetch.options import FetchOptions
from dcclip_cli.curation.fetch.url import Target
from dcclip_cli.errors import DcclipError

if TYPE_CHECKING:
    from urllib3 import BaseHTTPResponse, PoolManager

_CHUNK = 65_536
_HOSTS = 32  # with open connections kept
_SPARE = 8_192  # bytes of a body that nobody asked for: read to keep the connection if they are no more than that
# Formats that can be kept come first: a server that picks by this line would send AVIF to a browser. No compression is
# asked for: pictures have their own.
_HEADERS = {"Accept": "image/jpeg,image/png,image/webp,*/*;q=0.5", "Accept-Encoding": "identity"}


@dataclass(frozen=True)
class Answer:
    """What a server sent; `body` is empty unless the status is 200."""

    status: int
    headers: Mapping[str, str]  # names in any case
    robots_tags: tuple[str, ...]  # the X-Robots-Tag headers: several may say different things to different robots
    body: bytes


class Client:
    """Open connections, kept for the next request to the same host."""

    def __init__(self, options: FetchOptions) -> None:
        self._headers = {"User-Agent": options.user_agent, **_HEADERS}
        self._pools = _pools(Connector(options), _tls(options.authorities), options.per_host)

    def get(self, target: Target, limit: int, cut: bool = False) -> Answer:
        """The answer to a GET, within this thread's time limit. More than `limit` bytes are a fault, or `cut` off."""
        from urllib3.exceptions import HTTPError, ProtocolError

        try:
            try:
                response = self._open(target)
            except ProtocolError:  # perhaps a kept connection that the server was just closing: once more, on a new one
                response = self._open(target)
            try:
                body = _body(response, limit, cut) if response.status == 200 else b""
            finally:
                _end(response)
        except HTTPError as error:
            raise fault_of(error, target.host) from None
        except TimeoutError:
            raise timeout(target.host) from None
        tags = tuple(response.headers.getlist("X-Robots-Tag"))
        return Answer(response.status, response.headers, tags, body)

    def close(self) -> None:
        """Closes the connections that nothing is being read from."""
        self._pools.clear()

    def _open(self, target: Target) -> BaseHTTPResponse:
        pool = self._pools.connection_from_host(target.host, target.port, target.scheme)
        return pool.urlopen(
            "GET",
            target.page,
            headers=self._headers,
            retries=False,
            redirect=False,
            timeout=time_left(),
            preload_content=False,
            decode_content=False,
        )


def _body(response: BaseHTTPResponse, limit: int, cut: bool) -> bytes:
    host_says = response.headers.get("Content-Length", "")
    if host_says.isdecimal() and len(host_says) < 20 and int(host_says) > limit and not cut:
        raise Fault("url-bytes", f"the server announces {int(host_says):,} bytes, more than {limit:,}")
    decoder = _decoder(response.headers.get("Content-Encoding", ""))
    body = bytearray()
    # read1 goes through http.client, which bounds the lines between chunks; urllib3's own chunk reader does not.
    while chunk := response.read1(_CHUNK, decode_content=False):
        room = limit - len(body) + 1  # one byte over the limit tells that there is more
        try:
            body += decoder.decompress(chunk, room) if decoder else chunk[:room]
        except zlib.error:
            raise Fault("url-encoding", "the compressed body is damaged") from None
        if len(body) > limit:
            if cut:
                return bytes(body[:limit])
            raise Fault("url-bytes", f"more than {limit:,} bytes")
        if decoder and decoder.eof:
            break
    if decoder and not decoder.eof:
        raise Fault("url-encoding", "the compressed body breaks off")
    return bytes(body)


def _decoder(encoding: str) -> zlib._Decompress | None:
    """What undoes a Content-Encoding. It is given how much may come out, so that a bomb never gets large."""
    match encoding.strip().lower():
        case "" | "identity":
            return None
        case "gzip" | "x-gzip":
            return zlib.decompressobj(16 + zlib.MAX_WBITS)
        case "deflate":
            return zlib.decompressobj(zlib.MAX_WBITS)
    raise Fault("url-encoding", f"sent as {encoding[:40]!r}, though uncompressed was asked for")


def _end(response: BaseHTTPResponse) -> None:
    """Gives the connection back if it is at the end of the answer or close to it, else closes it."""
    length = response.headers.get("Content-Length", "")
    if response.status != 200 and length.isdecimal() and len(length) < 5 and int(length) <= _SPARE:
        response.read1(_SPARE)
    if response.connection is not None:
        response.close()


@cache  # reading the authorities takes longer than many a download
def _tls(authorities: Path | None) -> ssl.SSLContext:
    """Checks certificates and host names against the system's authorities, Mozilla's and the recipe's."""
    import certifi

    context = ssl.create_default_context()
    context.load_verify_locations(certifi.where())
    context.sslsocket_class = TimedTlsSocket
    if authorities:
        try:
            context.load_verify_locations(authorities)
        except OSError as error:  # an SSLError is one, too
            raise DcclipError(
                f"fetch.authorities: {authorities}: {error.strerror or error}",
                "name a PEM file of certificates, or leave it out",
            ) from None
    return context


def _pools(connector: Connector, context: ssl.SSLContext, per_host: int) -> PoolManager:
    """urllib3's connection pools (which never ask the environment for a proxy), with our way to open a socket."""
    from urllib3 import HTTPConnectionPool, HTTPSConnectionPool, PoolManager
    from urllib3.connection import HTTPConnection, HTTPSConnection

    class Connection(HTTPConnection):
        def _new_conn(self) -> socket.socket:
            return connector.connect(self.host, self.port or self.default_port)

    class TlsConnection(HTTPSConnection):
        def _new_conn(self) -> socket.socket:
            return connector.connect(self.host, self.port or self.default_port)

    class Pool(HTTPConnectionPool):
        ConnectionCls = Connection

    class TlsPool(HTTPSConnectionPool):
        ConnectionCls = TlsConnection

    pools = PoolManager(num_pools=_HOSTS, maxsize=per_host, ssl_context=context)
    pools.pool_classes_by_scheme = {"http": Pool, "https": TlsPool}
    return pools
