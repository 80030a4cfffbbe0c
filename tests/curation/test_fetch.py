"""Where downloads may go and what a server may answer; every answer is from a real server on this machine."""

import gzip
import shutil
import socket
import ssl
import subprocess
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler
from ipaddress import ip_network
from pathlib import Path
from typing import Any

import pytest

from dcclip_cli.curation.fetch import FetchOptions, client
from dcclip_cli.curation.fetch.fetcher import Fetcher
from dcclip_cli.data.reading import Drop
from tests.curation.fetch_site import PICTURE, Page, Site, drips, floods, in_turn, leads_to, options, reason, sends


def names(monkeypatch: pytest.MonkeyPatch, *answers: str) -> list[str]:
    """Every name has these addresses, one at each look-up; gives the list of names looked up."""
    requests: list[str] = []

    def getaddrinfo(host: str, *_: Any, **__: Any) -> list[Any]:
        requests.append(host)
        address = answers[min(len(requests), len(answers)) - 1]
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        return [(family, socket.SOCK_STREAM, 6, "", (address, 0))]

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    return requests


def test_a_chunked_body_is_put_together(site: Site, fetcher: Fetcher) -> None:
    def page(handler: BaseHTTPRequestHandler) -> None:
        handler.wfile.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n")

    site.pages["/chunks"] = page
    assert [fetcher.fetch(site.url("/chunks")) for _ in range(2)] == [b"abcde", b"abcde"]


LOCAL = "127.0.0.1 2130706433 0x7f.1 0177.0.0.1 127.1 localhost localhost. 0.0.0.0 [::1] [::]"
LOCAL += " 10.0.0.1 [fe80::1] [::ffff:127.0.0.1] [::ffff:7f00:1] [64:ff9b::7f00:1] [2002:7f00:1::] [::7f00:1]"


@pytest.mark.parametrize("host", LOCAL.split())
def test_a_private_address_is_refused_however_it_is_written(host: str, site: Site) -> None:
    with Fetcher(options(site, allow_networks=(), timeout_s=2)) as fetcher:
        assert reason(fetcher.fetch(f"http://{host}:{site.server.server_port}/cat.jpg")) == "url-private"
    assert site.asked == []


def test_the_address_that_was_checked_is_the_one_connected_to(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    looked_up = names(monkeypatch, "93.184.215.14", "127.0.0.1")
    connected = []

    def connect(self: socket.socket, where: tuple[Any, ...]) -> None:
        connected.append(where)
        raise ConnectionRefusedError(111, "Connection refused")

    monkeypatch.setattr("dcclip_cli.curation.fetch.client.TimedSocket.connect", connect, raising=False)
    with Fetcher(options(site, allow_networks=())) as fetcher:
        got = fetcher.fetch("http://rebinding.example/cat.jpg")
    assert got == Drop("url-unreachable", "rebinding.example:80: Connection refused")
    assert (looked_up, connected) == (["rebinding.example"], [("93.184.215.14", 80)])


def test_a_network_is_allowed_for_all_names(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    port = site.server.server_port
    names(monkeypatch, "127.0.0.1")
    with Fetcher(options(site, allow_networks=("198.18.0.0/15",))) as fetcher:
        assert reason(fetcher.fetch(f"http://other.example:{port}/cat.jpg")) == "url-private"
    with Fetcher(options(site)) as fetcher:
        assert fetcher.fetch(f"http://other.example:{port}/cat.jpg") == PICTURE


def test_a_port_where_nobody_listens_and_a_name_without_address_are_unreachable(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    def getaddrinfo(*_: Any, **__: Any) -> list[Any]:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        host = f"127.0.0.1:{closed.getsockname()[1]}"
        with Fetcher(options(site)) as fetcher:
            assert fetcher.fetch(f"http://{host}/") == Drop("url-unreachable", f"{host}: Connection refused")
            monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
            assert fetcher.fetch("http://no.example/") == Drop("url-unreachable", "no.example has no address")


def test_a_redirect_is_followed(site: Site, fetcher: Fetcher) -> None:
    site.pages |= {"/old": leads_to("/图/older"), "/图/older": leads_to("../cat.jpg", 308)}
    assert fetcher.fetch(site.url("/old")) == PICTURE
    site.pages["/old"] = leads_to("/%E5%9B%BE/older", 307)
    assert fetcher.fetch(site.url("/old")) == PICTURE


@pytest.mark.parametrize(
    ("location", "expected"),
    [
        ("http://10.0.0.1/cat.jpg", "url-private"),
        ("file:///etc/passwd", "url-scheme"),
        ("//[oops/", "url-malformed"),
        ("http://me@127.0.0.1/", "url-malformed"),
    ],
)
def test_a_redirect_leads_nowhere_that_a_url_may_not(
    location: str, expected: str, site: Site, fetcher: Fetcher
) -> None:
    site.pages["/old"] = leads_to(location)
    assert reason(fetcher.fetch(site.url("/old"))) == expected


def test_at_most_five_redirects_are_followed(site: Site, fetcher: Fetcher) -> None:
    site.pages |= {f"/{number}": leads_to(f"/{number + 1}") for number in range(6)} | {"/6": sends(PICTURE)}
    assert fetcher.fetch(site.url("/1")) == PICTURE
    assert fetcher.fetch(site.url("/0")) == Drop("url-redirects", "more than 5 redirects")


def test_a_redirect_leads_to_no_page_that_robots_txt_forbids(site: Site) -> None:
    site.pages |= {"/robots.txt": sends(b"User-agent: dcclip\nDisallow: /cat"), "/old": leads_to("/cat.jpg")}
    with Fetcher(options(site, robots=True)) as fetcher:
        assert reason(fetcher.fetch(site.url("/old"))) == "url-robots"
    assert site.asked == ["/robots.txt", "/old"]


@pytest.mark.parametrize(
    ("page", "expected"),
    [
        (sends(b"", 404), ""),
        (sends(b""), ""),
        (leads_to("/robots.txt"), ""),
        (sends(b"", 503), "url-robots"),
        (drips(b"", b""), "url-timeout"),
        (floods(b"HTTP/1.1 200 OK\r\n\r\n", b"User-agent: *\nDisallow: /cat\n" * 999), "url-robots"),
        (sends(gzip.compress(b"\n" * 900_000), Content_Encoding="gzip"), "url-encoding"),
    ],
)
def test_a_robots_txt_that_cannot_be_read_forbids_unless_there_is_none(page: Page, expected: str, site: Site) -> None:
    site.pages["/robots.txt"] = page
    timeout_s = 1 if expected == "url-timeout" else 10
    with Fetcher(options(site, robots=True, timeout_s=timeout_s, retries=0)) as fetcher:
        got = fetcher.fetch(site.url("/cat.jpg"))
    assert got == PICTURE if not expected else reason(got) == expected


@pytest.mark.parametrize(
    ("tag", "wanted"),
    [
        ("noai", False),
        ("index, NoImageAI", False),
        ("dcclip: noindex", False),
        ("otherbot: noai", True),
        ("unavailable_after: 25 Jun 2030 15:00:00 PST, none", False),
        ("max-snippet: 0", True),
    ],
)
def test_a_picture_whose_site_opts_out_is_left(tag: str, wanted: bool, site: Site, fetcher: Fetcher) -> None:
    site.pages["/art.jpg"] = sends(PICTURE, X_Robots_Tag=tag)
    got = fetcher.fetch(site.url("/art.jpg"))
    assert got == PICTURE if wanted else reason(got) == "url-opt-out"


def test_a_body_may_have_so_many_bytes_and_no_more(site: Site, fetcher: Fetcher) -> None:
    site.pages |= {"/most": sends(bytes(100_000)), "/more": sends(bytes(100_001))}
    assert fetcher.fetch(site.url("/most")) == bytes(100_000)
    assert fetcher.fetch(site.url("/more")) == Drop(
        "url-bytes", "the server announces 100,001 bytes, more than 100,000"
    )


OK = b"HTTP/1.1 200 OK\r\n"
CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"


@pytest.mark.parametrize(
    ("head", "flood", "expected"),
    [
        (OK + b"\r\n", bytes(65536), "url-bytes"),
        (CHUNKED, b"800\r\n" + bytes(2048) + b"\r\n", "url-bytes"),
        (b"HTTP/1.1 200 ", b"a" * 65536, "url-broken"),
        (OK + b"X: ", b"a" * 65536, "url-broken"),
        (CHUNKED, b"a" * 65536, "url-broken"),
        (OK + b"X: y\r\n" * 200 + b"\r\n", b"a" * 65536, "url-broken"),
    ],
)
def test_a_body_or_line_or_head_without_end_is_cut(
    head: bytes, flood: bytes, expected: str, site: Site, fetcher: Fetcher
) -> None:
    site.pages["/endless"] = floods(head, flood)
    assert reason(fetcher.fetch(site.url("/endless"))) == expected


@pytest.mark.parametrize("encoding", ["gzip", "gzip, gzip", "br", "猫".encode().decode("latin-1")])
def test_an_encoding_that_was_not_asked_for_is_refused(encoding: str, site: Site, fetcher: Fetcher) -> None:
    site.pages["/bomb"] = sends(gzip.compress(bytes(900_000)), Content_Encoding=encoding)
    assert reason(fetcher.fetch(site.url("/bomb"))) == "url-encoding"


@pytest.mark.parametrize(
    "page",
    [
        drips(b"", b""),
        drips(OK, b"X: y\r\n", 0.1),
        drips(OK + b"X: ", b"y"),
        drips(OK + b"\r\n", b"y"),
        drips(CHUNKED, b"1\r\ny\r\n"),
        drips(b"", b"HTTP/1.1 100 Continue\r\n\r\n"),
    ],
    ids=["nothing", "headers", "one header", "body", "chunks", "continue"],
)
def test_a_server_has_so_much_time_in_all_however_it_drips(page: Page, site: Site) -> None:
    site.pages |= {"/slow": page, "/old": leads_to("/slow")}
    start = time.monotonic()
    with Fetcher(options(site, timeout_s=0.5, retries=3)) as fetcher:
        got = fetcher.fetch(site.url("/old"))
    assert got == Drop("url-timeout", "127.0.0.1 did not send it all in time")
    assert time.monotonic() - start < 3
    assert site.asked == ["/old", "/slow"]  # no second try


def test_a_name_look_up_that_hangs_is_left_behind(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    over = threading.Event()

    def getaddrinfo(*_: object, **__: object) -> list[object]:
        over.wait(20)
        return []

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    start = time.monotonic()
    with Fetcher(options(site, timeout_s=0.2)) as fetcher:
        assert reason(fetcher.fetch("http://slow.example/")) == "url-timeout"
    assert time.monotonic() - start < 4
    over.set()


def test_what_may_pass_is_tried_again(site: Site, fetcher: Fetcher) -> None:
    site.pages |= {
        "/busy": in_turn(sends(b"", 503), sends(b"", 429, Retry_After="1"), sends(PICTURE)),
        "/broken": in_turn(sends(PICTURE[:100], length=len(PICTURE)), sends(PICTURE)),
    }
    start = time.monotonic()
    assert [fetcher.fetch(site.url(page)) for page in ("/busy", "/broken")] == [PICTURE, PICTURE]
    assert time.monotonic() - start >= 1  # as Retry-After asks for


@pytest.mark.parametrize("status", [204, 304, 403, 404, 451, 501])
def test_what_will_not_pass_is_not_tried_again(status: int, site: Site, fetcher: Fetcher) -> None:
    site.pages["/cat.jpg"] = sends(b"", status)
    assert reason(fetcher.fetch(site.url("/cat.jpg"))) == f"url-status-{status}"
    assert site.asked == ["/cat.jpg"]


def test_half_an_image_and_what_is_not_http_are_broken_and_no_body_is_no_picture(site: Site, fetcher: Fetcher) -> None:
    site.pages["/empty"] = sends(b"")
    assert reason(fetcher.fetch(site.url("/empty"))) == "url-empty"
    site.pages |= {"/half": sends(PICTURE[:100], length=len(PICTURE)), "/ssh": drips(b"SSH-2.0-OpenSSH\r\n\r\n", b"")}
    assert reason(fetcher.fetch(site.url("/half"))) == "url-broken"
    assert fetcher.fetch(site.url("/ssh")) == Drop("url-broken", "127.0.0.1 did not answer in HTTP (BadStatusLine)")


# ---- TLS, with certificates that the openssl program makes here


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A certificate and its key in one PEM file, for the name localhost, signed by itself."""
    folder = tmp_path_factory.mktemp("tls")
    command = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 -subj /CN=localhost"
    command += " -addext subjectAltName=DNS:localhost -keyout key.pem -out certificate.pem"
    subprocess.run(command.split(), cwd=folder, check=True, capture_output=True)
    both = folder / "both.pem"
    both.write_text((folder / "key.pem").read_text() + (folder / "certificate.pem").read_text())
    return folder / "certificate.pem"


@pytest.fixture(scope="module")
def port(certificate: Path) -> Iterator[int]:
    """Port of a server with that certificate."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(certificate.with_name("both.pem"))
    with Site(context) as site:
        site.pages["/slow"] = drips(b"HTTP/1.1 200 OK\r\n\r\n", b"y")
        yield site.server.server_port


LOOPBACK = (ip_network("127.0.0.0/8"), ip_network("::1/128"))


def fetch_with_tls(url: str, **options: Any) -> bytes | Drop:
    with Fetcher(FetchOptions(allow_networks=LOOPBACK, robots=False, **options)) as fetcher:
        return fetcher.fetch(url)


@pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl makes the certificates")
def test_a_certificate_is_accepted_from_the_systems_authorities_for_its_own_name_only(
    certificate: Path, port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert fetch_with_tls(f"https://localhost:{port}/") == Drop("url-tls", "localhost: self-signed certificate")
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    client._tls.cache_clear()
    try:
        assert fetch_with_tls(f"https://localhost:{port}/cat.jpg") == PICTURE
        got = fetch_with_tls(f"https://127.0.0.1:{port}/")
        assert isinstance(got, Drop)
        assert (got.reason, "IP address mismatch" in got.detail) == ("url-tls", True)
        slow = fetch_with_tls(f"https://localhost:{port}/slow", timeout_s=0.5)
        assert slow == Drop("url-timeout", "localhost did not send it all in time")
    finally:
        client._tls.cache_clear()
