"""Servers on loopback: an S3 store, and HTTP."""

import logging
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen

LOGIN = {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "secret-key", "AWS_DEFAULT_REGION": "us-east-1"}


class S3:
    """An S3 store in memory that can be stopped and started again on the same port."""

    def __init__(self) -> None:
        self._held = socket.socket()  # never listens: keeps others off the port while the store is stopped
        self._held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self._held.bind(("127.0.0.1", 0))
        self.port: int = self._held.getsockname()[1]
        self.start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        from moto.server import ThreadedMotoServer

        # Of a test that has ended: its stream is closed.
        logging.getLogger("werkzeug").setLevel(logging.CRITICAL)
        self._server = ThreadedMotoServer(ip_address="127.0.0.1", port=self.port, verbose=False)
        self._server.start()

    def stop(self) -> None:
        self._server.stop()

    def empty(self) -> None:
        """Forget what other servers of this process were given."""
        urlopen(Request(f"{self.url}/moto-api/reset", method="POST")).close()

    def put(self, bucket: str, key: str, content: bytes) -> None:
        import boto3

        client: Any = boto3.client("s3", endpoint_url=self.url)
        client.create_bucket(Bucket=bucket)
        client.put_object(Bucket=bucket, Key=key, Body=content)


def forget_connections() -> None:
    """Let the next request look at the environment again."""
    import fsspec

    from dcclip_cli.data import remote

    remote._system_of.cache_clear()
    for scheme in ("s3", "http", "https"):
        fsspec.get_filesystem_class(scheme).clear_instance_cache()


class _Files(SimpleHTTPRequestHandler):
    """Files of a folder; `failures` requests are answered with 503 first, and `more` bytes follow each file."""

    failures = 0
    more = b""
    requests: list[str] = []

    def do_GET(self) -> None:
        kind = type(self)
        kind.requests.append(self.path)
        if kind.failures:
            kind.failures -= 1
            self.send_error(503)
            return
        if not kind.more:
            super().do_GET()
            return
        self.send_response(200)
        self.end_headers()
        self.wfile.write(Path(self.translate_path(self.path)).read_bytes() + kind.more)

    def log_message(self, *_: Any) -> None:
        pass


@contextmanager
def http_server(folder: Path) -> Iterator[tuple[str, type[_Files]]]:
    """The URL of a server of a folder's files, and its handler, whose attributes change what it does."""
    handler = type("Files", (_Files,), {"requests": []})
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(handler, directory=str(folder))) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}", handler
        server.shutdown()
