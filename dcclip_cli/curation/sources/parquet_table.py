"""How are rows read out of a Parquet file, from anywhere in it?"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from dcclip_cli.curation.candidate import Drop, Slice
from dcclip_cli.curation.sources.tables import Cells, TableFile

if TYPE_CHECKING:
    import pyarrow as pa
    import pyarrow.parquet as pq

_ROWS_IN_A_BYTE = 10  # an image and a caption of their own take more than a byte, however well packed
_ROWS = 16  # at a time: a row may hold an image of MAX_IMAGE_BYTES


class ParquetTable(TableFile):
    """A Parquet file; its row groups are read one after the other, a few rows at a time."""

    def columns(self) -> list[str]:
        file = self._open()
        return [] if isinstance(file, Drop) else list(file.schema_arrow.names)

    def slices(self, size: int) -> Iterator[Slice]:
        """Small row groups are put together, big ones divided; an unreadable file is a part with one fault."""
        file = self._open()
        if isinstance(file, Drop):
            yield Slice({"groups": [0, 0], "skip": 0, "rows": 1, "number": 1}, 1)
            return
        counts = [file.metadata.row_group(group).num_rows for group in range(file.num_row_groups)]
        first, held, number = 0, 0, 1
        for group, count in enumerate(counts):
            held += count
            if held < size and group + 1 < len(counts):
                continue
            parts = max(1, round(held / size))
            bounds = [held * part // parts for part in range(parts + 1)]
            for start, end in pairwise(bounds):
                if end > start:
                    part = {"groups": [first, group + 1], "skip": start, "rows": end - start, "number": number + start}
                    yield Slice(part, end - start)
            first, held, number = group + 1, 0, number + held

    def rows(self, part: Mapping[str, Any]) -> Iterator[tuple[str, Cells]]:
        """A row group that breaks off gives the rows before the break and one fault; then the next one is read."""
        import pyarrow as pa

        file, number, skip, left = self._open(), part["number"], part["skip"], part["rows"]
        if isinstance(file, Drop):
            yield str(number), file
            return
        for group in range(*part["groups"]):
            rows = file.metadata.row_group(group).num_rows
            take, done = min(rows - skip, left), 0
            if take > 0:
                try:
                    for cells in _cells_of_group(file, group, skip, take):
                        yield str(number + done), cells
                        done += 1
                except (pa.ArrowException, OSError) as error:
                    what = f"{take - done} rows from here on can't be read: {str(error)[:200]}"
                    yield str(number + done), Drop("table-unreadable", what)
                number, left = number + take, left - take
            skip = max(0, skip - rows)

    def _open(self) -> pq.ParquetFile | Drop:
        import pyarrow as pa
        import pyarrow.parquet as pq

        try:
            file = pq.ParquetFile(self.path, memory_map=True, pre_buffer=False)
        except (pa.ArrowException, OSError) as error:
            return Drop("table-unreadable", f"{self.path.name} is not a Parquet file: {str(error)[:200]}")
        if file.metadata.num_rows > _ROWS_IN_A_BYTE * self.path.stat().st_size:
            return Drop("table-unreadable", f"{self.path.name} claims to have {file.metadata.num_rows:,} rows")
        return file


def _cells_of_group(file: pq.ParquetFile, group: int, skip: int, take: int) -> Iterator[Cells]:
    for batch in file.iter_batches(_ROWS, [group]):
        rest = batch.slice(skip, take)
        skip, take = max(0, skip - batch.num_rows), take - rest.num_rows
        yield from cells_of(rest)
        if not take:
            return


def cells_of(batch: pa.RecordBatch) -> Iterator[Cells]:
    """The rows of a batch; one that Python has no values for is a fault of its own."""
    try:
        yield from batch.to_pylist()
        return
    except (ValueError, OverflowError):  # a text that is no UTF-8, a date no calendar has: one row's fault, not all's
        pass
    for row in range(batch.num_rows):
        try:
            yield batch.slice(row, 1).to_pylist()[0]
        except (ValueError, OverflowError) as error:
            yield Drop("row-malformed", str(error)[:200])
