"""In which order do downloads start and come out?

They come out in the order in which they went in, however long each takes. They start in that order too, except that
those of a host which has its fill wait without keeping the others waiting.
"""

from __future__ import annotations

import threading
from collections import Counter, deque
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass, replace
from queue import SimpleQueue

from dcclip_cli.curation.candidate import Candidate, Drop
from dcclip_cli.curation.fetch.fault import Fault
from dcclip_cli.curation.fetch.url import read_url

_AHEAD = 16  # candidates for each worker that are in hand: a slow server must not stop all behind it
_HELD_BYTES = 128_000_000  # in hand, above which nothing is begun but what the others wait for

Fetch = Callable[[str], bytes | Drop]


@dataclass(eq=False)
class _Place:
    """One candidate's place in the line."""

    candidate: Candidate
    host: str = ""  # to be asked; none: nothing to do
    started: bool = False
    got: bytes | Drop | None = None  # written by the thread that fetches, read when the place comes back from it
    done: bool = False

    @property
    def size(self) -> int:
        pair = self.candidate.pair
        return len(pair.image) + sum(map(len, pair.zh + pair.en)) + len(str(pair.meta))


def fetch_in_order(
    candidates: Iterator[Candidate], fetch: Fetch, workers: int, per_host: int
) -> Generator[Candidate, None, None]:
    """The candidates, fetched by so many threads, in the order in which they came."""
    todo: SimpleQueue[_Place | None] = SimpleQueue()
    back: SimpleQueue[_Place] = SimpleQueue()
    threads = 0
    line: deque[_Place] = deque()
    running: Counter[str] = Counter()  # by host
    held, more = 0, True
    try:
        while line or more:
            while line and line[0].done:
                place = line.popleft()
                held -= place.size
                yield place.candidate
            candidate = None
            if more and len(line) < _AHEAD * workers and held < _HELD_BYTES:
                candidate = next(candidates, None)
                more = candidate is not None
            if candidate is not None:
                line.append(_place(candidate))
                held += line[-1].size
            for place in _startable(line, running, workers, per_host, held):
                if threads < workers:
                    threading.Thread(target=_work, args=(todo, back, fetch), name="fetch", daemon=True).start()
                    threads += 1
                place.started = True
                running[place.host] += 1
                todo.put(place)
            # Nothing was put in line and its head is not there yet: wait. Something is running, or the head would be.
            wait = candidate is None and bool(line) and not line[0].done
            while wait or not back.empty():
                place, wait = back.get(), False
                running[place.host] -= 1
                if not running[place.host]:
                    del running[place.host]
                held -= place.size
                _finish(place)
                held += place.size
    finally:
        for _ in range(threads):
            todo.put(None)  # they are daemons: whoever stops early need not wait for what they are still reading


def _place(candidate: Candidate) -> _Place:
    if candidate.url is None or candidate.fault is not None:
        return _Place(candidate, done=True)
    try:
        return _Place(candidate, read_url(candidate.url).host)
    except Fault as fault:
        return _Place(replace(candidate, fault=fault.drop), done=True)


def _startable(line: deque[_Place], running: Counter[str], workers: int, per_host: int, held: int) -> Iterator[_Place]:
    for index, place in enumerate(line):
        if running.total() >= workers or (index and held >= _HELD_BYTES):
            return
        if not place.started and not place.done and running[place.host] < per_host:
            yield place


def _work(todo: SimpleQueue[_Place | None], back: SimpleQueue[_Place], fetch: Fetch) -> None:
    while place := todo.get():
        try:
            place.got = fetch(place.candidate.url or "")
        finally:  # without having got anything, if a mistake of ours ends this thread
            back.put(place)


def _finish(place: _Place) -> None:
    candidate, got = place.candidate, place.got
    if got is None:
        raise RuntimeError("a download ended by a mistake in dcclip: its traceback stands above")
    if isinstance(got, Drop):
        place.candidate = replace(candidate, fault=got)
    else:
        place.candidate = replace(candidate, pair=replace(candidate.pair, image=got), url=None)
    place.got, place.done = None, True
