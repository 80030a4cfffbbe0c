"""`dcclip serve`: a model as an HTTP server."""

from __future__ import annotations

import select
import socket
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from typer import Option

from dcclip_cli.cli import console, flags
from dcclip_cli.errors import DcclipError, Message

if TYPE_CHECKING:
    from types import FrameType

    import uvicorn

    from dcclip_cli.serve.app import Server

_LOCAL = ("localhost", "127.0.0.1", "::1")
_STOP_S = 7  # in which requests that were accepted are answered; Docker kills after 10
_REFUSE_S = 0.5  # in which new requests are answered with 503 before the port is closed, and again after that
_LOOK_S = 0.02  # between two looks whether clients wait at the port
_HOST = Option("--host", help="Address to listen at; 0.0.0.0 for other machines.")
_PORT = Option("--port", min=0, max=65535, help="Port to listen at; 0 takes any free one.")
_FOLDER = Option("--folder", metavar="DIR", help="Folder of images to search, on the page and by /search. Repeatable.")
_TOKEN = Option("--token", envvar="DCCLIP_TOKEN", metavar="TOKEN", help="Token that clients have to send.")
_IMMICH = Option("--immich-dims", min=0, max=8192, metavar="N", help="Pad immich's embeddings with zeros to N numbers.")


def serve(
    model: flags.Model = None,
    host: Annotated[str, _HOST] = "127.0.0.1",
    port: Annotated[int, _PORT] = 8000,
    folder: Annotated[list[Path] | None, _FOLDER] = None,
    token: Annotated[str | None, _TOKEN] = None,
    immich_dims: Annotated[int, _IMMICH] = 512,
    dims: flags.Dims = None,
    device: flags.Where = "auto",
    threads: flags.Threads = None,
    quiet: flags.Quiet = False,
    verbose: flags.Verbose = False,
) -> None:
    """Serve a model over HTTP: embeddings, classification, image search.

    Speaks the protocols of OpenAI's embeddings and of immich's machine learning; a page to search with is at /, all
    requests are described at /docs. With an export bundle, torch is not needed. Runs until Ctrl-C or SIGTERM, and then
    answers what it has accepted. Prints its address.
    """
    if token and not (token.isascii() and token.isprintable() and " " not in token):
        raise DcclipError("the token has other characters than those of ASCII", "make one with: openssl rand -hex 16")
    talk = console.talk(quiet, verbose)

    import uvicorn

    from dcclip_cli.inference.files import open_encoder
    from dcclip_cli.inference.index import distinct, open_index
    from dcclip_cli.machine import keep_freed_memory
    from dcclip_cli.serve.app import application

    listening = _listen(host, port)
    encoder = open_encoder(model, device, threads, talk, dims)
    keep_freed_memory()
    indexes = [open_index(encoder, one, progress=talk) for one in distinct(folder or ())]
    talk.say(Message("serve: {:,} images can be searched", sum(len(index.paths) for index in indexes)))
    local = host in _LOCAL
    if not local and token is None:
        talk.say(Message("warning: anyone who reaches port {} can use this server; give it a --token", port))
    hosts = ("localhost", "127.0.0.1", "[::1]") if local else ()  # another name may be one that a site lets point here
    app = application(encoder, indexes, token or None, immich_dims, hosts, talk.say)
    name = f"[{host}]" if ":" in host else host
    console.show_now(f"http://{name}:{listening.getsockname()[1]}/")
    talk.say(Message("serve: stop with Ctrl-C"))
    level = "info" if verbose else "error"
    config = uvicorn.Config(app, log_level=level, access_log=verbose, timeout_graceful_shutdown=_STOP_S)
    with suppress(KeyboardInterrupt):  # which uvicorn raises again once all is answered
        _server(config, listening, app.state.server).run(sockets=[listening])


def _server(config: uvicorn.Config, listening: socket.socket, state: Server) -> uvicorn.Server:
    """A server whose port stays open, and whose answers are refusals, while clients wait there at its end."""
    import asyncio

    import uvicorn

    class Closing(uvicorn.Server):
        def handle_exit(self, sig: int, frame: FrameType | None) -> None:
            if state.stopping:
                return super().handle_exit(sig, frame)
            state.stopping = True
            loop, leave = asyncio.get_running_loop(), super().handle_exit
            latest = loop.time() + 3 * _REFUSE_S

            def close() -> None:
                """Close the port once no client waits there, and leave when those that came last are answered."""
                if select.select([listening], [], [], 0)[0] and loop.time() < latest:
                    loop.call_later(_LOOK_S, close)
                    return
                for one in self.servers:
                    one.close()
                loop.call_later(_REFUSE_S, leave, sig, frame)

            loop.call_later(_REFUSE_S, close)

    return Closing(config)


def _listen(host: str, port: int) -> socket.socket:
    """A socket at an address. Raises DcclipError if it cannot be used."""
    try:
        return socket.create_server(
            (host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET, backlog=512
        )
    except socket.gaierror as error:
        raise DcclipError(
            "host {} cannot be used: {}", "name an address of this machine", host, error.strerror
        ) from None
    except OSError as error:
        raise DcclipError("port {} cannot be used: {}", "name another with --port", port, error.strerror) from None
