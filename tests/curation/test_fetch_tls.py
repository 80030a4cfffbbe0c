"""Certificates are made here with the openssl program: one for a server, signed by nobody that is trusted."""

import shutil
import socket
import ssl
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from dcclip_cli.curation.fetch import FetchOptions, client
from dcclip_cli.curation.fetch.fetcher import Fetcher
from dcclip_cli.data.reading import Drop
from tests.curation.fetch_site import PICTURE, Site, drips, reason

needs_openssl = pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl makes the certificates")


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


@pytest.fixture
def trusted(certificate: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The certificate is one of the system's authorities."""
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    client._tls.cache_clear()
    yield
    client._tls.cache_clear()


def fetch(url: str, **options: Any) -> bytes | Drop:
    with Fetcher(FetchOptions(allow_hosts=("localhost", "127.0.0.1"), robots=False, **options)) as fetcher:
        return fetcher.fetch(url)


@needs_openssl
def test_a_certificate_that_nobody_trusts_is_refused(port: int) -> None:
    assert fetch(f"https://localhost:{port}/") == Drop("url-tls", "localhost: self-signed certificate")


@needs_openssl
@pytest.mark.usefixtures("trusted")
def test_a_certificate_of_the_systems_authorities_is_accepted_for_its_own_name_only(port: int) -> None:
    assert fetch(f"https://localhost:{port}/cat.jpg") == PICTURE
    got = fetch(f"https://127.0.0.1:{port}/")
    assert isinstance(got, Drop)
    assert (got.reason, "IP address mismatch" in got.detail) == ("url-tls", True)


@needs_openssl
@pytest.mark.usefixtures("trusted")
def test_a_server_that_drips_has_no_more_time_under_tls(port: int) -> None:
    start = time.monotonic()
    got = fetch(f"https://localhost:{port}/slow", timeout_s=0.5)
    assert got == Drop("url-timeout", "localhost did not send it all in time")
    assert time.monotonic() - start < 3


@pytest.mark.parametrize(
    ("says", "expected"),
    [
        (lambda connection: connection.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n"), "url-tls"),
        (lambda connection: time.sleep(1.5), "url-timeout"),
    ],
    ids=["plain HTTP", "nothing"],
)
def test_a_server_without_tls_is_no_server_with_it(says: Callable[[Any], None], expected: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            connection, _ = server.accept()
            with connection:
                says(connection)

        threading.Thread(target=serve, daemon=True).start()
        got = fetch(f"https://127.0.0.1:{server.getsockname()[1]}/", timeout_s=1, retries=0)
    assert reason(got) == expected
