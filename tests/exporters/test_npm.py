"""Packages of an npm registry: pinned, bounded, kept in the cache folder; another registry; no registry."""

import base64
import hashlib
import io
import os
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from dcclip_cli.errors import DcclipError
from dcclip_cli.exporters.formats.web import Package
from dcclip_cli.progress import Silent
from tests.exporters.serving import serve


def tarball(**files: bytes) -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w:gz") as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(f"package/{name}")
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return stream.getvalue()


BODY = tarball(readme=b"hello", other=b"not asked for")
REGISTRY = "npm_config_registry"
PACKAGE = Package("@org/small", "1.2.3", len(BODY), base64.b64encode(hashlib.sha512(BODY).digest()).decode())


@pytest.fixture
def served(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The file that a registry on this machine sends; the cache folder is empty."""
    file = tmp_path / "registry/@org/small/-/small-1.2.3.tgz"
    file.parent.mkdir(parents=True)
    file.write_bytes(BODY)
    monkeypatch.setenv("DCCLIP_CACHE", str(tmp_path / "cache"))
    with serve(tmp_path / "registry") as site:
        monkeypatch.setenv(REGISTRY, site.address)
        yield file


def test_a_package_is_downloaded_once_and_read_by_name(served: Path, tmp_path: Path) -> None:
    assert PACKAGE.read({"readme": "new.txt"}) == {"new.txt": b"hello"}
    served.unlink()
    assert PACKAGE.read({"readme": "new.txt"}) == {"new.txt": b"hello"}
    kept = tmp_path / "cache/npm/org-small-1.2.3.tgz"  # the name that npm pack gives it
    assert kept.read_bytes() == BODY
    kept.write_bytes(b"damaged")
    served.write_bytes(BODY)
    assert PACKAGE.read({"readme": "new.txt"}) == {"new.txt": b"hello"} and kept.read_bytes() == BODY


@pytest.mark.parametrize("body", [tarball(readme=b"other"), BODY[:-1], BODY + b"more" * 10_000_000, None])
def test_what_is_not_the_archive_is_refused_and_not_kept_and_the_hint_says_what_to_copy(
    served: Path, tmp_path: Path, body: bytes | None
) -> None:
    served.write_bytes(body) if body else served.unlink()
    with pytest.raises(DcclipError, match=r"small-1.2.3.tgz cannot be downloaded: ") as caught:
        PACKAGE.fetch(Silent())
    assert not (tmp_path / "cache").exists()
    assert caught.value.hint == (
        "where there is a network, run npm pack @org/small@1.2.3, and copy org-small-1.2.3.tgz to "
        f"{tmp_path / 'cache/npm'}"
    )


def test_the_registry_of_npmrc_is_used(served: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / ".npmrc").write_text(f"fund=false\nregistry = {os.environ[REGISTRY]}\n")
    monkeypatch.delenv(REGISTRY)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert PACKAGE.fetch(Silent()).is_file()
    (tmp_path / ".npmrc").write_text("registry=file:///etc")
    monkeypatch.setenv("DCCLIP_CACHE", str(tmp_path / "another"))
    with pytest.raises(DcclipError, match="address does not begin with https://"):
        PACKAGE.fetch(Silent())
