"""Data files: listing and reading by range from disk, an S3 store and an HTTP server; errors; what they never show."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from dcclip_cli.data import remote
from dcclip_cli.data.remote import RangeFile, list_files, shown
from dcclip_cli.errors import DcclipError
from tests.data.servers import S3, forget_connections, http_server

CONTENT = bytes(range(256)) * 40  # 10,240 bytes


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote, "WAITS_S", (0.01, 0.02))


def test_a_url_is_shown_without_user_password_and_signature() -> None:
    assert shown("https://me:key@host:80/a/b.tar?X-Amz-Signature=abc#d") == "https://host:80/a/b.tar"
    assert shown("s3://bucket/猫.tar") == "s3://bucket/猫.tar"
    assert shown(Path("/data/a?b.tar")) == "/data/a?b.tar"


def test_files_in_a_bucket_are_listed_and_read_by_range(s3: S3) -> None:
    for name in ("data/00001.tar", "data/00000.tar", "data/下/x.tar", "data/00000.tar.index.arrow"):
        s3.put("bucket", name, CONTENT)
    names = [str(file) for file in list_files("s3://bucket/data")]
    assert names == [
        "s3://bucket/data/00000.tar",
        "s3://bucket/data/00000.tar.index.arrow",
        "s3://bucket/data/00001.tar",
    ]
    assert [file.name for file in list_files("s3://bucket/data/*1.tar")] == ["00001.tar"]
    both = list_files("s3://bucket/data/{00000..00001}.tar")
    assert [(file.name, file.size) for file in both] == [("00000.tar", 10_240), ("00001.tar", 10_240)]
    assert both[1].read(300, 2) == bytes([44, 45])
    with pytest.raises(DcclipError, match="s3://nowhere/data does not exist"):
        list_files("s3://nowhere/data")
    s3.fail()
    forget_connections()
    assert [str(file) for file in list_files("s3://bucket/data")] == names  # three requests, each of them twice


def test_a_password_in_the_url_of_a_bucket_is_refused_and_not_shown() -> None:
    with pytest.raises(DcclipError, match="s3://bucket/d contains a user name or password") as caught:
        list_files("s3://KEY:hunter2@bucket/d")
    assert "hunter2" not in f"{caught.value.what}{caught.value.hint}"


@pytest.fixture
def web(tmp_path: Path) -> Iterator[tuple[str, type]]:
    (tmp_path / "00000.tar").write_bytes(CONTENT)
    (tmp_path / "00001.tar").write_bytes(CONTENT[:500])
    forget_connections()
    with http_server(tmp_path) as (url, handler):
        yield url, handler


def test_files_of_a_web_server_are_named_by_number_and_read_by_range(web: tuple[str, type]) -> None:
    url, handler = web
    files = list_files(f"{url}/{{00000..00001}}.tar?key=secret")
    assert [(file.name, file.size) for file in files] == [("00000.tar", 10_240), ("00001.tar", 500)]
    assert files[1].read(498, 2) == CONTENT[498:500]
    assert handler.requests == ["/00001.tar?key=secret bytes=498-499"]  # type: ignore[attr-defined]


def test_an_overloaded_server_is_asked_again(web: tuple[str, type]) -> None:
    url, handler = web
    (file,) = list_files(f"{url}/00000.tar")
    handler.failures = 2  # type: ignore[attr-defined]
    assert file.read(256, 2) == b"\x00\x01"
    handler.failures = 3  # type: ignore[attr-defined]
    with pytest.raises(DcclipError, match="cannot be read: the server answers 503"):
        file.read(0, 1)


def test_a_missing_file_of_a_server_is_an_error_that_shows_no_signature(web: tuple[str, type]) -> None:
    url = web[0].replace("http://", "http://me:secret@")
    with pytest.raises(DcclipError, match=r"/猫.tar does not exist") as caught:
        list_files(f"{url}/猫.tar?X-Amz-Signature=secret")
    assert "secret" not in caught.value.what + caught.value.hint


def test_another_protocol_is_an_error_and_a_missing_package_is_named_with_its_command(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with pytest.raises(DcclipError, match="the protocol ftp:// is not supported"):
        list_files("ftp://host/data")
    monkeypatch.setitem(sys.modules, "gcsfs", None)
    with pytest.raises(DcclipError, match="reading gs:// URLs needs the package gcsfs") as caught:
        list_files("gs://bucket/data")
    assert caught.value.hint == "pip install gcsfs"


def test_a_remote_file_object_reads_in_large_requests(web: tuple[str, type]) -> None:
    url, handler = web
    (file,) = list_files(f"{url}/00000.tar")
    with file.open() as stream:
        assert stream.read(2) == b"\x00\x01"
        stream.seek(10_000)
        assert stream.read(1000) == CONTENT[10_000:]
    assert handler.requests == ["/00000.tar bytes=0-10239"]  # type: ignore[attr-defined]
    with RangeFile(file) as raw:
        raw.seek(512)
        assert raw.read(2) == b"\x00\x01"
    assert handler.requests[1:] == ["/00000.tar bytes=512-513"]  # type: ignore[attr-defined]
