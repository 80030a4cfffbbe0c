"""How many downloads may one host have at a time?"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager


class HostSlots:
    """Lets only so many threads at a time talk to one host; the others wait for their turn."""

    def __init__(self, per_host: int) -> None:
        self._per_host = per_host
        self._busy: dict[str, int] = {}
        self._changed = threading.Condition()

    @contextmanager
    def take(self, host: str) -> Iterator[None]:
        """Within it, this thread is one of the few. It must hold no other host's slot."""
        with self._changed:
            self._changed.wait_for(lambda: self._busy.get(host, 0) < self._per_host)
            self._busy[host] = self._busy.get(host, 0) + 1
        try:
            yield
        finally:
            with self._changed:
                self._busy[host] -= 1
                if not self._busy[host]:
                    del self._busy[host]
                self._changed.notify_all()
