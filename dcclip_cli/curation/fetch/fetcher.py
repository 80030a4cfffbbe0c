"""Downloads of images: robots.txt, retries, redirects, opt-outs, and the order in which they start
and finish.
"""

import re
import threading
import time
import zlib
from collections import Counter, OrderedDict, deque
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Self
from urllib.parse import urljoin

from protego import Protego
from urllib3 import BaseHTTPResponse
from urllib3.util import Url

from dcclip_cli.curation.fetch import (
    AGENT,
    MAX_BYTES,
    USER_AGENT,
    FetchFault,
    FetchOptions,
    read_url,
)
from dcclip_cli.curation.fetch.client import Client
from dcclip_cli.curation.sources.base import Candidate
from dcclip_cli.data.reading import Drop

_MAX_REDIRECTS = 5
_BACK_OFF_S = 1.0  # before the first retry; doubles with each further one
_REDIRECTS = (301, 302, 303, 307, 308)
_TRANSIENT = (408, 429, 500, 502, 503, 504)  # statuses that are retried
_MAX_RETRY_AFTER_S = 60
_OPT_OUTS = {"noai", "noimageai", "noindex", "noimageindex", "none"}
_VALUED = (
    "unavailable_after",
    "max-snippet",
    "max-image-preview",
    "max-video-preview",
)  # directives with a colon
_AHEAD = (
    # candidates for each worker that are in progress: a slow server must not stop all behind it
    16
)
# of images in memory, above which only the candidate that others wait for is started
_HELD_BYTES = 128_000_000

ROBOTS_BYTES = 500 * 1024  # read of a robots.txt; the RFC requires at least that much
_CACHED_BYTES = 50_000_000  # of parsed rules of all sites, roughly
_RULE_BYTES = 500
_AGENT_LINE = re.compile(
    r"\s*user[-\s]*agent[\s:]+([^\s/#]*)", re.IGNORECASE
)  # all that Protego takes for one

Fetch = Callable[[str], bytes | Drop]


class Fetcher:
    """Downloads images, with its own connections and cache of robots.txt. Thread-safe."""

    def __init__(self, options: FetchOptions | None = None) -> None:
        self._options = options or FetchOptions()
        self._client = Client(self._options)
        self._slots: dict[str, threading.Semaphore] = {}  # by host
        self._robots = Robots(USER_AGENT, self._read_robots_file) if self._options.robots else None
        self._closing = threading.Event()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        """End waits for retries and close idle connections."""
        self._closing.set()
        self._client.close()

    def fetch(self, url: str) -> bytes | Drop:
        """The content of a URL, whatever it is, or why it cannot be fetched."""
        try:
            return self._with_retries(url, lambda: self._follow(read_url(url), MAX_BYTES))
        except FetchFault as fault:
            return fault.drop

    def _with_retries(self, url: str, one_try: Callable[[], bytes]) -> bytes:
        # The same in each run, but different for the URLs of one host.
        jitter = 1 + zlib.crc32(url.encode(errors="replace")) / 2**32
        for before in range(self._options.retries):
            try:
                return one_try()
            except FetchFault as fault:
                wait_s = max(fault.wait_s, _BACK_OFF_S * 2**before * jitter)
                if not fault.again or self._closing.wait(wait_s):
                    raise
        return one_try()

    def _follow(self, url: Url, limit: int, robots_file: bool = False) -> bytes:
        """The body after redirects. Waiting for a free slot of a host does not count towards the
        time limit.
        """
        seconds = self._options.timeout_s
        for _ in range(_MAX_REDIRECTS + 1):
            if self._robots and not robots_file:
                self._robots.check(url)
            with self._slots.setdefault(str(url.host), threading.Semaphore(self._options.per_host)):
                start = time.monotonic()
                response, body = self._client.get(url, limit, seconds, cut=robots_file)
                seconds -= time.monotonic() - start
            location = response.headers.get("Location")
            if response.status not in _REDIRECTS or not location:
                if not robots_file or response.status != 200:
                    self._check(response, body)
                return body
            with suppress(
                UnicodeError
            ):  # http.client decodes headers as Latin-1; servers write Chinese paths in UTF-8
                location = location.encode("latin-1").decode()
            try:
                location = urljoin(url.url, location)
            except ValueError:
                raise FetchFault("url-malformed", f"redirect to {location[:80]}") from None
            url = read_url(location)
        raise FetchFault("url-redirects", f"more than {_MAX_REDIRECTS} redirects")

    def _check(self, response: BaseHTTPResponse, body: bytes) -> None:
        """Raises a fault for a status other than 200, no body, and `noai`, for all robots or as
        `dcclip: noai`.
        """
        status = response.status
        if status != 200:
            again = status in _TRANSIENT
            retry_after = response.headers.get("Retry-After", "").strip() if again else ""
            wait_s = (
                min(int(retry_after), _MAX_RETRY_AFTER_S)
                if re.fullmatch("[0-9]{1,9}", retry_after)
                else 0
            )
            raise FetchFault(f"url-status-{status}", f"status {status}", again, wait_s, status)
        for tag in response.headers.getlist("X-Robots-Tag"):
            robot, colon, _ = tag.lower().partition(":")
            if colon and robot.strip() not in (AGENT, *_VALUED) and "," not in robot:
                continue  # for another robot
            if words := [word for word in re.split(r"[\s,:]+", tag.lower()) if word in _OPT_OUTS]:
                raise FetchFault("url-opt-out", f"X-Robots-Tag: {words[0]}")
        if not body:
            raise FetchFault("url-empty", "the answer has no body")

    def _read_robots_file(self, url: Url) -> bytes:
        return self._with_retries(
            url.url, lambda: self._follow(url, ROBOTS_BYTES, robots_file=True)
        )


def parse_robots(text: str, agent: str) -> Protego:
    """The rules of a robots.txt. Groups of other agents are merged into one, as rules times agents
    may be millions.
    """

    def ours(line: str) -> str:
        match = _AGENT_LINE.match(line)
        if match is None:
            return line
        name = match[1].lower()
        return f"User-agent: {name if name in (agent.lower(), '*') else '~'}"

    return Protego.parse("\n".join(map(ours, text.splitlines())))


@dataclass(eq=False)
class _Site:
    """What is known of a site's robots.txt, and about how much memory it takes."""

    lock: threading.Lock = field(default_factory=threading.Lock)
    rules: Protego | FetchFault | None = None
    size: int = 1_000


class Robots:
    """The robots.txt of each site, fetched once and cached while there is room."""

    def __init__(self, agent: str, fetch: Callable[[Url], bytes]) -> None:
        self._agent = re.split(r"[^A-Za-z_-]", agent, maxsplit=1)[0]
        self._fetch = fetch
        self._sites: OrderedDict[str, _Site] = OrderedDict()
        self._lock = threading.Lock()

    def check(self, url: Url) -> None:
        """Raises a fault if the page may not be fetched, or if robots.txt cannot be read."""
        origin = f"{url.scheme}://{url.netloc}"
        with self._lock:
            site = self._sites.setdefault(origin, _Site())
            self._sites.move_to_end(origin)
        with site.lock:  # the other threads wait for the one that fetches
            if site.rules is None:
                site.rules = self._read(url._replace(path="/robots.txt", query=None), site)
                with (
                    self._lock
                ):  # forget the sites used least recently if all of them take too much memory
                    while (
                        len(self._sites) > 1
                        and sum(cached.size for cached in self._sites.values()) > _CACHED_BYTES
                    ):
                        self._sites.popitem(last=False)
        if isinstance(site.rules, FetchFault):
            raise FetchFault(site.rules.drop.reason, site.rules.drop.detail)
        if not site.rules.can_fetch(url.url, self._agent):
            raise FetchFault("url-robots", f"{origin}/robots.txt does not want it fetched")

    def _read(self, url: Url, site: _Site) -> Protego | FetchFault:
        content = b""
        try:
            content = self._fetch(url)
        except FetchFault as fault:
            status = fault.status or 0
            absent = fault.drop.reason == "url-redirects" or (400 <= status < 500 and status != 429)
            if status and not absent:
                return FetchFault("url-robots", f"{url.url}: status {status}, which forbids all")
            if not absent:
                return FetchFault(fault.drop.reason, f"{url.url}: {fault.drop.detail}")
        if (
            len(content) >= ROBOTS_BYTES
        ):  # cut: half a line could forbid more or less than the whole
            content = content[: content.rfind(b"\n") + 1]
        text = content.decode("utf-8-sig", "replace")
        site.size += len(text) + _RULE_BYTES * text.lower().count("allow")
        return parse_robots(text, self._agent)


class _Queued:
    """A candidate in the queue of `fetch_in_order`; `url` is what to fetch from `host`, empty if
    nothing is.
    """

    def __init__(self, candidate: Candidate) -> None:
        self.candidate = candidate
        pair = candidate.pair
        self.size = len(pair.image) + sum(map(len, pair.zh + pair.en)) + len(str(pair.meta))
        self.url = "" if candidate.fault else candidate.url or ""
        try:
            self.host = str(read_url(self.url).host) if self.url else ""
        except FetchFault as fault:
            self.candidate = replace(candidate, fault=fault.drop)
            self.url = ""
        self.started = self.done = not self.url

    def finish(self, got: bytes | Drop) -> int:
        """Put what was fetched into the candidate; returns its size."""
        self.done = True
        if isinstance(got, Drop):
            self.candidate = replace(self.candidate, fault=got)
            return 0
        self.candidate = replace(
            self.candidate, pair=replace(self.candidate.pair, image=got), url=None
        )
        self.size += len(got)
        return len(got)


def fetch_in_order(
    candidates: Iterator[Candidate], fetch: Fetch, workers: int, per_host: int
) -> Generator[Candidate, None, None]:
    """The candidates in their order, fetched by `workers` threads; a slow host does not delay
    others.

    Those with a URL and no fault get their image or a fault.
    """
    queue: deque[_Queued] = deque()
    running: dict[Future[bytes | Drop], _Queued] = {}
    pool = ThreadPoolExecutor(workers, "fetch")
    held = 0
    exhausted = False
    try:
        while queue or not exhausted:
            if queue and queue[0].done:
                held -= queue[0].size
                yield queue.popleft().candidate
                continue
            reads = not exhausted and len(queue) < _AHEAD * workers and held < _HELD_BYTES
            if reads:
                candidate = next(candidates, None)
                if candidate is None:
                    exhausted = True
                else:
                    queue.append(_Queued(candidate))
                    held += queue[-1].size
            busy = Counter(queued.host for queued in running.values())
            for index, queued in enumerate(queue):
                if len(running) == workers or (index and held >= _HELD_BYTES):
                    break
                if not queued.started and busy[queued.host] < per_host:
                    busy[queued.host] += 1
                    queued.started = True
                    running[pool.submit(fetch, queued.url)] = queued
            # Without another candidate it waits: the head is running, so something will finish.
            for download in wait(running, 0 if reads else None, FIRST_COMPLETED).done:
                held += running.pop(download).finish(download.result())
    finally:
        pool.shutdown(
            wait=False, cancel_futures=True
        )  # a caller that stops early does not wait for downloads
