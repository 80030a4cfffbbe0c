"""Data files on disk and in object stores: listing, reading by range with retries, errors that show no credentials."""

import glob
import io
import os
import re
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeVar

from dcclip_cli.errors import DcclipError, Message
from dcclip_cli.files import OpenFile, refuse_special, write_at

T = TypeVar("T")
PACKAGES = {"s3": "s3fs", "gs": "gcsfs", "hf": "huggingface_hub", "https": "aiohttp", "http": "aiohttp"}
PART_BYTES = 8 << 20  # of one request, so that a retry repeats little
CONNECTIONS = 4  # requests at a time for one block or file
WAITS_S = (1.0, 2.0, 4.0, 8.0, 16.0)  # before each further try: a server that restarts is not an error
_TOP = 10_000  # files that a pattern {0..N} may name
_BRACES = re.compile(r"\{(\d+)\.\.(\d+)\}")
_LOGIN = {
    "s3": Message("set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY; for a public bucket, FSSPEC_S3_ANON=true"),
    "gs": Message("log in with: gcloud auth application-default login"),
    "hf": Message("log in with: hf auth login"),
}
_SIGNED = Message("check the user or the signature in the URL: it may have expired")
_VERSION_KEYS = ("ETag", "etag", "generation", "blob_id", "Last-Modified", "LastModified", "mtime")
_NO_LOGIN = ("NoCredentialsError", "DefaultCredentialsError", "RefreshError")
# Exceptions of the network, by the module that a used file system has imported.
_NETWORK_ERRORS = (
    ("builtins", "OSError"),
    ("builtins", "ValueError"),  # of a wrong setting, or of an answer that is none
    ("aiohttp", "ClientError"),
    ("botocore.exceptions", "BotoCoreError"),
    ("botocore.exceptions", "ClientError"),
    ("gcsfs.retry", "HttpError"),
    ("google.auth.exceptions", "GoogleAuthError"),
    ("httpx", "HTTPError"),
)


@dataclass(frozen=True)
class DataFile:
    """A file of data: an absolute path or a URL, its size in bytes, and a version that changes with its content."""

    location: str
    size: int
    version: str

    @property
    def is_remote(self) -> bool:
        return is_url(self.location)

    @property
    def name(self) -> str:
        """The last part of its path."""
        return shown(self.location).rpartition("/")[2]

    def __str__(self) -> str:
        return shown(self.location)

    def read(self, offset: int, size: int) -> bytes:
        """`size` bytes from `offset` on. Raises DcclipError where they cannot be read."""
        if self.is_remote:
            system = _system(self.location)

            def request() -> bytes:
                if not self.location.startswith("http"):
                    return bytes(system.cat_file(self.location, start=offset, end=offset + size))
                try:  # unlike cat_file this notices a server that sends all of the file
                    with system.open(self.location, "rb", cache_type="none", size=self.size) as stream:
                        stream.seek(offset)
                        return bytes(stream.read(size))
                except ValueError as error:
                    hint = Message("use a server that supports range requests")
                    raise DcclipError("{}: {}", hint, self, _reason(error)) from None

            content = _tried(self.location, request, WAITS_S) if size else b""
        else:
            try:
                content = _opened(self).read(offset, size)
            except OSError as error:
                hint = Message("check the disk, or copy the file again")
                raise DcclipError("{} cannot be read: {}", hint, self, error.strerror) from None
        if len(content) != size:
            message = Message("{} returned {} bytes at position {} instead of {}", self, len(content), offset, size)
            raise DcclipError(message, "copy the truncated or replaced file again, then run dcclip index on it")
        return content

    def read_into(self, target: int, offset: int, size: int) -> None:
        """Write `size` bytes from `offset` on to the file descriptor `target`, from its start, in bounded memory."""
        parts, failed = iter(range(0, size, PART_BYTES)), list[DcclipError | OSError]()

        def copy() -> None:
            try:
                for begin in parts:  # each is taken by one thread
                    write_at(target, self.read(offset + begin, min(PART_BYTES, size - begin)), begin)
            except (DcclipError, OSError) as error:
                failed.append(error)

        # Unlike an executor's, these do not keep a process from ending.
        threads = [threading.Thread(target=copy, daemon=True) for _ in range(CONNECTIONS)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        if failed:
            raise failed[0]

    def open(self) -> io.BufferedReader:
        """A file object for reading in order; it can be moved back and forth. Raises DcclipError where that fails."""
        return io.BufferedReader(RangeFile(self), PART_BYTES if self.is_remote else 1 << 20)


class RangeFile(io.RawIOBase):
    """A file object for reading anywhere in a file: one request for each read."""

    def __init__(self, file: DataFile) -> None:
        self._file, self._at = file, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._at = offset + (0, self._at, self._file.size)[whence]
        return self._at

    def tell(self) -> int:
        return self._at

    def readinto(self, buffer: Any) -> int:
        size = max(0, min(len(buffer), self._file.size - self._at))
        buffer[:size] = self._file.read(self._at, size) if size else b""
        self._at += size
        return size


def is_url(location: str | os.PathLike[str]) -> bool:
    """Whether a location names an object store rather than a path."""
    return "://" in os.fspath(location)


def shown(location: str | os.PathLike[str]) -> str:
    """A location as it may be shown and kept: a URL without user, password, query and fragment."""
    text = os.fspath(location)
    if not is_url(text):
        return text
    scheme, _, rest = text.partition("://")
    authority, slash, path = re.split(r"[?#]", rest, maxsplit=1)[0].partition("/")
    return f"{scheme}://{authority.rpartition('@')[2]}{slash}{path}"


def with_suffix(location: str, suffix: str) -> str:
    """The location of a file whose name is that of another with a suffix; a URL's query stays at the end."""
    end = len(re.split(r"[?#]", location, maxsplit=1)[0]) if is_url(location) else len(location)
    return location[:end] + suffix + location[end:]


def list_files(location: str | os.PathLike[str]) -> list[DataFile]:
    """The files at a location, sorted by name: one file, those in a folder (not below it), or those of a pattern.

    A pattern has `*`, `?` or `[...]`, or `{00000..00099}` as in WebDataset; over http and https only the latter, for
    these list no folders. Raises DcclipError where nothing is there.
    """
    text = os.fspath(location)
    if match := _BRACES.search(text):
        first, last = match.groups()
        if not 0 <= int(last) - int(first) < _TOP:
            raise DcclipError(
                "{} must expand to 1 to {:,} files", "write a range such as {{00000..00099}}", shown(text), _TOP
            )
        numbers = (str(number).zfill(len(first)) for number in range(int(first), int(last) + 1))
        locations = [text[: match.start()] + number + text[match.end() :] for number in numbers]
        with ThreadPoolExecutor(16) as pool:
            return [file for files in pool.map(list_files, locations) for file in files]
    if is_url(text):
        return _list_remote(text)
    path = Path(text)
    if path.is_dir():
        paths = sorted(entry for entry in path.iterdir() if entry.is_file())
    elif path.exists():
        refuse_special(path)
        paths = [path]
    else:
        paths = sorted(Path(entry) for entry in glob.glob(text, recursive=True) if os.path.isfile(entry))
        if not paths:
            hint = Message("check the path; in a recipe it is relative to the recipe's folder")
            raise DcclipError("{} does not exist", hint, text)
    return [local_file(file) for file in paths]


def local_file(path: Path) -> DataFile:
    status = path.stat()
    return DataFile(os.path.abspath(path), status.st_size, str(status.st_mtime_ns))


def _list_remote(url: str) -> list[DataFile]:
    scheme, system = url.partition("://")[0], _system(url)
    web = scheme in ("http", "https")

    def entries() -> dict[str, dict[str, Any]]:
        if web:
            return {url: system.info(url)}
        if glob.has_magic(url):
            return dict(system.glob(url, detail=True))
        info = system.info(url)
        if info["type"] != "directory":
            return {info["name"]: info}
        return {entry["name"]: entry for entry in system.ls(url, detail=True)}

    files = [
        DataFile(
            name if web else f"{scheme}://{name}",
            info["size"],
            next((str(info[key]) for key in _VERSION_KEYS if info.get(key)), ""),
        )
        for name, info in sorted(_tried(url, entries, WAITS_S[:2]).items())
        if info["type"] == "file" and info.get("size") is not None
    ]
    if not files:
        web_hint = Message("give the URL of a file, or a range of numbers: https://host/{{00000..00099}}.tar")
        raise DcclipError("{} contains no files", web_hint if web else "check the URL", shown(url))
    return files


@lru_cache(maxsize=256 if hasattr(os, "pread") else 0)  # on Windows, an open file cannot be renamed or removed
def _opened(file: DataFile) -> OpenFile:
    return OpenFile(file.location)


def _system(url: str) -> Any:
    """The file system of a URL, one per process. Raises DcclipError where its package is missing."""
    scheme = url.partition("://")[0]
    if scheme not in PACKAGES:
        raise DcclipError(
            "{}: the protocol {}:// is not supported", "use one of {}", shown(url), scheme, ", ".join(PACKAGES)
        )
    if not scheme.startswith("http") and "@" in url.split("/")[2]:
        raise DcclipError("{} contains a user name or password", _LOGIN[scheme], shown(url))
    return _system_of(scheme, os.getpid())  # their connections do not survive a fork


@lru_cache(maxsize=16)
def _system_of(scheme: str, _process: int) -> Any:
    try:
        import fsspec

        options: dict[str, Any] = {}
        if scheme == "s3":
            config = fsspec.config.conf.get("s3", {}).get("config_kwargs", {})
            # `_tried` waits, as for every store. But a listing is several requests: each is tried again by itself.
            options["config_kwargs"] = {"retries": {"max_attempts": 2}, "connect_timeout": 10, **config}
        elif scheme in ("http", "https"):
            import aiohttp

            options["client_kwargs"] = {"timeout": aiohttp.ClientTimeout(sock_connect=10, sock_read=60)}
            options["headers"] = {"Accept-Encoding": "identity"}  # ranges are of the file itself
        system = fsspec.filesystem(scheme, **options)
    except ImportError:
        package = PACKAGES[scheme] if "fsspec" in sys.modules else f"fsspec {PACKAGES[scheme]}"
        raise DcclipError("reading {0}:// URLs needs the package {1}", "pip install {1}", scheme, package) from None
    if scheme == "s3":
        system.retries = 1
    return system


def _tried(url: str, action: Callable[[], T], waits_s: tuple[float, ...]) -> T:
    """What `action` returns, tried again after each wait where the network fails. Raises DcclipError."""
    for wait_s in (*waits_s, None):
        try:
            return action()
        except tuple(getattr(sys.modules.get(module), name, OSError) for module, name in _NETWORK_ERRORS) as error:
            if final := _final(url, error, last=wait_s is None):
                raise final from None
        time.sleep(wait_s or 0)
    raise AssertionError


def _final(url: str, error: BaseException, last: bool) -> DcclipError | None:
    """The error to raise where trying again is of no use, or was the last try."""
    response, name = getattr(error, "response", None), type(error).__name__
    status = getattr(error, "status", None) or getattr(response, "status_code", None)
    if isinstance(error, FileNotFoundError) or status in (404, 410):
        return DcclipError("{} does not exist", "check the URL and your permission to read it", shown(url))
    if isinstance(error, PermissionError) or status in (401, 403) or name in _NO_LOGIN:
        hint = _LOGIN.get(url.partition("://")[0], _SIGNED)
        if "expired" in str(error):  # the code of S3's answer is not kept
            hint = Message("the login has expired: log in again, or set AWS_SESSION_TOKEN to a new token")
        return DcclipError("no permission to read {}", hint, shown(url))
    if last or isinstance(error, ValueError) or name in ("FSTimeoutError", "ProfileNotFound"):
        hint = Message(
            "check the network and the URL, and for s3:// also AWS_ENDPOINT_URL (http://HOST:PORT) and AWS_PROFILE; "
            "then run the same command again: it resumes"
        )
        return DcclipError("{} cannot be read: {}", hint, shown(url), _reason(error))
    return None


def _reason(error: BaseException) -> str:
    """What an error says in one line, without the credentials that a URL in it may have."""
    if status := getattr(error, "status", None):
        return Message("the server answers {} {}", status, getattr(error, "message", ""))
    text = " ".join(str(error).split()) or type(error).__name__
    return re.sub(r"[a-z0-9+]+://[^\s'\"<>)]+", lambda match: shown(match.group()), text)[:300]
