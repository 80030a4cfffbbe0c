"""The server of `dcclip demo`: what it answers to requests that no browser on this machine sends."""

import threading
from collections.abc import Iterator
from http.client import HTTPConnection
from pathlib import Path

import pytest

from dcclip_cli.cli import serve


@pytest.fixture
def port(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    (tmp_path / "index.html").write_text("一只猫")
    monkeypatch.setattr(serve, "_IDLE_S", 0.5)
    with serve._server(tmp_path, 0) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server.server_port
        server.shutdown()


def status(port: int, path: str = "/", host: str | None = None) -> int:
    connection = HTTPConnection("127.0.0.1", port, timeout=20)
    connection.putrequest("GET", path, skip_host=True)
    connection.putheader("Host", host or f"127.0.0.1:{port}")
    connection.endheaders()
    return connection.getresponse().status


def test_paths_that_cannot_be_names_of_files_are_bad_requests(port: int, capfd: pytest.CaptureFixture[str]) -> None:
    paths = ("/", "/index.html", "/none", "/%00", "/%ed%a0%80")
    assert [status(port, path) for path in paths] == [200, 200, 404, 400, 400]
    assert capfd.readouterr().err == ""


def test_only_names_of_this_machine_are_served(port: int) -> None:
    served = ("localhost", "localhost:9000", "LOCALHOST", "127.0.0.1", "[::1]:80")
    assert [status(port, host=host) for host in served] == [200] * len(served)
    other_hosts = ("evil.example", "127.0.0.1.evil.example:80", "[::1")
    assert [status(port, host=host) for host in other_hosts] == [421, 421, 400]


def test_an_idle_connection_gives_its_thread_back(port: int) -> None:
    before = threading.active_count()
    idle = [HTTPConnection("127.0.0.1", port, timeout=20) for _ in range(20)]
    for connection in idle:
        connection.connect()
    assert all(connection.sock.recv(1) == b"" for connection in idle)
    assert status(port) == 200
    assert threading.active_count() <= before + 1
