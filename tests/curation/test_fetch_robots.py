"""Rules of robots.txt; most cases are RFC 9309's own."""

import pytest
from urllib3.util import Url

from dcclip_cli.curation.fetch import Fault, read_url
from dcclip_cli.curation.fetch.fetcher import ROBOTS_BYTES, Robots, parse_robots


def may(text: str, page: str, agent: str = "dcclip") -> bool:
    return parse_robots(text, agent).can_fetch(f"http://x.example:80{page}", agent)


OURS = "User-agent: *\nDisallow: /\n\nUser-agent: DCCLIP/2.0\nDisallow: /no\n\nUser-agent: dcclip\nDisallow: /nor"
SEVERAL = "User-agent: a\r\n\r\nUser-agent: dcclip # us\r\nCrawl-delay: 3\r\n\r\nDisallow: /no\rUser-agent: b\nAllow: /"
CHINESE = "/%E5%9B%BE/%E7%8C%AB.jpg"  # /图/猫.jpg


@pytest.mark.parametrize(
    ("text", "allowed", "forbidden"),
    [
        ("User-agent: *\nDisallow: /\nAllow: /a/\nDisallow: /a/b/", "/a/cat.jpg", "/ /a/b/cat.jpg"),  # the longest rule
        (OURS, "/yes", "/no /nor"),  # a group for dcclip replaces the one for all
        (OURS.replace("dcclip", "other").replace("DCCLIP", "other"), "", "/yes"),
        (SEVERAL, "/", "/no"),
        (SEVERAL.replace("agent: b", "agent: dcclip").replace("agent: dcclip #", "agent: b #"), "/no", ""),
        ("<html>猫 <p>: Disallow: /</html>", "/", ""),
        ("User-agent: *\nDisallow: /\n\nUser-agent: dcclip\nDisallow:", "/", ""),
        ("User-agent: *\nDisallow: /图/", "", CHINESE),
        ("User-agent: *\nDisallow: /%e5%9b%be/", "", CHINESE),
    ],
)
def test_rules_allow_and_forbid_pages(text: str, allowed: str, forbidden: str) -> None:
    assert [page for page in allowed.split() if not may(text, page)] == []
    assert [page for page in forbidden.split() if may(text, page)] == []


@pytest.mark.timeout(20)
def test_many_stars_many_agents_and_many_rules_cost_little_time() -> None:
    assert may("User-agent: *\nDisallow: /" + "a*" * 5_000 + "b", "/" + "a" * 8_000)
    agents = "".join(f"User agent x{n}\n" for n in range(10_000))
    assert may(agents + "User-agent: dcclip\n" + "".join(f"Disallow: /{n}\n" for n in range(20_000)), "/a")


def test_a_site_is_asked_once_and_a_site_is_scheme_host_and_port() -> None:
    asked: list[str] = []

    def ask(url: Url) -> bytes:
        asked.append(url.url)
        return b"User-agent: dcclip\nDisallow: /no"

    robots = Robots("dcclip/9 (+http://x.example)", ask)
    for url in ("http://a.example/1", "http://a.example:80/2", "https://a.example/1", "http://a.example:81/1"):
        robots.check(read_url(url))
    assert asked == [
        f"{site}/robots.txt" for site in ("http://a.example:80", "https://a.example:443", "http://a.example:81")
    ]
    with pytest.raises(Fault, match="url-robots"):
        robots.check(read_url("http://a.example/no/cat.jpg"))


def test_only_so_many_rules_are_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dcclip_cli.curation.fetch.fetcher._CACHED_BYTES", 5_000)
    asked: list[str] = []

    def ask(url: Url) -> bytes:
        asked.append(str(url.host))
        return b""

    robots = Robots("dcclip", ask)
    for n in [*range(7), 6, 5, 0]:  # 1,000 each, so that five of them are known
        robots.check(read_url(f"http://{n}.example/"))
    assert asked == [f"{n}.example" for n in [*range(7), 0]]


def test_a_line_that_is_cut_off_does_not_count() -> None:
    line = b"Disallow: /" + b"a" * 100 + b"\n"
    text = (b"User-agent: *\n" + line * (ROBOTS_BYTES // len(line) + 1))[: ROBOTS_BYTES - 11] + b"\nDisallow: /"
    robots = Robots("dcclip", lambda target: text[:ROBOTS_BYTES])
    robots.check(read_url("http://a.example/cat.jpg"))
