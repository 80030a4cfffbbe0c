"""Servers of a model: `dcclip serve`, over HTTP; `dcclip mcp`, of tools for AI assistants; `dcclip
demo`, of a page.
"""

from __future__ import annotations

import errno
import ipaddress
import socket
import sys
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any
from urllib.parse import urlsplit

from typer import Argument, Option, launch

from dcclip_cli.cli import console, flags
from dcclip_cli.core.errors import DcclipError, Message
from dcclip_cli.core.files import cache_folder

if TYPE_CHECKING:
    from http.server import ThreadingHTTPServer

_HOST = Option("--host", help="Address to listen on; 0.0.0.0: all addresses.")
_PORT = Option("--port", min=0, max=65535, help="Port to listen on; 0 chooses a free one.")
_FOLDER = Option(
    "--folder", metavar="DIR", help="Folder of images for the search page and /search. Repeatable."
)
_TOKEN = Option(
    "--token", envvar="DCCLIP_TOKEN", metavar="TOKEN", help="Token that clients must send."
)
_IMMICH = Option(
    "--immich-dims",
    min=0,
    max=8192,
    metavar="N",
    help="Zero-pad embeddings for immich and MT Photos to N dimensions.",
)
_FOLDERS = Argument(
    metavar="FOLDER...",
    help="Folders of photographs, read recursively; the tools read no other file.",
)
# another name may be one that a site has let point here
_HOSTS = ("localhost", "127.0.0.1", "::1")
_IDLE_S = 30  # for which a connection keeps a thread
_PAGE = Option("--out", metavar="DIR", help="Folder for the page. Default: a folder in the cache.")


def serve(
    model: flags.Model = None,
    host: Annotated[str, _HOST] = "127.0.0.1",
    port: Annotated[int, _PORT] = 8000,
    folder: Annotated[list[Path] | None, _FOLDER] = None,
    exclude: flags.Exclude = None,
    token: Annotated[str | None, _TOKEN] = None,
    immich_dims: Annotated[int, _IMMICH] = 512,
    dims: flags.Dims = None,
    device: flags.Where = "auto",
    threads: flags.Threads = None,
    quiet: flags.Quiet = False,
    verbose: flags.Verbose = False,
) -> None:
    """Serve a model over HTTP: embeddings, classification, image search.

    Supports the embeddings API of OpenAI and the machine-learning APIs of immich and MT Photos. /
    is a search page, /docs describes all requests. An export bundle needs no torch. Prints its
    address, runs until Ctrl-C or SIGTERM, and then finishes accepted requests.
    """
    _check_token(token or "")
    talk = console.talk(quiet, verbose)

    from dcclip_cli.inference.model import open_encoder
    from dcclip_cli.photos.index import distinct, open_index, say_missing
    from dcclip_cli.photos.live import FOLLOW_S
    from dcclip_cli.serve.app import application
    from dcclip_cli.serve.server import make_server

    listening = _listen(host, port)
    encoder = open_encoder(model, device, threads, talk, dims)
    folders = distinct(folder or ())
    within = [path.resolve() for path in folders]
    indexes = [
        open_index(encoder, path, progress=talk, exclude=exclude or (), within=within)
        for path in folders
    ]
    talk.say(
        Message("serve: {:,} images can be searched", sum(len(index.images) for index in indexes))
    )
    say_missing("serve", indexes, talk)
    names = _names(host, listening)
    bound_port = listening.getsockname()[1]
    if not names and token is None:
        console.warning_line(
            Message(
                "anyone who can reach port {}, and any website that they open, can use "
                "this server; add a --token",
                bound_port,
            )
        )
    app = application(encoder, indexes, token or None, immich_dims, names, talk.say, FOLLOW_S)
    name = _address_for_others(listening) or host
    name = f"[{name}]" if ":" in name else name
    console.show_now(f"http://{name}:{bound_port}/")
    talk.say(Message("serve: stop with Ctrl-C"))
    with suppress(KeyboardInterrupt):  # which uvicorn raises again once all is answered
        make_server(app, verbose).run(sockets=[listening])


def _check_token(token: str) -> None:
    if not (token.isascii() and token.isprintable() and " " not in token):
        raise DcclipError(
            "the token contains a space or a non-ASCII character",
            "create a new token with: openssl rand -hex 16",
        )


def mcp(
    folders: Annotated[list[Path], _FOLDERS],
    model: flags.Model = None,
    device: flags.Where = "auto",
    threads: flags.Threads = None,
    quiet: flags.Quiet = False,
    verbose: flags.Verbose = False,
) -> None:
    """Let an AI assistant search, see and label the photographs in folders, and find duplicates.

    A server of the Model Context Protocol on stdin and stdout, which the assistant starts. Its
    tools are search, show, label and duplicates. They change no file in the folders. Photographs
    that the assistant looks at are sent to its model; searches send their paths.
    """
    talk = console.talk(quiet, verbose)
    for folder in folders:
        if not folder.is_dir():
            raise DcclipError("{} is not a folder", "choose a folder of images", folder)

    from dcclip_cli.inference.model import Model, open_encoder
    from dcclip_cli.photos.mcp import run, tool_server

    server = tool_server(Model(open_encoder(model, device, threads, talk)), folders)
    talk.say(Message("mcp: waiting for an assistant on stdin; stop with Ctrl-C"))
    run(server)


def _names(host: str, listening: socket.socket) -> set[str]:
    """The names of a server for this machine only: another may be one that a website lets point
    here; else none.
    """
    address = listening.getsockname()[0]
    is_local = ipaddress.ip_address(address).is_loopback
    return {"localhost", "127.0.0.1", "::1", address, host.lower()} if is_local else set()


def _address_for_others(listening: socket.socket) -> str | None:
    """The address at which other machines reach a socket that listens on all addresses; None for
    other sockets.
    """
    address = ipaddress.ip_address(listening.getsockname()[0])
    if not address.is_unspecified:
        return None
    documentation_net, loopback = (
        ("2001:db8::1", "::1") if address.version == 6 else ("192.0.2.1", "127.0.0.1")
    )
    with socket.socket(listening.family, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect((documentation_net, 9))  # sends nothing: it chooses the interface
        except OSError:  # no network
            return loopback
        return str(probe.getsockname()[0])


def _listen(host: str, port: int) -> socket.socket:
    """A socket at an address. Raises DcclipError if it cannot be used."""
    try:
        return socket.create_server(
            (host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET, backlog=512
        )
    except (OSError, UnicodeError) as error:
        reason = getattr(error, "strerror", None) or error
        if getattr(error, "errno", None) in (errno.EADDRINUSE, errno.EACCES):
            raise DcclipError(
                "cannot use port {}: {}", "choose another port with --port", port, reason
            ) from None
        raise DcclipError(
            "cannot listen on host {}: {}", "choose an address of this machine", host, reason
        ) from None


def demo(
    model: flags.Model = None,
    out: Annotated[Path | None, _PAGE] = None,
    port: Annotated[
        int, Option("--port", min=0, max=65535, help="Port of the page; 0 chooses a free one.")
    ] = 0,
    open_page: Annotated[
        bool, Option("--open/--no-open", help="Open the page in a browser.")
    ] = True,
    fresh: Annotated[bool, Option("--fresh", help="Export the page again.")] = False,
    quiet: flags.Quiet = False,
    verbose: flags.Verbose = False,
) -> None:
    """Try a model on your own images, in a browser.

    Exports the model as a web page (dcclip export --format web), serves it to this machine only
    until Ctrl-C, and prints its address. Images do not leave the browser.
    """
    flags.out(out)
    talk = console.talk(quiet, verbose)

    from dcclip_cli import api

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
    from http import HTTPStatus
    from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

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
            self.send_header(
                "Cross-Origin-Opener-Policy", "same-origin"
            )  # both let WebAssembly use threads
            self.send_header("Cross-Origin-Embedder-Policy", "require-corp")
            self.send_header("Cache-Control", "no-cache")
            super().end_headers()

        def log_message(self, format: str, *args: object) -> None:
            """Nothing: every file would be a line."""

    class Server(ThreadingHTTPServer):
        def handle_error(self, request: Any, client_address: Any) -> None:
            if not isinstance(
                sys.exception(), ConnectionError | TimeoutError
            ):  # as when a page is left while it loads
                super().handle_error(request, client_address)

    try:
        return Server(("127.0.0.1", port), partial(Handler, directory=str(folder)))
    except OSError as error:
        raise DcclipError(
            "cannot use port {}: {}", "choose another port with --port", port, error.strerror
        ) from None
