"""How much time has this thread left for what it reads from the network?

A time limit on each read is none on a server that sends a byte a second. So each thread has one moment by which all
must be there, and each read asks for what is left until then.
"""

from __future__ import annotations

import socket
import ssl
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


class _Clock(threading.local):
    end = float("inf")


_clock = _Clock()


@contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """Within it, this thread's reads end after so many seconds in all, with a TimeoutError."""
    _clock.end = time.monotonic() + seconds
    try:
        yield
    finally:
        _clock.end = _Clock.end


def time_left() -> float:
    """Seconds until this thread's time limit; TimeoutError where there are none."""
    left = _clock.end - time.monotonic()
    if left <= 0:
        raise TimeoutError
    return min(left, threading.TIMEOUT_MAX)


class TimedSocket(socket.socket):
    """A socket that keeps to the time limit of the thread that reads from it."""

    def recv_into(self, *args: Any, **options: Any) -> int:
        self.settimeout(time_left())
        return super().recv_into(*args, **options)


class TimedTlsSocket(ssl.SSLSocket):
    """The same under TLS; Python counts a handshake as one read."""

    def recv_into(self, *args: Any, **options: Any) -> int:
        self.settimeout(time_left())
        return super().recv_into(*args, **options)
