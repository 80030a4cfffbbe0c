"""Pairs in Hugging Face `datasets`: from the hub, or in a folder that `save_to_disk` wrote."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from dcclip_cli.curation.candidate import Candidate, Drop, Slice
from dcclip_cli.curation.sources.base import index_slices
from dcclip_cli.curation.sources.columns import ColumnOptions, Roles
from dcclip_cli.curation.sources.parquet_table import cells_of
from dcclip_cli.curation.sources.tables import Cells
from dcclip_cli.data.files.hub import load_hub
from dcclip_cli.data.files.reading import Folder
from dcclip_cli.data.pair import Pair

if TYPE_CHECKING:
    from datasets import Dataset

_ROWS = 16  # at a time: a row may hold an image of MAX_IMAGE_BYTES


class HubSource(ColumnOptions):
    """One split of a data set on the Hugging Face hub, or of one that `save_to_disk` left in a folder.

    No code of the data set's is ever run. Pictures are taken as the files they are, undecoded. From the hub the whole
    split is downloaded into the cache of `datasets` first.
    """

    kind: Literal["hub"] = "hub"
    path: str = Field(description="A name on the hub like ORG/NAME, or a folder like ./saved")
    config: str | None = Field(None, description="Which of the data set's configurations")
    split: str = Field("train", description="Which split")
    revision: str | None = Field(None, description="A commit, tag or branch on the hub; a commit never changes")

    def slices(self, size: int) -> list[Slice]:
        """Runs of `size` rows. Raises DcclipError where the data set, the split or a column is missing."""
        rows = self._open().num_rows
        self._roles()
        return index_slices(rows, size)

    def read(self, part: Mapping[str, Any]) -> Iterator[Candidate]:
        """Candidates named after their row, counted from 0 as `datasets` does."""
        data, roles = self._open().with_format("arrow"), self._roles()
        folder = Folder(self._files(), self.allow_outside)
        for at in range(part["first"], part["last"], _ROWS):
            for number, row in enumerate(_rows(data, at, min(at + _ROWS, part["last"])), start=at):
                if isinstance(row, Drop):
                    yield Candidate(Pair(str(number), b""), row)
                elif self.wanted(row):
                    yield self.candidate(str(number), row, roles, folder)

    def _open(self) -> Dataset:
        return load_hub(self.path, self.config, self.split, self.revision)

    def _roles(self) -> Roles:
        return self.roles(self._open().column_names, self.path)

    def _files(self) -> Path:
        """The folder that rows may name files in: a local data set's own, or where `datasets` keeps what it fetched."""
        from datasets import config

        return Path(self.path) if os.path.isdir(self.path) else Path(config.HF_DATASETS_CACHE)


def _rows(data: Dataset, first: int, last: int) -> Iterator[Cells]:
    import pyarrow as pa

    try:
        for batch in data[first:last].to_batches():
            yield from cells_of(batch)
    except (pa.ArrowException, OSError) as error:
        yield Drop("table-unreadable", f"rows {first} to {last - 1} can't be read: {str(error)[:200]}")
