"""Does a site's robots.txt let us fetch a page? By RFC 9309.

Not Python's RobotFileParser: it does not know `*` and `$`, takes the first rule where the longest counts, loses groups
with an empty line in them, and takes a 403 as a ban.
"""

from __future__ import annotations

import re
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass
from urllib.parse import unquote_to_bytes

from dcclip_cli.curation.fetch.fault import Fault
from dcclip_cli.curation.fetch.url import Target

ROBOTS_BYTES = 500 * 1024  # read of a robots.txt; the RFC wants at least that much
_KEPT_BYTES = 50_000_000  # of rules, roughly, of all sites together


@dataclass(frozen=True)
class Rule:
    """One Allow or Disallow line: what a page's path begins with, in pieces between any number of any bytes."""

    allow: bool
    pieces: tuple[bytes, ...]
    to_end: bool  # a pattern with $

    @property
    def length(self) -> int:
        """The longest rule that fits decides."""
        return sum(map(len, self.pieces)) + len(self.pieces) - 1 + self.to_end

    def fits(self, page: bytes) -> bool:
        """Whether the rule is about a page."""
        first, *others = self.pieces
        if not page.startswith(first):
            return False
        if not others:
            return not self.to_end or page == first
        at = len(first)
        for piece in others[:-1] if self.to_end else others:
            found = page.find(piece, at)
            if found < 0:
                return False
            at = found + len(piece)
        return not self.to_end or (len(page) - len(others[-1]) >= at and page.endswith(others[-1]))


def read_rules(text: str, agent: str) -> tuple[Rule, ...]:
    """The rules for an agent, or those for all where none names it; the first that fits a page decides."""
    named, general = _groups(text, agent.lower())
    rules = general if named is None else named
    return tuple(sorted(rules, key=lambda rule: (-rule.length, not rule.allow)))


def allowed(rules: tuple[Rule, ...], page: str) -> bool:
    """Whether the rules let a page be fetched."""
    path = unquote_to_bytes(page)
    return next((rule.allow for rule in rules if rule.fits(path)), True)


class Robots:
    """What the robots.txt of each site says, asked for once and remembered as long as there is room."""

    def __init__(self, agent: str, ask: Callable[[Target], bytes]) -> None:
        self._agent = re.split(r"[^A-Za-z_-]", agent, maxsplit=1)[0]
        self._ask = ask
        self._known: OrderedDict[str, Future[tuple[Rule, ...] | Fault]] = OrderedDict()
        self._sizes: dict[str, int] = {}
        self._size = 0
        self._lock = threading.Lock()

    def check(self, target: Target) -> None:
        """Raises a fault where the page may not be fetched, or where nobody can tell."""
        with self._lock:
            future = self._known.get(target.origin)
            mine = future is None
            if future is None:
                future = self._known[target.origin] = Future()
            self._known.move_to_end(target.origin)
        if mine:
            try:
                future.set_result(self._read(target))
            finally:
                if not future.done():  # a mistake of ours is on its way out; nobody may wait for ever
                    future.set_result(Fault("url-robots", "robots.txt could not be read"))
            self._make_room(target.origin, future.result())
        found = future.result()
        if isinstance(found, Fault):
            raise Fault(found.drop.reason, found.drop.detail)
        if not allowed(found, target.page):
            raise Fault("url-robots", f"{target.origin}/robots.txt does not want it fetched")

    def _read(self, target: Target) -> tuple[Rule, ...] | Fault:
        try:
            content = self._ask(Target(target.scheme, target.host, target.port, "/robots.txt"))
        except Fault as fault:
            status = fault.status or 0
            if fault.drop.reason == "url-redirects" or (400 <= status < 500 and status != 429):
                return ()  # there is none
            if status:
                return Fault("url-robots", f"{target.origin}/robots.txt: status {status}, which forbids all")
            return Fault(fault.drop.reason, f"{target.origin}/robots.txt: {fault.drop.detail}")
        if len(content) >= ROBOTS_BYTES:  # cut: half a line could forbid more or less than the whole
            content = content[: content.rfind(b"\n") + 1]
        return read_rules(content.decode("utf-8-sig", "replace"), self._agent)

    def _make_room(self, origin: str, found: tuple[Rule, ...] | Fault) -> None:
        size = 1_000 if isinstance(found, Fault) else 1_000 + sum(rule.length + 300 for rule in found)
        with self._lock:
            if origin in self._known:
                self._size += size - self._sizes.get(origin, 0)
                self._sizes[origin] = size
            while self._size > _KEPT_BYTES and len(self._known) > 1:
                oldest, _ = self._known.popitem(last=False)
                self._size -= self._sizes.pop(oldest, 0)


def _groups(text: str, agent: str) -> tuple[list[Rule] | None, list[Rule]]:
    """The rules of the groups that name the agent (None if none does) and of those for `*`."""
    named: list[Rule] | None = None
    general: list[Rule] = []
    agents: set[str] = set()
    in_rules = False
    for key, value in _lines(text):
        if key == "user-agent":
            if in_rules:
                agents, in_rules = set(), False
            agents.add(re.split(r"[/\s]", value.lower(), maxsplit=1)[0])
            if agent in agents and named is None:
                named = []
            continue
        in_rules = True
        if not value:
            continue  # forbids nothing
        pieces = tuple(unquote_to_bytes(piece) for piece in re.sub(r"\*+", "*", value.removesuffix("$")).split("*"))
        rule = Rule(key == "allow", pieces, to_end=value.endswith("$"))
        if agent in agents and named is not None:
            named.append(rule)
        if "*" in agents:
            general.append(rule)
    return named, general


def _lines(text: str) -> Iterator[tuple[str, str]]:
    for line in re.split(r"\r\n?|\n", text):
        key, colon, value = line.partition("#")[0].partition(":")
        key = key.strip().lower()
        if colon and key in ("user-agent", "allow", "disallow"):
            yield key, value.strip()
