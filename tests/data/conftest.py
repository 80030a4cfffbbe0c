"""An S3 store on loopback."""

import logging
from collections.abc import Iterator
from typing import Any
from urllib.request import Request, urlopen

import pytest

LOGIN = {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "secret-key", "AWS_DEFAULT_REGION": "us-east-1"}


class S3:
    """An empty S3 store in memory."""

    def __init__(self) -> None:
        from moto.server import ThreadedMotoServer

        # Of a test that has ended: its stream is closed.
        logging.getLogger("werkzeug").setLevel(logging.CRITICAL)
        self._server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
        self._server.start()
        host, port = self._server.get_host_and_port()
        self.url = f"http://{host}:{port}"
        # What other servers of this process were given.
        urlopen(Request(f"{self.url}/moto-api/reset", method="POST")).close()

    def put(self, bucket: str, key: str, content: bytes) -> None:
        import boto3

        client: Any = boto3.client("s3", endpoint_url=self.url)
        client.create_bucket(Bucket=bucket)
        client.put_object(Bucket=bucket, Key=key, Body=content)

    def stop(self) -> None:
        self._server.stop()


def forget_connections() -> None:
    """Let the next request look at the environment again."""
    import fsspec

    from dcclip_cli.data import remote

    remote._system_of.cache_clear()
    for scheme in ("s3", "http", "https"):
        fsspec.get_filesystem_class(scheme).clear_instance_cache()


@pytest.fixture
def s3(monkeypatch: pytest.MonkeyPatch) -> Iterator[S3]:
    """An empty S3 store that s3:// URLs lead to."""
    import fsspec

    for name, value in LOGIN.items():
        monkeypatch.setenv(name, value)
    server = S3()
    monkeypatch.setenv("AWS_ENDPOINT_URL", server.url)
    forget_connections()
    yield server
    server.stop()
    fsspec.filesystem("s3").invalidate_cache()
    forget_connections()
