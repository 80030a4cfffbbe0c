"""Safe and polite downloads of images: options, parsed URLs, and the faults that a download may
end in.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from pydantic import Field, IPvAnyNetwork

from dcclip_cli.core.options import Options
from dcclip_cli.core.versions import VERSION
from dcclip_cli.data import reading

if TYPE_CHECKING:
    from urllib3.util import Url

_MAX_URL_CHARACTERS = 8_000  # servers refuse longer ones
_MAX_DETAIL_CHARACTERS = 300
_SHOWN_CHARACTERS = 80  # of a faulty URL in the detail
_HOST = re.compile(
    r"[a-z0-9_-]+(\.[a-z0-9_-]+)*\.?|\[[0-9a-f:.]+\]"
)  # after IDNA; zones (%eth0) are local

AGENT = "dcclip"  # whose rules in robots.txt and X-Robots-Tag are obeyed
USER_AGENT = f"{AGENT}/{VERSION}"
MAX_BYTES = 20_000_000  # of an image file


class FetchOptions(Options):
    """How images are downloaded. Certificates are always checked; proxies in the environment are
    ignored.
    """

    timeout_s: float = Field(
        20, gt=0, le=600, description="Time limit of one attempt, from DNS look-up to last byte"
    )
    retries: int = Field(
        2, ge=0, le=10, description="Retries after transient failures: 429, 5xx, lost connections"
    )
    workers: int = Field(16, ge=1, le=512, description="Concurrent downloads in each process")
    per_host: int = Field(
        4, ge=1, le=512, description="Concurrent downloads from one host in each process"
    )
    robots: bool = Field(True, description="Obey robots.txt")
    allow_networks: tuple[IPvAnyNetwork, ...] = Field(
        (),
        description="Private networks that any host name may resolve to, such as 198.18.0.0/15 "
        "behind a proxy",
    )


class FetchFault(reading.Fault):
    """Ends one try. `again`: a retry may succeed, after at least `wait_s`. `status`: HTTP status
    of the response.

    The detail contains nothing that differs between runs, such as times or byte counts so far.
    """

    def __init__(
        self,
        reason: str,
        detail: str,
        again: bool = False,
        wait_s: float = 0,
        status: int | None = None,
    ) -> None:
        detail = (
            detail[:_MAX_DETAIL_CHARACTERS].encode(errors="replace").decode()
        )  # URLs and headers may not be text
        super().__init__(reason, detail)
        self.again = again
        self.wait_s = wait_s
        self.status = status


def timeout(host: str) -> FetchFault:
    """The fault of a server that was too slow. It is not retried: it had its time."""
    return FetchFault("url-timeout", f"{host} did not send it all in time")


def read_url(text: str) -> Url:
    """A normalized URL, whose parts connection and request share. Faults: `url-scheme`,
    `url-malformed`.
    """
    from urllib3.exceptions import LocationParseError
    from urllib3.util import parse_url

    text = text.strip()
    shown = text[:_SHOWN_CHARACTERS]
    if len(text) > _MAX_URL_CHARACTERS:
        raise FetchFault("url-malformed", f"more than {_MAX_URL_CHARACTERS:,} characters: {shown}")
    scheme, colon, rest = text.partition("://")
    if not colon or scheme.lower() not in ("http", "https"):
        raise FetchFault("url-scheme", f"neither http:// nor https://: {shown}")
    try:
        parts = parse_url(text)
        if parts.auth is not None or "@" in re.split(r"[/?#]", rest, maxsplit=1)[0]:
            raise FetchFault("url-malformed", f"has a user name before the host: {shown}")
        host = parts.host or ""
        host.encode("idna")  # as the name look-up will: no label is empty or longer than 63
    except (LocationParseError, UnicodeError):
        raise FetchFault("url-malformed", shown) from None
    port = parts.port if parts.port is not None else {"http": 80, "https": 443}[scheme.lower()]
    if not _HOST.fullmatch(host) or not 0 < port < 65536:
        raise FetchFault("url-malformed", f"no proper host or port: {shown}")
    return parts._replace(port=port, path=parts.path or "/", fragment=None)
