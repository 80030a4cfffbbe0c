"""Which files does a tar hold, and where? Told from its headers alone, of broken and hostile tars too."""

from __future__ import annotations

import os
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO, NamedTuple, cast

from dcclip_cli.data.files.fault import Drop

_MAX_HEADER_BYTES = 1_000_000  # of an extended header; a long name needs a few hundred


class Member(NamedTuple):
    """A file in a tar: where its bytes stand, and why they can't be had."""

    name: str
    offset: int
    size: int
    fault: Drop | None = None


def members(file: Path) -> Iterator[Member]:
    """The files and links in a tar, in order; where it breaks off, the last one says so."""
    size = os.path.getsize(file)
    at = 0  # behind the last member that could be read
    with file.open("rb") as stream:
        try:
            with tarfile.open(fileobj=cast(IO[bytes], _Bounded(stream)), mode="r:") as archive:
                while (member := archive.next()) is not None:
                    archive.members.clear()  # type: ignore[attr-defined]  # it keeps every header
                    at = archive.offset
                    if member.offset_data + (member.size if member.isreg() else 0) > size:
                        yield Member(member.name, member.offset_data, member.size, _cut(size))
                        return
                    if member.issym() or member.islnk():
                        fault = Drop("image-outside", f"a link to {member.linkname[:200]!r}; links are not followed")
                        yield Member(member.name, member.offset_data, 0, fault)
                    elif member.isreg() and not member.issparse():
                        yield Member(member.name, member.offset_data, member.size)
        # What tarfile lets through when a header holds nonsense. RecursionError: long names upon long names.
        except (tarfile.TarError, EOFError, OSError, ValueError, OverflowError, RecursionError) as error:
            what = f"broken after {at:,} bytes: {error}" if at else f"not a tar file: {error}"
            yield Member("", at, 0, Drop("tar-unreadable", what))
            return
        # tarfile takes a header that it can't read for the end.
        stream.seek(at)
        block = stream.read(tarfile.BLOCKSIZE)
        if len(block) < tarfile.BLOCKSIZE:
            yield Member("", at, 0, _cut(size))
        elif block.strip(b"\0"):
            yield Member("", at, 0, Drop("tar-unreadable", f"no header where one should be, at byte {at:,}"))


def _cut(size: int) -> Drop:
    return Drop("tar-cut", f"the file ends after {size:,} bytes, in the midst of the tar")


class _Bounded:
    """A file whose reader is never asked for more than a header's worth: sizes in a hostile tar are lies."""

    def __init__(self, stream: IO[bytes]) -> None:
        self._stream = stream
        self.seek, self.tell = stream.seek, stream.tell

    def read(self, size: int = -1) -> bytes:
        if not 0 <= size <= _MAX_HEADER_BYTES:
            raise tarfile.ReadError(f"a header of {size:,} bytes")
        return self._stream.read(size)
