"""Sockets that connect to checked addresses only and keep to the time limit of their thread.

A host name is looked up once for each connection, its addresses are checked, and the socket connects to one of exactly
those addresses. So there is no second look-up that could answer differently (DNS rebinding), and every spelling of
127.0.0.1 (2130706433, 0x7f.1, ::ffff:7f00:1, a name) is the same address. Redirects connect in the same way.

A time limit on each read does not stop a server that sends a byte a second. So each thread has a deadline, and each
read waits at most until then.
"""

from __future__ import annotations

import ipaddress
import socket
import ssl
import threading
import time
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from dcclip_cli.curation.fetch.request import Fault, FetchOptions

_MAX_ADDRESSES = 4  # of one host that are tried
_CACHED_NAMES = 10_000
_CACHED_NAMES_S = 300  # collecting looks up the same hosts again and again, and resolvers refuse floods
_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")  # a public IPv4 address in its last four bytes, on IPv6-only networks
# Networks that Python does not call private (or not in every version) and that lead to local networks or to IPv4.
_NEVER = [ipaddress.ip_network(net) for net in ("192.88.99.0/24", "64:ff9b:1::/48", "2001::/23", "2002::/16")]
_NEVER += [ipaddress.ip_network(net) for net in ("192.0.0.0/24", "fec0::/10", "3fff::/20", "5f00::/16")]

Address = ipaddress.IPv4Address | ipaddress.IPv6Address


class _Clock(threading.local):
    end = float("inf")


_clock = _Clock()


@contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """While the block runs, reads of this thread raise TimeoutError after this many seconds in total."""
    _clock.end = time.monotonic() + seconds
    try:
        yield
    finally:
        _clock.end = _Clock.end


def time_left() -> float:
    """Seconds until this thread's deadline. Raises TimeoutError after it."""
    left = _clock.end - time.monotonic()
    if left <= 0:
        raise TimeoutError
    return min(left, threading.TIMEOUT_MAX)


class TimedSocket(socket.socket):
    """A socket that keeps to the deadline of the thread that reads from it."""

    def recv_into(self, *args: Any, **options: Any) -> int:
        self.settimeout(time_left())
        return super().recv_into(*args, **options)


class TimedTlsSocket(ssl.SSLSocket):
    """The same for TLS; Python counts a handshake as one read."""

    def recv_into(self, *args: Any, **options: Any) -> int:
        self.settimeout(time_left())
        return super().recv_into(*args, **options)


def is_public(address: Address) -> bool:
    """Whether an address, or the IPv4 address embedded in it, belongs to the public internet."""
    if isinstance(address, ipaddress.IPv6Address):
        inner = address.ipv4_mapped
        if address in _NAT64:
            inner = ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
        if inner is not None:
            return is_public(inner)
    bad = address.is_private or address.is_multicast or address.is_reserved or address.is_unspecified
    return address.is_global and not bad and not any(address in network for network in _NEVER)


@dataclass(frozen=True)
class _Resolved:
    """One address of a host, as getaddrinfo gives it."""

    family: int
    protocol: int
    where: tuple[Any, ...]

    @property
    def address(self) -> Address:
        return ipaddress.ip_address(self.where[0])


class Connector:
    """Opens the sockets of one Fetcher."""

    def __init__(self, options: FetchOptions) -> None:
        self._hosts = frozenset(options.allow_hosts)
        self._networks = options.allow_networks
        self._names: OrderedDict[str, tuple[float, list[_Resolved] | Fault]] = OrderedDict()
        self._lock = threading.Lock()

    def connect(self, host: str, port: int) -> socket.socket:
        """A connected socket. Faults: `url-private`, `url-unreachable`; TimeoutError after the deadline."""
        found = self._look_up(host)
        written = f"[{host}]" if ":" in host else host
        if not {written, f"{written}:{port}"} & self._hosts:
            # A private address among public ones is no accident; sorted, since resolvers shuffle them.
            for address in sorted((one.address for one in found), key=str):
                if not is_public(address) and not any(address in network for network in self._networks):
                    raise Fault("url-private", f"{written} is {address}, not an address of the public internet")
        for index, one in enumerate(found):
            try:
                return _open(one, port, time_left() / (len(found) - index))
            except OSError as error:
                if index + 1 < len(found):
                    continue
                if isinstance(error, TimeoutError):
                    raise
                raise Fault("url-unreachable", f"{written}:{port}: {error.strerror or error}") from None
        raise AssertionError("_look_up raises for a host without addresses")

    def _look_up(self, host: str) -> list[_Resolved]:
        with self._lock:
            expires, found = self._names.get(host, (0.0, []))
        if expires < time.monotonic():
            found = _resolve(host)
            if not (isinstance(found, Fault) and found.again):
                with self._lock:
                    self._names[host] = (time.monotonic() + _CACHED_NAMES_S, found)
                    if len(self._names) > _CACHED_NAMES:
                        self._names.popitem(last=False)
        if isinstance(found, Fault):
            # A new one: an exception that is raised again and again collects tracebacks.
            raise Fault(found.drop.reason, found.drop.detail, found.again)
        return found


def _open(one: _Resolved, port: int, seconds: float) -> socket.socket:
    opened = TimedSocket(one.family, socket.SOCK_STREAM, one.protocol)
    try:
        opened.settimeout(seconds)
        opened.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        opened.connect((one.where[0], port, *one.where[2:]))
        opened.settimeout(time_left())
    except BaseException:
        opened.close()
        raise
    return opened


def _resolve(host: str) -> list[_Resolved] | Fault:
    """A host's addresses. getaddrinfo has no time limit, so it runs in a thread that is abandoned if necessary."""
    found: list[list[_Resolved] | Fault] = []

    def ask() -> None:
        try:
            rows = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
        except (OSError, UnicodeError) as error:
            transient = getattr(error, "errno", None) == socket.EAI_AGAIN
            found.append(Fault("url-unreachable", f"{host} has no address", again=transient))
            return
        found.append([_Resolved(family, protocol, where) for family, _, protocol, _, where in rows[:_MAX_ADDRESSES]])

    thread = threading.Thread(target=ask, name="name look-up", daemon=True)
    thread.start()
    thread.join(time_left())
    if not found:
        raise TimeoutError
    return found[0] or Fault("url-unreachable", f"{host} has no address")
