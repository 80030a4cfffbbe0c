"""What are the bytes behind a URL, or why are there none?"""

from __future__ import annotations

import re
import threading
import time
import zlib
from collections.abc import Callable, Generator, Iterable, Mapping
from contextlib import suppress
from types import TracebackType
from typing import TypeVar
from urllib.parse import urljoin

from dcclip_cli.curation.candidate import Candidate, Drop
from dcclip_cli.curation.fetch.client import Answer, Client
from dcclip_cli.curation.fetch.clock import time_limit
from dcclip_cli.curation.fetch.fault import Fault
from dcclip_cli.curation.fetch.hosts import HostSlots
from dcclip_cli.curation.fetch.options import FetchOptions
from dcclip_cli.curation.fetch.robots import ROBOTS_BYTES, Robots
from dcclip_cli.curation.fetch.url import Target, read_url
from dcclip_cli.curation.fetch.window import fetch_in_order

_REDIRECTS = (301, 302, 303, 307, 308)
_PASSING = (408, 429, 500, 502, 503, 504)  # statuses that another try may not meet
_LONGEST_WAIT_S = 60  # that a server's Retry-After is heeded for
_OPT_OUTS = {"noai", "noimageai", "noindex", "noimageindex", "none"}
_VALUED = ("unavailable_after", "max-snippet", "max-image-preview", "max-video-preview")  # directives with a colon

Got = TypeVar("Got")


class Fetcher:
    """Downloads, with its own connections, memory of names and of robots.txt: one for as many slices as possible.

    Its methods may be called from several threads.
    """

    def __init__(self, options: FetchOptions | None = None) -> None:
        self._options = options or FetchOptions()
        self._client = Client(self._options)
        self._slots = HostSlots(self._options.per_host)
        self._robots = Robots(self._options.user_agent, self._robots_file) if self._options.robots else None
        self._closing = threading.Event()

    def __enter__(self) -> Fetcher:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Ends what waits for another try, and closes what connections are free."""
        self._closing.set()
        self._client.close()

    def fetch(self, url: str) -> bytes | Drop:
        """The bytes behind a URL, whatever they are, or the reason why there are none."""
        try:
            return self._with_retries(url, lambda: self._follow(read_url(url), self._options.max_bytes))
        except Fault as fault:
            return fault.drop

    def fetch_all(self, candidates: Iterable[Candidate]) -> Generator[Candidate, None, None]:
        """The candidates in their order, those with a URL (and no fault yet) with their image or with a fault."""
        return fetch_in_order(iter(candidates), self.fetch, self._options.workers, self._options.per_host)

    def _with_retries(self, url: str, one_try: Callable[[], Got]) -> Got:
        # The same for the same URL, but not for all URLs of a host at once.
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
        """The body at the end of the redirects. Waiting for a turn at a host does not count as time."""
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
            again = answer.status in _PASSING
            wait_s = _retry_after(answer.headers) if again else 0
            raise Fault(f"url-status-{answer.status}", f"status {answer.status}", again, wait_s, answer.status)
        if robots_file:
            return answer.body
        if self._options.opt_outs and (word := _opt_out(answer.robots_tags, self._options.user_agent)):
            raise Fault("url-opt-out", f"X-Robots-Tag: {word}")
        if not answer.body:
            raise Fault("url-empty", "the answer has no body")
        return answer.body

    def _robots_file(self, target: Target) -> bytes:
        return self._with_retries(target.url, lambda: self._follow(target, ROBOTS_BYTES, robots_file=True))


def _absolute(target: Target, location: str) -> str:
    """Where a redirect leads. http.client reads headers as Latin-1; servers write Chinese paths in UTF-8."""
    with suppress(UnicodeError):
        location = location.encode("latin-1").decode()
    try:
        return urljoin(target.url, location)
    except ValueError:
        raise Fault("url-malformed", f"redirect to {location[:80]}") from None


def _retry_after(headers: Mapping[str, str]) -> float:
    value = headers.get("Retry-After", "").strip()
    return min(int(value), _LONGEST_WAIT_S) if re.fullmatch("[0-9]{1,9}", value) else 0


def _opt_out(tags: tuple[str, ...], agent: str) -> str | None:
    """A word by which the site does not want the picture used: `noai` to all, or `dcclip: noai` to us alone."""
    me = re.split(r"[/\s]", agent.lower(), maxsplit=1)[0]
    for tag in tags:
        robot, colon, _ = tag.lower().partition(":")
        if colon and robot.strip() not in (me, *_VALUED) and "," not in robot:
            continue  # to another robot
        for word in re.split(r"[\s,:]+", tag.lower()):
            if word in _OPT_OUTS:
                return word
    return None
