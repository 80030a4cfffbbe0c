"""An HTTP client for single GET requests with bounded bodies, on urllib3's connection pools."""

from __future__ import annotations

import socket
import ssl
import zlib
from dataclasses import dataclass
from functools import cache
from http.client import IncompleteRead, RemoteDisconnected
from typing import TYPE_CHECKING

from dcclip_cli.curation.fetch.connect import Connector, TimedTlsSocket, time_left
from dcclip_cli.curation.fetch.request import Fault, FetchOptions, Target, timeout

if TYPE_CHECKING:
    from urllib3 import BaseHTTPResponse, HTTPHeaderDict, PoolManager
    from urllib3.exceptions import HTTPError

_CHUNK = 65_536
_POOLED_HOSTS = 32  # whose idle connections are kept open
_MAX_DISCARDED_BYTES = 8_192  # of an error's body, which is read to reuse the connection; for longer ones it is closed
# Supported formats come first: a server that chooses by this header would send AVIF to a browser. No compression is
# requested: image files are compressed already.
_HEADERS = {"Accept": "image/jpeg,image/png,image/webp,*/*;q=0.5", "Accept-Encoding": "identity"}


@dataclass(frozen=True)
class Answer:
    """A server's response; `body` is empty unless the status is 200."""

    status: int
    headers: HTTPHeaderDict
    body: bytes


class Client:
    """Sends GET requests; connections are kept open for further requests to the same host."""

    def __init__(self, options: FetchOptions) -> None:
        self._headers = {"User-Agent": options.user_agent, **_HEADERS}
        self._pools = _pools(Connector(options), _tls(), options.per_host)

    def get(self, target: Target, limit: int, cut: bool = False) -> Answer:
        """The response, within this thread's deadline. A body of more than `limit` bytes is a fault, or is `cut`."""
        from urllib3.exceptions import HTTPError, ProtocolError

        try:
            try:
                response = self._open(target)
            except ProtocolError:  # perhaps the server was just closing a kept connection: try once more on a new one
                response = self._open(target)
            try:
                body = _body(response, limit, cut) if response.status == 200 else b""
            finally:
                _end(response)
        except HTTPError as error:
            raise _fault(error, target.host) from None
        except TimeoutError:
            raise timeout(target.host) from None
        return Answer(response.status, response.headers, body)

    def close(self) -> None:
        """Close idle connections."""
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


def _fault(error: HTTPError, host: str) -> Fault:
    """The fault for an exception of urllib3, whose own text contains memory addresses."""
    from urllib3 import exceptions

    cause = next((one for one in (*error.args, error.__cause__) if isinstance(one, Exception)), error)
    if isinstance(cause, ssl.SSLCertVerificationError):
        return Fault("url-tls", f"{host}: {cause.verify_message}")
    if isinstance(cause, ssl.SSLError):
        return Fault("url-tls", f"{host}: {cause.reason or type(cause).__name__}")
    if isinstance(error, exceptions.TimeoutError) or isinstance(cause, TimeoutError):
        return timeout(host)
    lost = isinstance(cause, OSError | RemoteDisconnected | IncompleteRead | exceptions.IncompleteRead)
    kind = "broke the connection" if lost else "did not answer in HTTP"
    return Fault("url-broken", f"{host} {kind} ({type(cause).__name__})", again=lost)


def _body(response: BaseHTTPResponse, limit: int, cut: bool) -> bytes:
    host_says = response.headers.get("Content-Length", "")
    if host_says.isdecimal() and len(host_says) < 20 and int(host_says) > limit and not cut:
        raise Fault("url-bytes", f"the server announces {int(host_says):,} bytes, more than {limit:,}")
    decoder = _decoder(response.headers.get("Content-Encoding", ""))
    body = bytearray()
    # read1 uses http.client, which bounds the lines between chunks; urllib3's own chunk reader does not.
    while chunk := response.read1(_CHUNK, decode_content=False):
        room = limit - len(body) + 1  # one byte over the limit shows that there is more
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
    """The decompressor for a Content-Encoding. Its output is bounded by the caller, so that a bomb never gets large."""
    match encoding.strip().lower():
        case "" | "identity":
            return None
        case "gzip" | "x-gzip":
            return zlib.decompressobj(16 + zlib.MAX_WBITS)
        case "deflate":
            return zlib.decompressobj(zlib.MAX_WBITS)
    raise Fault("url-encoding", f"sent as {encoding[:40]!r}, though uncompressed was asked for")


def _end(response: BaseHTTPResponse) -> None:
    """Return the connection to its pool if little of the response is left to read, else close it."""
    length = response.headers.get("Content-Length", "")
    if response.status != 200 and length.isdecimal() and len(length) < 5 and int(length) <= _MAX_DISCARDED_BYTES:
        response.read1(_MAX_DISCARDED_BYTES)
    if response.connection is not None:
        response.close()


@cache  # loading the certificates takes longer than many a download
def _tls() -> ssl.SSLContext:
    """Checks certificates and host names against the system's authorities (or $SSL_CERT_FILE) and Mozilla's."""
    import certifi

    context = ssl.create_default_context()
    context.load_verify_locations(certifi.where())
    context.sslsocket_class = TimedTlsSocket
    return context


def _pools(connector: Connector, context: ssl.SSLContext, per_host: int) -> PoolManager:
    """urllib3's connection pools, which ignore proxies in the environment, with sockets from the connector."""
    from urllib3 import HTTPConnectionPool, HTTPSConnectionPool, PoolManager
    from urllib3.connection import HTTPConnection, HTTPSConnection

    def connect(self: HTTPConnection) -> socket.socket:
        return connector.connect(self.host, self.port or self.default_port)

    class Connection(HTTPConnection):
        _new_conn = connect

    class TlsConnection(HTTPSConnection):
        _new_conn = connect

    class Pool(HTTPConnectionPool):
        ConnectionCls = Connection

    class TlsPool(HTTPSConnectionPool):
        ConnectionCls = TlsConnection

    pools = PoolManager(num_pools=_POOLED_HOSTS, maxsize=per_host, ssl_context=context)
    pools.pool_classes_by_scheme = {"http": Pool, "https": TlsPool}
    return pools
