"""An S3 store on loopback."""

from collections.abc import Iterator

import pytest

from tests.data.servers import LOGIN, S3, forget_connections


@pytest.fixture
def s3(monkeypatch: pytest.MonkeyPatch) -> Iterator[S3]:
    """An empty S3 store that s3:// URLs lead to."""
    import fsspec

    for name, value in LOGIN.items():
        monkeypatch.setenv(name, value)
    server = S3()
    server.empty()
    monkeypatch.setenv("AWS_ENDPOINT_URL", server.url)
    forget_connections()
    yield server
    server.stop()
    fsspec.filesystem("s3").invalidate_cache()
    forget_connections()
