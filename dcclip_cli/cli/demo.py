"""`dcclip demo`: a model as a web page, on this machine."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from typer import Option, launch

from dcclip_cli.cli import console, flags
from dcclip_cli.errors import DcclipError, Message

if TYPE_CHECKING:
    from http.server import ThreadingHTTPServer

_HOSTS = ("localhost", "127.0.0.1", "::1")  # another name may be one that a site has let point here
_IDLE_S = 30  # for which a connection keeps a thread
_OUT = Option("--out", metavar="DIR", help="Folder for the page. Default: a folder in the cache.")


def demo(
    model: flags.Model = None,
    out: Annotated[Path | None, _OUT] = None,
    port: Annotated[int, Option("--port", min=0, max=65535, help="Port of the page; 0 chooses a free one.")] = 0,
    open_page: Annotated[bool, Option("--open/--no-open", help="Open the page in a browser.")] = True,
    fresh: Annotated[bool, Option("--fresh", help="Export the page again.")] = False,
    quiet: flags.Quiet = False,
    verbose: flags.Verbose = False,
) -> None:
    """Try a model on your own images, in a browser.

    Exports the model as a web page (dcclip export --format web), serves it to this machine only until Ctrl-C, and
    prints its address. Images do not leave the browser.
    """
    flags.out(out)
    talk = console.talk(quiet, verbose)

    from dcclip_cli import api
    from dcclip_cli.files import cache_folder

    out = out or cache_folder() / "demo"
    folder = api.export(model=model, out=out, format="web", fresh=fresh, progress=talk).folder
    server = _server(folder, port)
    address = f"http://127.0.0.1:{server.server_port}/"
    console.show_now(address)
    if open_page and console.has_screen():
        launch(address)
    talk.say(Message("demo: stop with Ctrl-C"))
    with server:
        server.serve_forever()


def _server(folder: Path, port: int) -> ThreadingHTTPServer:
    """A server of a folder's files on this machine. Raises DcclipError if the port is taken."""
    from functools import partial
    from http import HTTPStatus
    from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
    from urllib.parse import urlsplit

    class Handler(SimpleHTTPRequestHandler):
        timeout = _IDLE_S

        def send_head(self) -> Any:
            try:
                if urlsplit(f"//{self.headers['Host']}").hostname in _HOSTS:
                    return super().send_head()
                self.send_error(HTTPStatus.MISDIRECTED_REQUEST)
            except ValueError:  # no name of a host or a file
                self.send_error(HTTPStatus.BAD_REQUEST)
            return None

        def end_headers(self) -> None:
            self.send_header("Cross-Origin-Opener-Policy", "same-origin")  # both let WebAssembly use threads
            self.send_header("Cross-Origin-Embedder-Policy", "require-corp")
            self.send_header("Cache-Control", "no-cache")
            super().end_headers()

        def log_message(self, format: str, *args: object) -> None:
            """Nothing: every file would be a line."""

    class Server(ThreadingHTTPServer):
        def handle_error(self, request: Any, client_address: Any) -> None:
            if not isinstance(sys.exception(), ConnectionError | TimeoutError):  # as when a page is left while it loads
                super().handle_error(request, client_address)

    try:
        return Server(("127.0.0.1", port), partial(Handler, directory=str(folder)))
    except OSError as error:
        raise DcclipError("cannot use port {}: {}", "choose another port with --port", port, error.strerror) from None
