"""Downloads of images: retries, redirects, opt-outs, and the order in which many of them start and finish."""

from __future__ import annotations

import re
import threading
import time
import zlib
from collections import Counter, deque
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from queue import SimpleQueue
from typing import Self, TypeVar
from urllib.parse import urljoin

from dcclip_cli.curation.candidate import Candidate, Drop
from dcclip_cli.curation.fetch.client import Answer, Client
from dcclip_cli.curation.fetch.connect import time_limit
from dcclip_cli.curation.fetch.request import Fault, FetchOptions, Target, read_url
from dcclip_cli.curation.fetch.robots import ROBOTS_BYTES, Robots

_REDIRECTS = (301, 302, 303, 307, 308)
_TRANSIENT = (408, 429, 500, 502, 503, 504)  # statuses that are retried
_MAX_RETRY_AFTER_S = 60
_OPT_OUTS = {"noai", "noimageai", "noindex", "noimageindex", "none"}
_VALUED = ("unavailable_after", "max-snippet", "max-image-preview", "max-video-preview")  # directives with a colon
_AHEAD = 16  # candidates for each worker that are in progress: a slow server must not stop all behind it
_HELD_BYTES = 128_000_000  # of images in memory, above which only the candidate that others wait for is started

Got = TypeVar("Got")
Fetch = Callable[[str], bytes | Drop]


class Fetcher:
    """Downloads images, with its own connections and caches of names and robots.txt. Thread-safe."""

    def __init__(self, options: FetchOptions | None = None) -> None:
        self._options = options or FetchOptions()
        self._client = Client(self._options)
        self._slots = HostSlots(self._options.per_host)
        self._robots = Robots(self._options.user_agent, self._robots_file) if self._options.robots else None
        self._closing = threading.Event()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End waits for retries and close idle connections."""
        self._closing.set()
        self._client.close()

    def fetch(self, url: str) -> bytes | Drop:
        """The content of a URL, whatever it is, or why it cannot be fetched."""
        try:
            return self._with_retries(url, lambda: self._follow(read_url(url), self._options.max_bytes))
        except Fault as fault:
            return fault.drop

    def fetch_all(self, candidates: Iterable[Candidate]) -> Generator[Candidate, None, None]:
        """The candidates in their order; those with a URL and no fault get their image or a fault."""
        return fetch_in_order(iter(candidates), self.fetch, self._options.workers, self._options.per_host)

    def _with_retries(self, url: str, one_try: Callable[[], Got]) -> Got:
        # The same in each run, but different for the URLs of one host.
        jitter = 1 + zlib.crc32(url.encode(errors="replace")) / 2**32
        for before in range(self._options.retries):
            try:
                return one_try()
            except Fault as fault:
                wait_s = max(fault.wait_s, self._options.back_off_s * 2**before * jitter)
                if not fault.again or self._closing.wait(wait_s):
                    raise
        return one_try()

    def _follow(self, target: Target, limit: int, robots_file: bool = False) -> bytes:
        """The body after redirects. Waiting for a free slot of a host does not count towards the time limit."""
        left = self._options.timeout_s
        for _ in range(self._options.max_redirects + 1):
            if self._robots and not robots_file:
                self._robots.check(target)
            with self._slots.take(target.host):
                start = time.monotonic()
                with time_limit(left):
                    answer = self._client.get(target, limit, cut=robots_file)
                left -= time.monotonic() - start
            location = answer.headers.get("Location")
            if answer.status not in _REDIRECTS or not location:
                return self._body(answer, robots_file)
            target = read_url(_absolute(target, location))
        raise Fault("url-redirects", f"more than {self._options.max_redirects} redirects")

    def _body(self, answer: Answer, robots_file: bool) -> bytes:
        if answer.status != 200:
            again = answer.status in _TRANSIENT
            wait_s = _retry_after(answer.headers) if again else 0
            raise Fault(f"url-status-{answer.status}", f"status {answer.status}", again, wait_s, answer.status)
        if robots_file:
            return answer.body
        if self._options.opt_outs and (
            word := _opt_out(answer.headers.getlist("X-Robots-Tag"), self._options.user_agent)
        ):
            raise Fault("url-opt-out", f"X-Robots-Tag: {word}")
        if not answer.body:
            raise Fault("url-empty", "the answer has no body")
        return answer.body

    def _robots_file(self, target: Target) -> bytes:
        return self._with_retries(target.url, lambda: self._follow(target, ROBOTS_BYTES, robots_file=True))


def _absolute(target: Target, location: str) -> str:
    """A redirect's URL. http.client decodes headers as Latin-1; servers write Chinese paths in UTF-8."""
    with suppress(UnicodeError):
        location = location.encode("latin-1").decode()
    try:
        return urljoin(target.url, location)
    except ValueError:
        raise Fault("url-malformed", f"redirect to {location[:80]}") from None


def _retry_after(headers: Mapping[str, str]) -> float:
    value = headers.get("Retry-After", "").strip()
    return min(int(value), _MAX_RETRY_AFTER_S) if re.fullmatch("[0-9]{1,9}", value) else 0


def _opt_out(tags: Iterable[str], agent: str) -> str | None:
    """The directive by which a site opts out: `noai` for all robots, or `dcclip: noai` for this one."""
    me = re.split(r"[/\s]", agent.lower(), maxsplit=1)[0]
    for tag in tags:
        robot, colon, _ = tag.lower().partition(":")
        if colon and robot.strip() not in (me, *_VALUED) and "," not in robot:
            continue  # for another robot
        for word in re.split(r"[\s,:]+", tag.lower()):
            if word in _OPT_OUTS:
                return word
    return None


class HostSlots:
    """Lets a limited number of threads at a time talk to each host; the others wait for a slot."""

    def __init__(self, per_host: int) -> None:
        self._per_host = per_host
        self._busy: Counter[str] = Counter()
        self._changed = threading.Condition()

    @contextmanager
    def take(self, host: str) -> Iterator[None]:
        """Hold one of the host's slots while the block runs. The thread must not hold another host's slot."""
        with self._changed:
            self._changed.wait_for(lambda: self._busy[host] < self._per_host)
            self._busy[host] += 1
        try:
            yield
        finally:
            with self._changed:
                self._busy[host] -= 1
                self._busy += Counter()  # forgets hosts with none
                self._changed.notify_all()


@dataclass(eq=False)
class _Queued:
    """A candidate in the queue of `fetch_in_order`."""

    candidate: Candidate
    host: str = ""
    started: bool = False
    got: bytes | Drop | None = None  # written by the thread that fetches, read when `back` returns it
    done: bool = False

    @classmethod
    def of(cls, candidate: Candidate) -> _Queued:
        if candidate.url is None or candidate.fault is not None:
            return cls(candidate, done=True)
        try:
            return cls(candidate, read_url(candidate.url).host)
        except Fault as fault:
            return cls(replace(candidate, fault=fault.drop), done=True)

    @property
    def size(self) -> int:
        pair = self.candidate.pair
        return len(pair.image) + sum(map(len, pair.zh + pair.en)) + len(str(pair.meta))

    def finish(self) -> None:
        """Put what was fetched into the candidate."""
        if self.got is None:
            raise RuntimeError("a download ended by a bug in dcclip: see the traceback above")
        if isinstance(self.got, Drop):
            self.candidate = replace(self.candidate, fault=self.got)
        else:
            self.candidate = replace(self.candidate, pair=replace(self.candidate.pair, image=self.got), url=None)
        self.got, self.done = None, True


def fetch_in_order(
    candidates: Iterator[Candidate], fetch: Fetch, workers: int, per_host: int
) -> Generator[Candidate, None, None]:
    """The candidates in their order, fetched by `workers` threads.

    Downloads start in that order too, but a host with `per_host` downloads does not delay those of other hosts.
    """
    todo: SimpleQueue[_Queued | None] = SimpleQueue()
    back: SimpleQueue[_Queued] = SimpleQueue()
    threads = 0
    queue: deque[_Queued] = deque()
    running: Counter[str] = Counter()  # by host
    held, more = 0, True
    try:
        while queue or more:
            while queue and queue[0].done:
                one = queue.popleft()
                held -= one.size
                yield one.candidate
            candidate = None
            if more and len(queue) < _AHEAD * workers and held < _HELD_BYTES:
                candidate = next(candidates, None)
                more = candidate is not None
            if candidate is not None:
                queue.append(_Queued.of(candidate))
                held += queue[-1].size
            for one in _startable(queue, running, workers, per_host, held):
                if threads < workers:
                    threading.Thread(target=_work, args=(todo, back, fetch), name="fetch", daemon=True).start()
                    threads += 1
                one.started = True
                running[one.host] += 1
                todo.put(one)
            # Nothing was added and the head of the queue is not done: wait. It is running, so something will come back.
            wait = candidate is None and bool(queue) and not queue[0].done
            while wait or not back.empty():
                one, wait = back.get(), False
                running[one.host] -= 1
                if not running[one.host]:
                    del running[one.host]
                held -= one.size
                one.finish()
                held += one.size
    finally:
        for _ in range(threads):
            todo.put(None)  # they are daemons: a caller that stops early does not wait for them


def _startable(
    queue: deque[_Queued], running: Counter[str], workers: int, per_host: int, held: int
) -> Iterator[_Queued]:
    for index, one in enumerate(queue):
        if running.total() >= workers or (index and held >= _HELD_BYTES):
            return
        if not one.started and not one.done and running[one.host] < per_host:
            yield one


def _work(todo: SimpleQueue[_Queued | None], back: SimpleQueue[_Queued], fetch: Fetch) -> None:
    while one := todo.get():
        try:
            one.got = fetch(one.candidate.url or "")
        finally:  # with nothing, if a bug of ours ends this thread
            back.put(one)
