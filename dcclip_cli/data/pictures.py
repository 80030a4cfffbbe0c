"""Pictures without captions, for the image tower alone: a folder, a Parquet file, tars."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from dcclip_cli.data.pair import Language, Pair
from dcclip_cli.data.table import IMAGE_SUFFIXES, PairTable, ParquetPairs, TarPairs
from dcclip_cli.errors import DcclipError


class Pictures(PairTable):
    """The pictures of a table; captions that it may have are left out."""

    has_bare_pictures = True

    def __init__(self, table: PairTable) -> None:
        self.path, self._table = table.path, table

    def __len__(self) -> int:
        return len(self._table)

    def __getitem__(self, index: int) -> Pair:
        pair = self._table[index]
        return Pair(pair.key, pair.image, meta=pair.meta)

    def captions(self, language: Language) -> list[tuple[str, ...]]:
        return [()] * len(self)

    @property
    def files(self) -> list[Path]:
        return self._table.files

    def place(self, index: int) -> tuple[int, int]:
        return self._table.place(index)


class PictureFolder(PairTable):
    """The JPEG, PNG and WebP files in a folder and below it, by name."""

    has_bare_pictures = True

    def __init__(self, path: Path, files: Sequence[Path]) -> None:
        self.path, self._files = path, list(files)

    def __len__(self) -> int:
        return len(self._files)

    def __getitem__(self, index: int) -> Pair:
        file = self._files[index]
        return Pair(str(file.relative_to(self.path)), file.read_bytes())

    def captions(self, language: Language) -> list[tuple[str, ...]]:
        return [()] * len(self)

    @property
    def files(self) -> list[Path]:
        return self._files

    def place(self, index: int) -> tuple[int, int]:
        return index, 0


def open_pictures(path: str | Path) -> PairTable:
    """The pictures at a path. Raises DcclipError where there are none."""
    path = Path(path)
    if not path.exists():
        raise DcclipError(f"{path} does not exist", "check the path; in a recipe it is relative to the recipe's folder")
    if path.suffix == ".parquet":
        table: PairTable = Pictures(ParquetPairs(path))
    elif path.suffix == ".tar":
        table = Pictures(TarPairs(path, [path], bare=True))
    elif path.is_dir() and (shards := sorted(path.glob("*.tar"))):
        table = Pictures(TarPairs(path, shards, bare=True))
    else:
        files = path.rglob("*") if path.is_dir() else ()
        table = PictureFolder(
            path, sorted(file for file in files if file.suffix.lower() in IMAGE_SUFFIXES and file.is_file())
        )
    if not len(table):
        raise DcclipError(
            f"{path} holds no pictures", "name a folder of JPEG, PNG or WebP files, a .parquet or .tar file"
        )
    return table
