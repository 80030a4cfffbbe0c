"""Which host, port and page does a URL ask for, if it is one that may be fetched?"""

from __future__ import annotations

import re
from dataclasses import dataclass

from dcclip_cli.curation.fetch.fault import Fault

_LONGEST = 8_000  # characters; servers refuse longer ones
_HOST = re.compile(r"[a-z0-9_-]+(\.[a-z0-9_-]+)*\.?|\[[0-9a-f:.]+\]")  # after IDNA; no zone: %eth0 is of this machine
_SHOWN = 80  # characters of a faulty URL in the detail


@dataclass(frozen=True)
class Target:
    """A URL taken apart: what is connected to is read from the same parts as what is asked for."""

    scheme: str
    host: str  # in ASCII; IPv6 in brackets
    port: int
    page: str  # path and query, percent-encoded

    @property
    def origin(self) -> str:
        """Scheme, host and port: what has one robots.txt."""
        return f"{self.scheme}://{self.host}:{self.port}"

    @property
    def url(self) -> str:
        """The URL, in its one normal form."""
        return self.origin + self.page


def read_url(text: str) -> Target:
    """A URL's parts. Faults: `url-scheme` where it is not http(s), `url-malformed`."""
    from urllib3.exceptions import LocationParseError
    from urllib3.util import parse_url

    text = text.strip()
    shown = text[:_SHOWN]
    if len(text) > _LONGEST:
        raise Fault("url-malformed", f"more than {_LONGEST:,} characters: {shown}")
    scheme, colon, rest = text.partition("://")
    if not colon or scheme.lower() not in ("http", "https"):
        raise Fault("url-scheme", f"neither http:// nor https://: {shown}")
    try:
        parts = parse_url(text)
        if parts.auth is not None or "@" in re.split(r"[/?#]", rest, maxsplit=1)[0]:
            raise Fault("url-malformed", f"has a user name before the host: {shown}")
        host = parts.host or ""
        host.encode("idna")  # as the name look-up will: no label empty or longer than 63
    except (LocationParseError, UnicodeError):
        raise Fault("url-malformed", shown) from None
    port = parts.port if parts.port is not None else {"http": 80, "https": 443}[scheme.lower()]
    if not _HOST.fullmatch(host) or not 0 < port < 65536:
        raise Fault("url-malformed", f"no proper host or port: {shown}")
    return Target(scheme.lower(), host, port, parts.request_uri)
