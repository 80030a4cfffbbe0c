"""May this host be connected to? The address that is checked is the address that is connected to.

A name is looked up once for a connection, its addresses are checked, and the socket is opened to one of those numbers:
there is no second look-up that could answer otherwise (DNS rebinding), and every way to write 127.0.0.1 (2130706433,
0x7f.1, ::ffff:7f00:1, a name) comes out as the same number. Redirects open their connections here as well.
"""

from __future__ import annotations

import ipaddress
import socket
import threading
import time
from collections import OrderedDict
from dataclasses import dataclass
from typing import Any

from dcclip_cli.curation.fetch.clock import TimedSocket, time_left
from dcclip_cli.curation.fetch.fault import Fault
from dcclip_cli.curation.fetch.options import FetchOptions

_ADDRESSES = 4  # of one host that are tried
_NAMES = 10_000  # remembered
_NAMES_S = 300  # and for how long: collecting asks for one host again and again, and resolvers refuse floods
_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")  # a public IPv4 address in its last four bytes, on IPv6-only networks
# What Python does not call private (or not in every version) and leads into local networks or into IPv4.
_NEVER = [ipaddress.ip_network(net) for net in ("192.88.99.0/24", "64:ff9b:1::/48", "2001::/23", "2002::/16")]
_NEVER += [ipaddress.ip_network(net) for net in ("192.0.0.0/24", "fec0::/10", "3fff::/20", "5f00::/16")]

Address = ipaddress.IPv4Address | ipaddress.IPv6Address


@dataclass(frozen=True)
class _Place:
    """What getaddrinfo says of one address of a host."""

    family: int
    protocol: int
    where: tuple[Any, ...]

    @property
    def address(self) -> Address:
        return ipaddress.ip_address(self.where[0])


def is_public(address: Address) -> bool:
    """Whether an address is of the public internet, the IPv4 address within an IPv6 address too."""
    if isinstance(address, ipaddress.IPv6Address):
        inner = address.ipv4_mapped
        if address in _NAT64:
            inner = ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
        if inner is not None:
            return is_public(inner)
    bad = address.is_private or address.is_multicast or address.is_reserved or address.is_unspecified
    return address.is_global and not bad and not any(address in network for network in _NEVER)


class Connector:
    """Opens the sockets of one Fetcher."""

    def __init__(self, options: FetchOptions) -> None:
        self._hosts = frozenset(options.allow_hosts)
        self._networks = options.allow_networks
        self._names: OrderedDict[str, tuple[float, list[_Place] | Fault]] = OrderedDict()
        self._lock = threading.Lock()

    def connect(self, host: str, port: int) -> socket.socket:
        """A connected socket. Faults: `url-private`, `url-unreachable`; TimeoutError when the time is over."""
        places = self._look_up(host)
        written = f"[{host}]" if ":" in host else host
        if not {written, f"{written}:{port}"} & self._hosts:
            # One bad address among good ones is no accident, and which of them comes first is.
            for address in sorted((place.address for place in places), key=str):
                if not is_public(address) and not any(address in network for network in self._networks):
                    raise Fault("url-private", f"{written} is {address}, not an address of the public internet")
        for index, place in enumerate(places):
            try:
                return _open(place, port, time_left() / (len(places) - index))
            except OSError as error:
                if index + 1 < len(places):
                    continue
                if isinstance(error, TimeoutError):
                    raise
                raise Fault("url-unreachable", f"{written}:{port}: {error.strerror or error}") from None
        raise AssertionError("a host without addresses is a fault of the look-up")

    def _look_up(self, host: str) -> list[_Place]:
        with self._lock:
            expires, found = self._names.get(host, (0.0, []))
        if expires < time.monotonic():
            found = _resolve(host)
            if not (isinstance(found, Fault) and found.again):
                with self._lock:
                    self._names[host] = (time.monotonic() + _NAMES_S, found)
                    if len(self._names) > _NAMES:
                        self._names.popitem(last=False)
        if isinstance(found, Fault):
            raise Fault(found.drop.reason, found.drop.detail, found.again)  # one raised again and again grows
        return found


def _open(place: _Place, port: int, seconds: float) -> socket.socket:
    opened = TimedSocket(place.family, socket.SOCK_STREAM, place.protocol)
    try:
        opened.settimeout(seconds)
        opened.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        opened.connect((place.where[0], port, *place.where[2:]))
        opened.settimeout(time_left())
    except BaseException:
        opened.close()
        raise
    return opened


def _resolve(host: str) -> list[_Place] | Fault:
    """A host's addresses. getaddrinfo has no time limit, so it runs in a thread that is left behind if need be."""
    found: list[list[_Place] | Fault] = []

    def ask() -> None:
        try:
            rows = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
        except (OSError, UnicodeError) as error:
            passing = getattr(error, "errno", None) == socket.EAI_AGAIN
            found.append(Fault("url-unreachable", f"{host} has no address", again=passing))
            return
        found.append([_Place(family, protocol, where) for family, _, protocol, _, where in rows[:_ADDRESSES]])

    thread = threading.Thread(target=ask, name="name look-up", daemon=True)
    thread.start()
    thread.join(time_left())
    if not found:
        raise TimeoutError
    return found[0] or Fault("url-unreachable", f"{host} has no address")
