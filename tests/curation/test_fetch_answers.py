"""What a server's answer may be: in size, in time, in form."""

import gzip
import socket
import threading
import time
from http.server import BaseHTTPRequestHandler

import pytest

from dcclip_cli.curation.fetch.fetcher import Fetcher
from dcclip_cli.data.reading import Drop
from tests.curation.fetch_site import PICTURE, Page, Site, drips, floods, in_turn, leads_to, options, reason, sends

# ---- size


def test_a_body_may_have_so_many_bytes_and_no_more(site: Site, fetcher: Fetcher) -> None:
    site.pages |= {"/most": sends(bytes(100_000)), "/more": sends(bytes(100_001))}
    assert fetcher.fetch(site.url("/most")) == bytes(100_000)
    assert fetcher.fetch(site.url("/more")) == Drop(
        "url-bytes", "the server announces 100,001 bytes, more than 100,000"
    )


OK, CHUNKED = b"HTTP/1.1 200 OK\r\n", b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"


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
    site.pages["/bomb"] = sends(gzip.compress(bytes(9_000_000)), Content_Encoding=encoding)
    assert reason(fetcher.fetch(site.url("/bomb"))) == "url-encoding"


def test_no_body_is_no_picture(site: Site, fetcher: Fetcher) -> None:
    site.pages["/empty"] = sends(b"")
    assert reason(fetcher.fetch(site.url("/empty"))) == "url-empty"


# ---- time


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
    with Fetcher(options(site, timeout_s=1.5, retries=3)) as fetcher:
        got = fetcher.fetch(site.url("/old"))
    assert got == Drop("url-timeout", "127.0.0.1 did not send it all in time")
    assert time.monotonic() - start < 4
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


def test_redirects_share_the_time(site: Site) -> None:
    def slow(handler: BaseHTTPRequestHandler) -> None:
        time.sleep(0.3)
        leads_to("/slow")(handler)

    site.pages["/slow"] = slow
    with Fetcher(options(site, timeout_s=0.8)) as fetcher:
        assert reason(fetcher.fetch(site.url("/slow"))) == "url-timeout"
    assert len(site.asked) <= 3


# ---- other tries


def test_what_may_pass_is_tried_again(site: Site, fetcher: Fetcher) -> None:
    site.pages |= {
        "/busy": in_turn(sends(b"", 503), sends(b"", 429, Retry_After="1"), sends(PICTURE)),
        "/broken": in_turn(sends(PICTURE[:100], length=len(PICTURE)), sends(PICTURE)),
    }
    start = time.monotonic()
    assert [fetcher.fetch(site.url(page)) for page in ("/busy", "/broken")] == [PICTURE, PICTURE]
    assert time.monotonic() - start >= 1  # as Retry-After asks for


def test_no_more_tries_are_made_than_the_recipe_allows(site: Site, fetcher: Fetcher) -> None:
    site.pages["/busy"] = sends(b"", 503)
    assert fetcher.fetch(site.url("/busy")) == Drop("url-status-503", "status 503")
    assert site.asked == ["/busy"] * 3


@pytest.mark.parametrize("status", [204, 206, 304, 400, 401, 403, 404, 410, 451, 501])
def test_what_will_not_pass_is_not_tried_again(status: int, site: Site, fetcher: Fetcher) -> None:
    site.pages["/cat.jpg"] = sends(b"", status)
    assert reason(fetcher.fetch(site.url("/cat.jpg"))) == f"url-status-{status}"
    assert site.asked == ["/cat.jpg"]


def test_a_kept_connection_that_the_server_closes_costs_no_retry(site: Site) -> None:
    handlers = []

    def once(handler: BaseHTTPRequestHandler) -> None:
        if handler in handlers:
            handler.close_connection = True
            return
        handlers.append(handler)
        sends(PICTURE)(handler)

    site.pages["/once"] = once
    with Fetcher(options(site, retries=0)) as fetcher:
        assert [fetcher.fetch(site.url("/once")) for _ in range(3)] == [PICTURE] * 3
    assert (len(site.asked), len(handlers)) == (5, 3)


def test_half_an_image_and_what_is_not_http_are_broken(site: Site, fetcher: Fetcher) -> None:
    site.pages |= {"/half": sends(PICTURE[:100], length=len(PICTURE)), "/ssh": drips(b"SSH-2.0-OpenSSH\r\n\r\n", b"")}
    assert reason(fetcher.fetch(site.url("/half"))) == "url-broken"
    assert fetcher.fetch(site.url("/ssh")) == Drop("url-broken", "127.0.0.1 did not answer in HTTP (BadStatusLine)")
