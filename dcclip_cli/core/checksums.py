"""JSON records of model directories, bundles and checkpoints, with the SHA-256 of the files next
to them.
"""

from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from dcclip_cli.core.errors import DcclipError
from dcclip_cli.core.files import file_sha256, read_json, write_json

FORMAT = 1  # of everything that dcclip writes
FILES = "files"
_UNLISTED = ("README.md",)  # the user may edit the model card
_SMALL_BYTES = 1 << 20  # files up to this size are checked before anything is loaded


@dataclass(frozen=True)
class Record:
    file: Path
    content: dict[str, Any]
    hint: str  # what the user can do about a file that differs

    @property
    def digests(self) -> dict[str, str]:
        """The SHA-256 of each listed file by its name, `/` between the parts."""
        return dict(self.content.get(FILES, {}))

    @contextmanager
    def checking(self) -> Iterator[None]:
        """Compare the files with their checksums while the block loads them; a difference replaces
        its error.
        """
        large = [
            name for name in self.digests if (self.file.parent / name).stat().st_size > _SMALL_BYTES
        ]
        self.check(self.digests.keys() - set(large))
        with ThreadPoolExecutor(1, "checksums") as pool:
            checked = pool.submit(self.check, large)
            try:
                yield
            finally:
                checked.result()

    def check(self, names: Iterable[str] | None = None) -> None:
        """Raise DcclipError if a listed file, or one of `names`, is not as it was written."""
        for name in self.digests if names is None else names:
            file = self.file.parent / name
            if file_sha256(file) != self.digests[name]:
                raise DcclipError(
                    "{} is damaged or was changed: its SHA-256 differs from the one in {}",
                    self.hint,
                    file,
                    self.file.name,
                )


def write_record(file: Path, content: Mapping[str, Any], sort_keys: bool = False) -> None:
    """Write a JSON object, with the checksums of all files in its folder and below it but those of
    the user.
    """
    unlisted = {file, *(file.parent / name for name in _UNLISTED)}
    listed = sorted(
        path for path in file.parent.rglob("*") if path.is_file() and path not in unlisted
    )
    files = {path.relative_to(file.parent).as_posix(): file_sha256(path) for path in listed}
    write_json(
        file, {"format": FORMAT} | dict(content) | {"format": FORMAT, FILES: files}, sort_keys
    )


def read_record(file: Path, hint: str) -> Record:
    """The record in a file. Raises DcclipError if it is none, or if a file that it lists is
    missing.
    """
    content = read_json(file, hint)
    check_format(file, content, hint)
    files = content.get(FILES)
    if not isinstance(files, dict) or any(
        ".." in PurePosixPath(name).parts or name[:1] == "/" for name in files
    ):
        raise DcclipError("{} has no valid file list", hint, file)
    for path in (file.parent / name for name in files):
        if not path.is_file():
            raise DcclipError("{} is missing, but {} lists it", hint, path, file.name)
    return Record(file, content, hint)


def check_format(file: Path, content: Mapping[str, Any], hint: str) -> None:
    """Raise DcclipError unless a JSON object is of the format of this version."""
    if (version := content.get("format")) != FORMAT:
        raise DcclipError(
            "{} has format {}; this version of dcclip reads format {}", hint, file, version, FORMAT
        )
