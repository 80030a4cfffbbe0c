"""Data files: listing them, reading them, and copying those of object stores to disk; errors show
no credentials.
"""

import glob
import hashlib
import os
import re
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

from dcclip_cli.core.errors import DcclipError, Message
from dcclip_cli.core.files import OpenFile, atomic_file, cache_folder, lock, refuse_special
from dcclip_cli.core.progress import Progress, Silent

T = TypeVar("T")
CACHE_BYTES = 50 * 10**9
PACKAGES = {
    "s3": "s3fs",
    "gs": "gcsfs",
    "hf": "huggingface_hub",
    "https": "aiohttp",
    "http": "aiohttp",
}
WAITS_S = (
    1.0,
    2.0,
    4.0,
    8.0,
    16.0,
)  # before each further try: a server that restarts is not an error
_CONNECTIONS = 8  # files that are copied at a time
_TOP = 10_000  # files that a pattern {0..N} may name
_BRACES = re.compile(r"\{(\d+)\.\.(\d+)\}")
_LOGIN = {
    "s3": Message(
        "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY; for a public bucket, FSSPEC_S3_ANON=true"
    ),
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
    """A file of data: an absolute path or a URL, its size in bytes, and a version that changes
    with its content.

    Those at URLs are read after `local_copies`.
    """

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
        with self._read_errors():
            content = _opened(self).read(offset, size)
        if len(content) != size:
            message = Message(
                "{} returned {} bytes at position {} instead of {}",
                self,
                len(content),
                offset,
                size,
            )
            raise DcclipError(
                message, "copy the truncated or replaced file again, then run dcclip index on it"
            )
        return content

    def open(self) -> BinaryIO:
        """A file object for reading in order. Raises DcclipError where the file cannot be opened."""
        with self._read_errors():
            return open(self.location, "rb", buffering=1 << 20)

    @contextmanager
    def _read_errors(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            hint = Message("check the disk, or copy the file again")
            raise DcclipError("{} cannot be read: {}", hint, self, error.strerror) from None


def local_copies(
    files: Sequence[DataFile], max_bytes: int = CACHE_BYTES, progress: Progress | None = None
) -> list[DataFile]:
    """The files on disk: those at URLs are copied to the cache folder first, unless they are
    there.

    Of several processes that share the folder, the first copies them. Raises DcclipError where
    that fails, or where the copies would exceed `max_bytes`.
    """
    folder = cache_folder() / "shards"
    copies: dict[DataFile, Path] = {}
    for file in files:
        if file.is_remote:
            identity = repr((str(file), file.size, file.version))
            copies[file] = folder / hashlib.sha256(identity.encode()).hexdigest()[:24] / file.name
    if not all(path.exists() for path in copies.values()):
        with lock(folder / ".lock"):
            missing = {file: path for file, path in copies.items() if not path.exists()}
            kept_bytes = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
            check_room(
                next(iter(copies)),
                sum(file.size for file in missing),
                kept_bytes,
                max_bytes,
                folder,
            )
            total = len(missing)
            with (
                (progress or Silent()).task(Message("download"), total) as task,
                ThreadPoolExecutor(_CONNECTIONS) as pool,
            ):
                for _ in pool.map(_copy, missing, missing.values()):
                    task.advance()
    return [local_file(copies[file]) if file in copies else file for file in files]


def check_room(source: object, needed: int, kept: int, max_bytes: int, folder: Path) -> None:
    """Raise DcclipError if files of `needed` bytes do not fit next to those that are kept in a
    cache folder.
    """
    if needed + kept > max_bytes:
        sizes = needed / 1e9, folder, kept / 1e9, max_bytes / 1e9
        message = Message(
            "{} needs {:.3g} GB in {}, which has {:.3g} GB and is limited to {:.3g} GB",
            source,
            *sizes,
        )
        raise DcclipError(
            message, "increase data.cache_gb, or delete what other data left in that folder"
        )


def _copy(file: DataFile, path: Path) -> None:
    from fsspec.callbacks import Callback

    def check_size(_size: object, value: int, **_kwargs: object) -> None:
        if value > file.size:
            raise OSError(f"it has more than the {file.size:,} bytes that were listed")

    def copy() -> None:
        with atomic_file(path) as temporary:
            limit = Callback(hooks={"size": check_size})
            _system(file.location).get_file(file.location, str(temporary), callback=limit)
            size = temporary.stat().st_size
            if size != file.size:
                raise OSError(f"it has {size:,} bytes instead of {file.size:,}")

    _tried(file.location, copy, WAITS_S)


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


def list_files(location: str | os.PathLike[str]) -> list[DataFile]:
    """The files at a location, sorted by name: one file, those in a folder (not below it), or
    those of a pattern.

    A pattern has `*`, `?` or `[...]`, or `{00000..00099}` as in WebDataset; over http and https
    only the latter, for these list no folders. Raises DcclipError where nothing is there.
    """
    text = os.fspath(location)
    if match := _BRACES.search(text):
        first, last = match.groups()
        if not 0 <= int(last) - int(first) < _TOP:
            raise DcclipError(
                "{} must expand to 1 to {:,} files",
                "write a range such as {{00000..00099}}",
                shown(text),
                _TOP,
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
        paths = sorted(
            Path(entry) for entry in glob.glob(text, recursive=True) if os.path.isfile(entry)
        )
        if not paths:
            hint = Message("check the path; in a recipe it is relative to the recipe's folder")
            raise DcclipError("{} does not exist", hint, text)
    return [local_file(file) for file in paths]


def local_file(path: Path) -> DataFile:
    status = path.stat()
    return DataFile(os.path.abspath(path), status.st_size, str(status.st_mtime_ns))


def _list_remote(url: str) -> list[DataFile]:
    scheme = url.partition("://")[0]
    system = _system(url)
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
        web_hint = Message(
            "give the URL of a file, or a range of numbers: https://host/{{00000..00099}}.tar"
        )
        raise DcclipError("{} contains no files", web_hint if web else "check the URL", shown(url))
    return files


@lru_cache(
    maxsize=256 if hasattr(os, "pread") else 0
)  # on Windows, an open file cannot be renamed or removed
def _opened(file: DataFile) -> OpenFile:
    return OpenFile(file.location)


def _system(url: str) -> Any:
    """The file system of a URL, one per process. Raises DcclipError where its package is missing."""
    scheme = url.partition("://")[0]
    if scheme not in PACKAGES:
        raise DcclipError(
            "{}: the protocol {}:// is not supported",
            "use one of {}",
            shown(url),
            scheme,
            ", ".join(PACKAGES),
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
            # `_tried` waits, as for every store. But a listing is several requests: each is tried
            # again by itself.
            options["config_kwargs"] = {"retries": {"max_attempts": 2}, "connect_timeout": 10}
        elif scheme in ("http", "https"):
            import aiohttp

            options["client_kwargs"] = {
                "timeout": aiohttp.ClientTimeout(sock_connect=10, sock_read=60)
            }
            options["headers"] = {"Accept-Encoding": "identity"}  # sizes are of the file itself
        system = fsspec.filesystem(scheme, **options)
    except ImportError:
        package = PACKAGES[scheme] if "fsspec" in sys.modules else f"fsspec {PACKAGES[scheme]}"
        raise DcclipError(
            "reading {0}:// URLs needs the package {1}", "pip install {1}", scheme, package
        ) from None
    if scheme == "s3":
        system.retries = 1
    return system


def _tried(url: str, action: Callable[[], T], waits_s: tuple[float, ...]) -> T:
    """What `action` returns, tried again after each wait where the network fails. Raises
    DcclipError.
    """
    for wait_s in (*waits_s, None):
        try:
            return action()
        except tuple(
            getattr(sys.modules.get(module), name, OSError) for module, name in _NETWORK_ERRORS
        ) as error:
            if final := _final(url, error, last=wait_s is None):
                raise final from None
        time.sleep(wait_s or 0)
    raise AssertionError


def _final(url: str, error: BaseException, last: bool) -> DcclipError | None:
    """The error to raise where trying again is of no use, or was the last try."""
    response = getattr(error, "response", None)
    name = type(error).__name__
    status = getattr(error, "status", None) or getattr(response, "status_code", None)
    if isinstance(error, FileNotFoundError) or status in (404, 410):
        return DcclipError(
            "{} does not exist", "check the URL and your permission to read it", shown(url)
        )
    if isinstance(error, PermissionError) or status in (401, 403) or name in _NO_LOGIN:
        hint = _LOGIN.get(url.partition("://")[0], _SIGNED)
        if "expired" in str(error):  # the code of S3's answer is not kept
            hint = Message(
                "the login has expired: log in again, or set AWS_SESSION_TOKEN to a new token"
            )
        return DcclipError("no permission to read {}", hint, shown(url))
    if last or isinstance(error, ValueError) or name in ("FSTimeoutError", "ProfileNotFound"):
        hint = Message(
            "check the network and the URL, and for s3:// also AWS_ENDPOINT_URL "
            "(http://HOST:PORT) and AWS_PROFILE; "
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
