"""A web server on this machine that misbehaves as the open web does, for the tests of downloads."""

import ssl
import threading
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import count
from typing import Any, Self
from urllib.parse import unquote

from dcclip_cli.curation.fetch import FetchOptions
from dcclip_cli.data.reading import Drop

PICTURE = bytes(range(256)) * 40  # fetching does not look into it
Page = Callable[[BaseHTTPRequestHandler], None]


class Site:
    """A web server: a function for each page, and a list of requested pages; with a `context`, it speaks TLS."""

    def __init__(self, context: ssl.SSLContext | None = None) -> None:
        self.pages: dict[str, Page] = {"/cat.jpg": sends(PICTURE)}
        self.asked: list[str] = []
        site = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                site.asked.append(unquote(self.path))
                site.pages.get(unquote(self.path), sends(b"", status=404))(self)

            def log_message(self, *_: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.handle_error = lambda *_: None  # type: ignore[method-assign]  # clients hang up here by design
        if context:
            self.server.socket = context.wrap_socket(self.server.socket, server_side=True)
        self.host = f"127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, args=(0.01,), daemon=True).start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.server.shutdown()
        self.server.server_close()

    def url(self, page: str) -> str:
        return f"http://{self.host}{page}"


def sends(body: bytes, status: int = 200, length: int | None = None, **headers: str) -> Page:
    def page(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(status)
        for name, value in headers.items():
            handler.send_header(name.replace("_", "-"), value)
        handler.send_header("Content-Length", str(len(body) if length is None else length))
        handler.end_headers()
        handler.wfile.write(body)
        handler.close_connection = length is not None

    return page


def drips(head: bytes, drop: bytes, every_s: float = 0.05) -> Page:
    """For ever, as long as someone listens."""

    def page(handler: BaseHTTPRequestHandler) -> None:
        handler.wfile.write(head)
        for _ in range(1000):
            handler.wfile.write(drop)
            time.sleep(every_s)

    return page


def floods(head: bytes, flood: bytes) -> Page:
    def page(handler: BaseHTTPRequestHandler) -> None:
        handler.wfile.write(head)
        while True:
            handler.wfile.write(flood)

    return page


def in_turn(*pages: Page) -> Page:
    number = count()
    return lambda handler: pages[min(next(number), len(pages) - 1)](handler)


def leads_to(url: str, status: int = 302) -> Page:
    return sends(b"moved", status, Location=url.encode().decode("latin-1"))  # raw UTF-8, as servers write it


def options(site: Site, **changed: Any) -> FetchOptions:
    quick = {"timeout_s": 5, "allow_networks": ("127.0.0.0/8",), "robots": False}
    return FetchOptions(**{**quick, **changed})


def reason(got: bytes | Drop) -> str:
    assert isinstance(got, Drop), f"{len(got)} bytes were fetched"
    return got.reason
