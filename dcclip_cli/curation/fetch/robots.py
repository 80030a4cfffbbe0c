"""Permission to fetch a page by its site's robots.txt (RFC 9309), parsed by Protego and cached for each site."""

from __future__ import annotations

import re
import threading
from collections import OrderedDict
from collections.abc import Callable
from typing import TYPE_CHECKING

from dcclip_cli.curation.fetch.request import Fault, Target

if TYPE_CHECKING:
    from protego import Protego

ROBOTS_BYTES = 500 * 1024  # read of a robots.txt; the RFC requires at least that much
_CACHED_BYTES = 50_000_000  # of parsed rules of all sites, roughly
_RULE_BYTES = 500
_AGENT_LINE = re.compile(r"\s*user[-\s]*agent[\s:]+([^\s/#]*)", re.IGNORECASE)  # all that Protego takes for one


def parse(text: str, agent: str) -> Protego:
    """The rules of a robots.txt. Groups of other agents are merged into one, as rules times agents may be millions."""
    from protego import Protego

    def ours(line: str) -> str:
        found = _AGENT_LINE.match(line)
        if found is None:
            return line
        name = found[1].lower()
        return f"User-agent: {name if name in (agent.lower(), '*') else '~'}"

    return Protego.parse("\n".join(map(ours, text.splitlines())))


class _Site:
    """What is known of a site's robots.txt, and about how much memory it takes."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.rules: Protego | Fault | None = None
        self.size = 1_000


class Robots:
    """The robots.txt of each site, fetched once and cached while there is room."""

    def __init__(self, agent: str, fetch: Callable[[Target], bytes]) -> None:
        self._agent = re.split(r"[^A-Za-z_-]", agent, maxsplit=1)[0]
        self._fetch = fetch
        self._sites: OrderedDict[str, _Site] = OrderedDict()
        self._lock = threading.Lock()

    def check(self, target: Target) -> None:
        """Raises a fault if the page may not be fetched, or if robots.txt cannot be read."""
        with self._lock:
            site = self._sites.setdefault(target.origin, _Site())
            self._sites.move_to_end(target.origin)
        with site.lock:  # the other threads wait for the one that fetches
            if site.rules is None:
                site.rules = self._read(target, site)
                self._make_room()
        if isinstance(site.rules, Fault):
            raise Fault(site.rules.drop.reason, site.rules.drop.detail)
        if not site.rules.can_fetch(target.url, self._agent):
            raise Fault("url-robots", f"{target.origin}/robots.txt does not want it fetched")

    def _read(self, target: Target, site: _Site) -> Protego | Fault:
        content = b""
        try:
            content = self._fetch(Target(target.scheme, target.host, target.port, "/robots.txt"))
        except Fault as fault:
            status = fault.status or 0
            absent = fault.drop.reason == "url-redirects" or (400 <= status < 500 and status != 429)
            if status and not absent:
                return Fault("url-robots", f"{target.origin}/robots.txt: status {status}, which forbids all")
            if not absent:
                return Fault(fault.drop.reason, f"{target.origin}/robots.txt: {fault.drop.detail}")
        if len(content) >= ROBOTS_BYTES:  # cut: half a line could forbid more or less than the whole
            content = content[: content.rfind(b"\n") + 1]
        text = content.decode("utf-8-sig", "replace")
        site.size += len(text) + _RULE_BYTES * text.lower().count("allow")
        return parse(text, self._agent)

    def _make_room(self) -> None:
        """Forget the sites used least recently if all of them take too much memory."""
        with self._lock:
            while sum(site.size for site in self._sites.values()) > _CACHED_BYTES and len(self._sites) > 1:
                self._sites.popitem(last=False)
