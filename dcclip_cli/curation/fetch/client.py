"""An HTTP client for single GET requests, on urllib3's connection pools: checked addresses,
bounded bodies, deadlines.

A host name is looked up once for each connection, its addresses are checked, and the socket
connects to one of exactly those addresses. So there is no second look-up that could answer
differently (DNS rebinding), and every spelling of 127.0.0.1 (2130706433, 0x7f.1, ::ffff:7f00:1, a
name) is the same address. Redirects connect in the same way.

A time limit on each read does not stop a server that sends a byte a second. So each thread has a
deadline, and each read waits at most until then.
"""

import ipaddress
import socket
import ssl
import threading
import time
from functools import cache
from http.client import IncompleteRead, RemoteDisconnected
from typing import Any

import certifi
from urllib3 import (
    BaseHTTPResponse,
    HTTPConnectionPool,
    HTTPSConnectionPool,
    PoolManager,
    exceptions,
)
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.util import Url

from dcclip_cli.curation.fetch import USER_AGENT, FetchFault, FetchOptions, timeout

_MAX_ADDRESSES = 4  # of one host that are tried
_CHUNK = 65_536
_POOLED_HOSTS = 32  # whose idle connections are kept open
_MAX_DISCARDED_BYTES = (
    # of an error's body, which is read to reuse the connection; for longer ones it is closed
    8_192
)
# Supported formats come first: a server that chooses by this header would send AVIF to a browser.
# No compression is requested: image files are compressed already.
_HEADERS = {"Accept": "image/jpeg,image/png,image/webp,*/*;q=0.5", "Accept-Encoding": "identity"}
_NAT64 = ipaddress.IPv6Network(
    "64:ff9b::/96"
)  # a public IPv4 address in its last four bytes, on IPv6-only networks
# Networks that Python does not call private (or not in every version) and that lead to local
# networks or to IPv4.
_NEVER = [
    ipaddress.ip_network(net)
    for net in ("192.88.99.0/24", "64:ff9b:1::/48", "2001::/23", "2002::/16")
]
_NEVER += [
    ipaddress.ip_network(net) for net in ("192.0.0.0/24", "fec0::/10", "3fff::/20", "5f00::/16")
]

Address = ipaddress.IPv4Address | ipaddress.IPv6Address


_clock = threading.local()  # its `end`: until when this thread may read


def _time_left() -> float:
    """Seconds until this thread's deadline. Raises TimeoutError after it."""
    seconds = _clock.end - time.monotonic()
    if seconds <= 0:
        raise TimeoutError
    return min(seconds, threading.TIMEOUT_MAX)


class TimedSocket(socket.socket):
    """A socket that keeps to the deadline of the thread that reads from it."""

    def recv_into(self, *args: Any, **options: Any) -> int:
        self.settimeout(_time_left())
        return super().recv_into(*args, **options)


class _TimedTlsSocket(TimedSocket, ssl.SSLSocket):
    """The same for TLS; Python counts a handshake as one read."""


def is_public(address: Address) -> bool:
    """Whether an address, or the IPv4 address embedded in it, belongs to the public internet."""
    if isinstance(address, ipaddress.IPv6Address):
        inner = address.ipv4_mapped
        if address in _NAT64:
            inner = ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
        if inner is not None:
            return is_public(inner)
    bad = (
        address.is_private or address.is_multicast or address.is_reserved or address.is_unspecified
    )
    return address.is_global and not bad and not any(address in network for network in _NEVER)


def _look_up(host: str) -> list[Any]:
    """Rows of getaddrinfo. It has no time limit, so it runs in a thread that is abandoned if
    necessary.
    """
    answers: list[tuple[list[Any], bool]] = []

    def ask() -> None:
        try:
            answers.append(
                (socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)[:_MAX_ADDRESSES], False)
            )
        except (OSError, UnicodeError) as error:
            answers.append(([], getattr(error, "errno", None) == socket.EAI_AGAIN))

    thread = threading.Thread(target=ask, name="name look-up", daemon=True)
    thread.start()
    thread.join(_time_left())
    if not answers:
        raise TimeoutError
    rows, again = answers[0]
    if not rows:
        raise FetchFault("url-unreachable", f"{host} has no address", again=again)
    return rows


class Client:
    """Sends GET requests; connections are kept open for further requests to the same host."""

    def __init__(self, options: FetchOptions) -> None:
        self._headers = {"User-Agent": USER_AGENT, **_HEADERS}
        self._pools = _pools(options)

    def get(
        self, url: Url, limit: int, seconds: float, cut: bool = False
    ) -> tuple[BaseHTTPResponse, bytes]:
        """The response within so many seconds, and its body if the status is 200; over `limit`
        `cut`, or a fault.
        """
        _clock.end = time.monotonic() + seconds
        try:
            try:
                response = self._open(url)
            except (
                exceptions.ProtocolError
            ):  # perhaps the server was closing a kept connection: try a new one, once
                response = self._open(url)
            try:
                body = _read_body(response, limit, cut) if response.status == 200 else b""
            finally:  # return the connection to its pool if little of the response is left to read, else close it
                remaining = response.length_remaining
                if remaining is not None and remaining <= _MAX_DISCARDED_BYTES:
                    response.read1(_MAX_DISCARDED_BYTES)
                if response.connection is not None:
                    response.close()
        except exceptions.HTTPError as error:
            raise _fault(error, str(url.host)) from None
        except TimeoutError:
            raise timeout(str(url.host)) from None
        return response, body

    def close(self) -> None:
        self._pools.clear()

    def _open(self, url: Url) -> BaseHTTPResponse:
        pool = self._pools.connection_from_host(url.host, url.port, url.scheme)
        return pool.urlopen(
            "GET",
            url.request_uri,
            headers=self._headers,
            retries=False,
            redirect=False,
            timeout=_time_left(),
            preload_content=False,
            decode_content=False,
        )


def _fault(error: exceptions.HTTPError, host: str) -> FetchFault:
    """The fault for an exception of urllib3, whose own text contains memory addresses."""
    cause = next(
        (cause for cause in (*error.args, error.__cause__) if isinstance(cause, Exception)), error
    )
    if isinstance(cause, ssl.SSLCertVerificationError):
        return FetchFault("url-tls", f"{host}: {cause.verify_message}")
    if isinstance(cause, ssl.SSLError):
        return FetchFault("url-tls", f"{host}: {cause.reason or type(cause).__name__}")
    if isinstance(error, exceptions.TimeoutError) or isinstance(cause, TimeoutError):
        return timeout(host)
    lost = isinstance(
        cause, OSError | RemoteDisconnected | IncompleteRead | exceptions.IncompleteRead
    )
    kind = "broke the connection" if lost else "did not answer in HTTP"
    return FetchFault("url-broken", f"{host} {kind} ({type(cause).__name__})", again=lost)


def _read_body(response: BaseHTTPResponse, limit: int, cut: bool) -> bytes:
    if not cut and (response.length_remaining or 0) > limit:
        raise FetchFault(
            "url-bytes",
            f"the server announces {response.length_remaining:,} bytes, more than {limit:,}",
        )
    encoding = response.headers.get("Content-Encoding", "")
    if encoding.strip().lower() not in ("", "identity"):
        raise FetchFault(
            "url-encoding", f"sent as {encoding[:40]!r}, though uncompressed was asked for"
        )
    body = bytearray()
    # read1 uses http.client, which bounds the lines between chunks; urllib3's own chunk reader
    # does not.
    while chunk := response.read1(_CHUNK, decode_content=False):
        body += chunk
        if len(body) > limit:
            if cut:
                return bytes(body[:limit])
            raise FetchFault("url-bytes", f"more than {limit:,} bytes")
    return bytes(body)


@cache  # loading the certificates takes longer than many a download
def _tls() -> ssl.SSLContext:
    """Checks certificates and host names against the system's authorities (or $SSL_CERT_FILE) and
    Mozilla's.
    """
    context = ssl.create_default_context()
    context.load_verify_locations(certifi.where())
    context.sslsocket_class = _TimedTlsSocket
    return context


def _pools(options: FetchOptions) -> PoolManager:
    """urllib3's connection pools, which ignore proxies in the environment, with sockets of checked
    addresses.
    """

    def connect(self: HTTPConnection) -> socket.socket:
        """A connected socket. Faults: `url-private`, `url-unreachable`; TimeoutError after the
        deadline.
        """
        host = self.host
        port = self.port or self.default_port
        rows = _look_up(host)
        written = f"[{host}]" if ":" in host else host
        # A private address among public ones is no accident; sorted, since resolvers shuffle them.
        for address in sorted((ipaddress.ip_address(where[0]) for *_, where in rows), key=str):
            if not is_public(address) and not any(
                address in network for network in options.allow_networks
            ):
                raise FetchFault(
                    "url-private", f"{written} is {address}, not an address of the public internet"
                )
        failure = OSError()
        for index, (family, _, protocol, _, where) in enumerate(rows):
            opened = TimedSocket(family, socket.SOCK_STREAM, protocol)
            try:
                opened.settimeout(_time_left() / (len(rows) - index))
                opened.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                opened.connect((where[0], port, *where[2:]))
                opened.settimeout(_time_left())
                return opened
            except OSError as error:
                opened.close()
                failure = error
        if isinstance(failure, TimeoutError):
            raise failure
        raise FetchFault(
            "url-unreachable", f"{written}:{port}: {failure.strerror or failure}"
        ) from None

    def subclass(pool: type, connection: type) -> Any:
        return type(
            "Pool",
            (pool,),
            {"ConnectionCls": type("Connection", (connection,), {"_new_conn": connect})},
        )

    pools = PoolManager(num_pools=_POOLED_HOSTS, maxsize=options.per_host, ssl_context=_tls())
    http = subclass(HTTPConnectionPool, HTTPConnection)
    https = subclass(HTTPSConnectionPool, HTTPSConnection)
    pools.pool_classes_by_scheme = {"http": http, "https": https}
    return pools
