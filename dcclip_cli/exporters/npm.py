"""JavaScript packages of an npm registry: pinned by their SHA-512, kept in the cache folder, read file by file."""

from __future__ import annotations

import base64
import hashlib
import os
import tarfile
from collections.abc import Mapping
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path
from urllib.request import Request, urlopen

from dcclip_cli.errors import DcclipError, Message
from dcclip_cli.files import atomic_write, cache_folder
from dcclip_cli.progress import Progress, Silent
from dcclip_cli.versions import VERSION

_PUBLIC = "https://registry.npmjs.org"
_WAIT_S = 30  # for the next bytes
_CHUNK = 1 << 18


@dataclass(frozen=True)
class Package:
    """A version of a package. `sha512` is that of its archive in base64, npm's "integrity"; `size_bytes` its size."""

    name: str
    version: str
    size_bytes: int
    sha512: str

    @property
    def archive(self) -> str:
        """The file that `npm pack NAME@VERSION` writes."""
        return f"{self.name.removeprefix('@').replace('/', '-')}-{self.version}.tgz"

    def fetch(self, progress: Progress) -> Path:
        """The archive in the cache folder, downloaded if it is not there or damaged.

        Raises DcclipError if the registry cannot be reached, or sends anything else.
        """
        file = cache_folder() / "npm" / self.archive
        if file.is_file() and self._is(file.read_bytes()):
            return file
        url = f"{_registry()}/{self.name}/-/{self.name.rpartition('/')[2]}-{self.version}.tgz"
        by_hand = f"npm pack {self.name}@{self.version}", self.archive, file.parent
        hint = Message("where there is a network, run {}, and copy {} to {}", *by_hand)
        body = bytearray()
        try:
            if not url.startswith(("https://", "http://")):
                raise ValueError(Message("the registry's address does not begin with https://"))
            request = Request(url, headers={"User-Agent": f"dcclip/{VERSION}"})
            with (
                urlopen(request, timeout=_WAIT_S) as response,
                progress.task(Message("download {}", self.archive), self.size_bytes) as task,
            ):
                while chunk := response.read(min(_CHUNK, self.size_bytes + 1 - len(body))):
                    body += chunk
                    task.advance(len(chunk))
        except (OSError, HTTPException, ValueError) as error:  # ValueError: a registry that is no URL
            reason = getattr(error, "reason", None) or error
            raise DcclipError("{} cannot be downloaded: {}", hint, url, reason) from None
        if not self._is(body):
            what = Message("{} is not {} {}: its SHA-512 differs", url, self.name, self.version)
            raise DcclipError(what, Message("use another registry; or, {}", hint))
        file.parent.mkdir(parents=True, exist_ok=True)
        atomic_write(file, bytes(body))
        return file

    def read(self, files: Mapping[str, str]) -> dict[str, bytes]:
        """New name -> content for `files`: paths in the package, and their new names."""
        found = {}
        with tarfile.open(self.fetch(Silent()), "r:gz") as archive:
            for path, name in files.items():
                stream = archive.extractfile(f"package/{path}")
                assert stream is not None, f"{self.archive} has no file {path}"
                found[name] = stream.read()
        return found

    def _is(self, body: bytes | bytearray) -> bool:
        return base64.b64encode(hashlib.sha512(body).digest()).decode() == self.sha512


def _registry() -> str:
    """The address that npm would use: of $npm_config_registry, else of ~/.npmrc, else the public one."""
    given, file = os.environ.get("npm_config_registry"), Path.home() / ".npmrc"  # noqa: SIM112
    lines = file.read_text("utf-8", errors="replace").splitlines() if file.is_file() and not given else []
    named = [value.strip() for key, _, value in (line.partition("=") for line in lines) if key.strip() == "registry"]
    return (given or (named[-1] if named else _PUBLIC)).rstrip("/")
