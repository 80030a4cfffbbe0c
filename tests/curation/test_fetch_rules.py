"""Rules of downloads without a network: URLs and addresses, robots.txt (most cases are RFC 9309's), the order."""

import ipaddress
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st
from urllib3.util import Url

from dcclip_cli.curation.fetch import FetchFault, read_url
from dcclip_cli.curation.fetch.client import is_public
from dcclip_cli.curation.fetch.fetcher import Robots, fetch_in_order, parse_robots
from dcclip_cli.curation.sources.base import Candidate
from dcclip_cli.data.pair import Pair
from dcclip_cli.data.reading import Drop


def test_a_url_has_one_normal_form() -> None:
    url = " HTTP://Example.COM/a/../b c.jpg?q=猫#part\n"
    assert read_url(url).url == "http://example.com:80/b%20c.jpg?q=%E7%8C%AB"
    assert read_url("https://例子.测试").url == "https://xn--fsqu00a.xn--0zwm56d:443/"
    assert read_url("http://[2001:DB8::1]:8080/x").url == "http://[2001:db8::1]:8080/x"


NOT_WEB = "cat.jpg //x.example/cat.jpg ftp://x.example/ file:///etc/passwd data:image/png;base64,AAAA"
NOT_WEB += " javascript:alert(1) gopher://x:1/ httpss://x/ 猫"


MALFORMED = "http:// http:///cat.jpg http://a..b/ http://x.example:0/ http://x.example:99999/ http://x.example:80a/"
MALFORMED += " http://%00/ http://me@x.example/ http://me:secret@x.example/ http://x.example\\@y.example/ http://[::1/"
MALFORMED += " http://[fe80::1%25eth0]/ http://a<b/ http://１２７.0.0.1/"
LONG = [f"http://{'a' * 64}.example/", "http://x.example/" + "a" * 8_000]


@pytest.mark.parametrize(
    ("url", "reason"),
    [(url, "url-scheme") for url in ("", *NOT_WEB.split())]
    + [(url, "url-malformed") for url in (*MALFORMED.split(), *LONG, "http://a b/", "http://x.example\r\nHost: y/")],
)
def test_a_url_is_of_the_web_and_well_formed(url: str, reason: str) -> None:
    with pytest.raises(FetchFault, match=reason):
        read_url(url)


@given(st.one_of(st.text(), st.builds("http://{}{}".format, st.text(), st.text())))
def test_any_text_is_a_url_or_a_fault_that_can_be_stored(text: str) -> None:
    try:
        target = read_url(text)
    except FetchFault as fault:
        assert fault.drop.reason in ("url-scheme", "url-malformed")
        fault.drop.detail.encode()
    else:
        assert target.url.isascii()
        assert target.url.isprintable()
        assert read_url(target.url) == target


PUBLIC = "8.8.8.8 223.5.5.5 2606:4700::1111 2400:3200::1 64:ff9b::808:808 ::ffff:8.8.8.8"
OTHER = "0.1.2.3 10.1.1.1 100.127.0.1 127.9.9.9 169.254.169.254 172.31.0.1 192.0.0.170 192.0.2.1 192.168.0.1 198.19.0.1"
OTHER += " 203.0.113.1 233.252.0.1 250.0.0.1 192.88.99.1 :: ::1 ::ffff:10.0.0.1 ::ffff:0:7f00:1 64:ff9b::a00:1"
OTHER += " 64:ff9b:1::808:808 100::1 2001::1 2001:db8::1 2002:808:808::1 3fff::1 fd00::1 fe80::1%eth0 fec0::1 ff05::1"


@pytest.mark.parametrize("address", f"{PUBLIC} {OTHER}".split())
def test_only_addresses_of_the_internet_are_public(address: str) -> None:
    assert is_public(ipaddress.ip_address(address)) == (address in PUBLIC.split())


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
    requests: list[str] = []

    def ask(url: Url) -> bytes:
        requests.append(url.url)
        return b"User-agent: dcclip\nDisallow: /no"

    robots = Robots("dcclip/9 (+http://x.example)", ask)
    for url in ("http://a.example/1", "http://a.example:80/2", "https://a.example/1", "http://a.example:81/1"):
        robots.check(read_url(url))
    assert requests == [
        f"{site}/robots.txt" for site in ("http://a.example:80", "https://a.example:443", "http://a.example:81")
    ]
    with pytest.raises(FetchFault, match="url-robots"):
        robots.check(read_url("http://a.example/no/cat.jpg"))


pytestmark = pytest.mark.timeout(60)


def candidates(*urls: str) -> Iterator[Candidate]:
    for number, url in enumerate(urls):
        yield Candidate(Pair(f"{number:03d}", b"", zh=("猫",)), url=url)


class Network:
    """Answers each URL with its own bytes after a time that differs, and counts who is asked at the same time."""

    def __init__(self, wait_s: Callable[[str], float] = lambda url: hash(url) % 5 / 1000) -> None:
        self.wait_s = wait_s
        self.now: Counter[str] = Counter()
        self.most: Counter[str] = Counter()
        self.begun: list[str] = []
        self.lock = threading.Lock()

    def fetch(self, url: str) -> bytes | Drop:
        host = read_url(url).host or ""
        with self.lock:
            self.begun.append(url)
            self.now[host] += 1
            self.most[host] = max(self.most[host], self.now[host])
            self.most["all"] = max(self.most["all"], self.now.total())
        time.sleep(self.wait_s(url))
        with self.lock:
            self.now[host] -= 1
        return Drop("url-empty", url) if url.endswith("7") else url.encode()


def test_what_comes_out_does_not_depend_on_how_many_work_and_how_long_it_takes() -> None:
    urls = [f"http://{n % 3}.example/{n}" for n in range(100)]
    runs = [list(fetch_in_order(candidates(*urls), Network().fetch, workers, 2)) for workers in (1, 3, 16)]
    assert runs[0] == runs[1] == runs[2]
    assert [row.pair.key for row in runs[0]] == [f"{n:03d}" for n in range(100)]
    assert [row.pair.image.decode() or row.url for row in runs[0]] == urls
    assert [row.fault for row in runs[0] if row.fault] == [Drop("url-empty", url) for url in urls if url.endswith("7")]


def test_no_host_is_asked_by_more_than_its_share() -> None:
    network = Network(lambda url: 0.005)
    urls = [f"http://{'few' if n % 5 else 'many'}.example/{n}" for n in range(60)]
    assert len(list(fetch_in_order(candidates(*urls), network.fetch, 6, 2))) == 60
    assert network.most == {"few.example": 2, "many.example": 2, "all": 4}


def test_what_needs_no_download_passes_by_itself() -> None:
    def fetch(url: str) -> bytes | Drop:
        raise AssertionError(url)

    fetched_before = Candidate(Pair("a", b"x", en=("cat",)))
    faulty = Candidate(Pair("b", b""), Drop("row-malformed"), "http://x.example/")
    got = list(fetch_in_order(iter([fetched_before, faulty, Candidate(Pair("c", b""), url="猫")]), fetch, 4, 1))
    assert got[:2] == [fetched_before, faulty]
    assert got[2].fault == Drop("url-scheme", "neither http:// nor https://: 猫")
    assert list(fetch_in_order(iter(()), fetch, 4, 1)) == []
