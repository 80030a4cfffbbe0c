"""Which picture files a user means by names, folders, globs and lists."""

from __future__ import annotations

import glob
from collections.abc import Iterable, Iterator
from pathlib import Path

from dcclip_cli.errors import DcclipError

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp")


def find_images(given: Iterable[str], listed: Iterable[str] = ()) -> Iterator[Path]:
    """The files meant: named, in folders and below, or matching a glob; `-` stands for the lines `listed`.

    A named file need not exist or be a picture. Raises DcclipError for a folder without pictures, a glob without files.
    """
    for name in given:
        if name == "-":
            yield from find_images(line.rstrip("\r\n") for line in listed if line.strip() not in ("", "-"))
        elif _is_folder(name):
            yield from _not_empty(
                sorted(path for path in Path(name).rglob("*") if path.suffix.lower() in SUFFIXES and path.is_file()),
                f"{name} holds no pictures",
            )
        elif glob.has_magic(name) and not Path(name).exists():
            matching = (Path(path) for path in sorted(glob.glob(name, recursive=True)))
            yield from _not_empty([path for path in matching if path.is_file()], f"no file matches {name}")
        else:
            yield Path(name)


def _is_folder(name: str) -> bool:
    try:
        return Path(name).is_dir()
    except OSError:  # a name too long for any file: reading it will say so
        return False


def _not_empty(found: list[Path], otherwise: str) -> list[Path]:
    if not found:
        raise DcclipError(otherwise, f"pictures are files ending in {', '.join(SUFFIXES)}")
    return found
