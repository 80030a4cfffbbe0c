"""Which pictures of one table show the same as an earlier picture of another?"""

from __future__ import annotations

import tempfile
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import IO, TYPE_CHECKING

import numpy as np

from dcclip_cli.curation.settle.likeness import SIDE, alike

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection

_BAND_BITS = 16
_BAND_STARTS = range(0, 64 - _BAND_BITS + 1, 8)  # overlapping: one cropped drawing in a hundred needs it
_COMFORTABLE = 2_000_000  # pictures that bands of 16 bits spread well enough; with each doubling a bit is added
_CROWD = 1000  # first pictures of a band that later ones are compared with: all of it but in a huge heap of lookalikes
_TRIED = 16  # of the pictures near enough by hash, the nearest and the earliest that are compared in colour
_MAX_STRETCH = 1.2  # between the aspect ratios of two pictures that show the same
_BLOCK = 4096  # comparisons planned at a time
_BATCH = 512  # comparisons made at a time: about 60 MB of arrays

# A picture as it is (part 0) and slightly cropped (part 0 too, but never cropped against cropped); its middle (part 1).
_KEYS = """
CREATE OR REPLACE TABLE near_keys_{side} AS
    SELECT number, kind = 4 AS part, kind = 1 AS whole, ln(width / height) AS aspect, hashes[kind] AS hash
    FROM (SELECT number, hashes, width, height, unnest([1, 2, 3, 4]) AS kind FROM {table})
"""

_BAND = """
INSERT INTO near_candidates
    SELECT earlier.number, later.number, min(bit_count(xor(earlier.hash, later.hash)))
    FROM (
        SELECT *, (hash >> {shift}) & {mask} AS band FROM near_keys_earlier
        QUALIFY row_number() OVER (PARTITION BY part, band ORDER BY number, whole DESC, hash) <= {crowd}
    ) AS earlier
    JOIN (SELECT *, (hash >> {shift}) & {mask} AS band FROM near_keys_later) AS later USING (part, band)
    WHERE earlier.number < later.number AND (part OR earlier.whole OR later.whole)
        AND abs(earlier.aspect - later.aspect) <= {stretch}
        AND bit_count(xor(earlier.hash, later.hash)) <= {bits}
    GROUP BY ALL
"""

_CHOSEN = """
CREATE OR REPLACE TABLE near_chosen AS
    SELECT earlier, later FROM (SELECT earlier, later, min(bits) AS bits FROM near_candidates GROUP BY earlier, later)
    QUALIFY row_number() OVER (PARTITION BY later ORDER BY bits, earlier) <= {tried}
        OR row_number() OVER (PARTITION BY later ORDER BY earlier) <= {tried};
CREATE OR REPLACE TABLE near (earlier BIGINT, later BIGINT);
"""

_WANTED = """
SELECT number, thumb FROM {thumbs} SEMI JOIN (SELECT unnest([earlier, later]) AS number FROM near_chosen) USING (number)
"""


def find_near(connection: DuckDBPyConnection, earlier: str, later: str, thumbs: str, bits: int) -> None:
    """Fill the table `near` (earlier, later: numbers) with pictures and the first picture that each shows the same as.

    `earlier` and `later` are tables with number, hashes, width and height, `thumbs` has the thumbnails of both. Where
    they are the same table, of two pictures the one with the smaller number is the earlier, and a picture found has no
    part in finding others, so that every one found is like one that is not. Numbers below 0 are never found.
    """
    connection.execute(_KEYS.format(side="earlier", table=earlier))
    connection.execute(_KEYS.format(side="later", table=later))
    connection.execute("CREATE OR REPLACE TABLE near_candidates (earlier BIGINT, later BIGINT, bits TINYINT)")
    [(number,)] = connection.execute(f"SELECT count(*) FROM {later}").fetchall()
    width = _BAND_BITS + max(0, (number // _COMFORTABLE).bit_length())
    for start in _BAND_STARTS:
        statement = _BAND.format(
            shift=min(start, 64 - width),
            mask=(1 << width) - 1,
            crowd=_CROWD,
            stretch=float(np.log(_MAX_STRETCH)),
            bits=bits,
        )
        connection.execute(statement)
    connection.execute(_CHOSEN.format(tried=_TRIED))
    _decide(connection, thumbs)


def _decide(connection: DuckDBPyConnection, thumbs: str) -> None:
    [(largest,)] = connection.execute("SELECT coalesce(max(later), 0) FROM near_chosen").fetchall()
    found = bytearray(largest + 1)  # by number: 1 for a picture that shows the same as an earlier one
    [(folder,)] = connection.execute("SELECT current_setting('temp_directory')").fetchall()
    Path(folder).mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=folder) as file:
        thumbnails = _Thumbnails(file, connection, thumbs)
        for block in _blocks(connection):
            near = _decide_block(block, found, thumbnails)
            if near:
                numbers = {"earlier": list(near.values()), "later": list(near)}
                connection.execute("INSERT INTO near SELECT unnest($earlier), unnest($later)", numbers)


def _blocks(connection: DuckDBPyConnection) -> Iterator[dict[int, deque[int]]]:
    """For every later picture, in order, the earlier ones to compare it with, first things first."""
    rows = connection.cursor().execute("SELECT later, earlier FROM near_chosen ORDER BY later, abs(earlier)")
    block: dict[int, deque[int]] = {}
    while batch := rows.fetchmany(_BLOCK):
        for later, earlier in batch:
            block.setdefault(later, deque()).append(earlier)
        if len(block) > 1:
            last = next(reversed(block))  # its row may go on in the next batch
            rest = {last: block.pop(last)}
            yield block
            block = rest
    if block:
        yield block


def _decide_block(block: dict[int, deque[int]], found: bytearray, thumbnails: _Thumbnails) -> dict[int, int]:
    """The pictures of a block that are found, each with the earlier picture; emptied of what is decided.

    In each round every picture is compared with the first one left on its list, which makes one round for most.
    """
    near: dict[int, int] = {}
    alike_to: dict[int, int] = {}
    while block:
        asked = [(rest[0], later) for later, rest in block.items() if rest and alike_to.get(later) != rest[0]]
        for (earlier, later), answer in zip(asked, thumbnails.alike(asked), strict=True):
            if answer:
                alike_to[later] = earlier
            else:
                block[later].popleft()
        for later in list(block):
            rest = block[later]
            while rest and rest[0] > 0 and rest[0] < len(found) and found[rest[0]]:
                rest.popleft()
            if rest and alike_to.get(later) == rest[0] and rest[0] not in block:
                near[later], found[later] = rest[0], 1
                del block[later]
            elif not rest:
                del block[later]
    return near


class _Thumbnails:
    """The thumbnails to be compared, in a file without a name, so that they take no memory."""

    def __init__(self, file: IO[bytes], connection: DuckDBPyConnection, thumbs: str) -> None:
        self._file = file
        numbers = [np.zeros(0, np.int64)]
        for batch in connection.sql(_WANTED.format(thumbs=thumbs)).to_arrow_reader(_BLOCK):
            numbers.append(batch["number"].to_numpy())
            self._file.write(b"".join(batch["thumb"].to_pylist()))
        self._numbers = np.concatenate(numbers)
        self._order = np.argsort(self._numbers)
        self._file.flush()

    def alike(self, pairs: list[tuple[int, int]]) -> list[bool]:
        """Which pairs of pictures, by number, show the same."""
        answers: list[bool] = []
        for start in range(0, len(pairs), _BATCH):
            numbers = np.array(pairs[start : start + _BATCH], np.int64)
            answers += alike(self._read(numbers[:, 0]), self._read(numbers[:, 1])).tolist()
        return answers

    def _read(self, numbers: np.ndarray) -> np.ndarray:
        places = self._order[np.searchsorted(self._numbers, numbers, sorter=self._order)]
        every = np.memmap(self._file, np.uint8, "r", shape=(len(self._numbers), SIDE, SIDE, 3))
        return np.asarray(every[places])
