"""Duplicate images: equal pixels, or the same image compressed, resized, cropped or watermarked."""

from __future__ import annotations

import tempfile
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import IO, TYPE_CHECKING, Annotated, Literal

import numpy as np
from pydantic import Field

from dcclip_cli.curation.dedup.image_similarity import SIDE, similar
from dcclip_cli.curation.dedup.tables import GlobalFilter

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection


class SameImage(GlobalFilter):
    """Merges pairs whose images have equal pixels, whatever their file format, into the first of them."""

    kind: Literal["same-image"] = "same-image"
    captions: Literal["merge", "drop"] = Field(
        "merge", description="Add the later pairs' captions to the first pair (merge), or drop them"
    )
    most_captions: int = Field(
        16, ge=1, description="Maximum captions per language after merging; placeholder images would collect many"
    )

    def apply(self, connection: DuckDBPyConnection) -> None:
        """`image-merged` if at least one caption was moved to the first pair, else `image-duplicate`."""
        connection.execute(_SAME)
        connection.execute(
            _MOVED if self.captions == "merge" else "CREATE OR REPLACE TABLE moved AS SELECT * FROM captions LIMIT 0",
            {"most": self.most_captions} if self.captions == "merge" else {},
        )
        connection.execute("INSERT INTO captions SELECT * FROM moved; " + _LEFT_BEHIND + _DROP_SAME)


_SAME = """
CREATE OR REPLACE TABLE same AS
    SELECT live_pairs.number, first FROM live_pairs
    JOIN (SELECT pixel_hash, min(number) AS first FROM live_pairs GROUP BY pixel_hash HAVING count(*) > 1)
        USING (pixel_hash)
    WHERE number > first
"""

# Captions that the first pair lacks, the earliest of equal ones, appended to its own.
_MOVED = """
CREATE OR REPLACE TABLE moved AS
    WITH taken AS (
        SELECT number AS first, language, count(*) AS had, max(place) AS last FROM captions
        SEMI JOIN same ON same.first = captions.number GROUP BY ALL
    ),
    fresh AS (
        SELECT same.first, language, text, text_hash, bands, origin, origin_place
        FROM live_captions JOIN same USING (number)
        ANTI JOIN (SELECT number AS first, language, text FROM live_captions) AS own USING (first, language, text)
        QUALIFY row_number() OVER (PARTITION BY same.first, language, text ORDER BY number, place) = 1
    )
    SELECT first AS number, language, coalesce(last, -1)::INTEGER + place::INTEGER AS place,
        text, text_hash, bands, origin, origin_place
    FROM (
        SELECT *, row_number() OVER (PARTITION BY first, language ORDER BY origin, origin_place) AS place FROM fresh
    ) LEFT JOIN taken USING (first, language)
    WHERE coalesce(had, 0) + place <= $most
"""

# Captions that were not moved, of pairs that gave others.
_LEFT_BEHIND = """
INSERT INTO caption_drops
    SELECT number, language, place, CASE WHEN had IS NULL THEN 'caption-many' ELSE 'caption-repeated' END,
        CASE WHEN had IS NULL THEN 'the pair with the same image has enough'
        ELSE 'the pair with the same image has it already' END
    FROM live_captions JOIN same USING (number)
    SEMI JOIN (SELECT origin AS number FROM moved) AS givers USING (number)
    ANTI JOIN (SELECT origin AS number, language, origin_place AS place FROM moved) AS gone
        USING (number, language, place)
    LEFT JOIN (SELECT DISTINCT number AS first, language, text, true AS had FROM captions) AS own
        USING (first, language, text);
"""

_DROP_SAME = """
INSERT INTO pair_drops
    SELECT same.number, CASE WHEN giver IS NULL THEN 'image-duplicate' ELSE 'image-merged' END,
        CASE WHEN one.file_hash = other.file_hash THEN 'the same image as ' ELSE 'the same pixels as ' END || one.key
    FROM same
    JOIN pairs AS one ON one.number = first
    JOIN pairs AS other ON other.number = same.number
    LEFT JOIN (SELECT DISTINCT origin AS giver FROM moved) ON giver = same.number
"""


class NearImage(GlobalFilter):
    """Drops near duplicates of an earlier image: recompressed, resized, slightly cropped or watermarked copies.

    Images with similar perceptual hashes are compared in colour by their thumbnails, so that clock faces or hearts of
    different colours are kept. A difference of a few pixels (a wink, the arms of two flags) looks like a watermark.
    """

    kind: Literal["near-image"] = "near-image"
    bits: Annotated[int, Field(ge=0, le=16)] = Field(
        12,
        description="Maximum number of differing bits, of 64, between perceptual hashes of images to compare",
    )

    def apply(self, connection: DuckDBPyConnection) -> None:
        """`image-near-duplicate`; every dropped image is similar to one that is kept."""
        find_near(connection, "live_pairs", "live_pairs", "thumbs", self.bits)
        connection.execute("""
            INSERT INTO pair_drops
                SELECT later, 'image-near-duplicate', 'shows the same as ' || key
                FROM near JOIN pairs ON pairs.number = earlier
        """)


_BAND_BITS = 16
_BAND_STARTS = range(0, 64 - _BAND_BITS + 1, 8)  # overlapping: one cropped drawing in a hundred needs it
_COMFORTABLE = 2_000_000  # images for which bands of 16 bits are selective enough; one bit is added with each doubling
_CROWD = 1000  # maximum images of a band that later ones are compared with; only huge clusters reach it
_TRIED = 16  # maximum nearest, and maximum earliest, candidates of an image that are compared in colour
_MAX_STRETCH = 1.2  # maximum ratio between the aspect ratios of near duplicates
_BLOCK = 4096  # comparisons planned at a time
_BATCH = 512  # comparisons made at a time: about 60 MB of arrays

# Part 0: the image as it is, and slightly cropped (crops are not compared with crops); part 1: its middle.
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
    """Fill the table `near` (earlier, later: numbers) with near duplicates, each with the first image that it repeats.

    `earlier` and `later` are tables with number, hashes, width and height; `thumbs` contains the thumbnails of both. If
    they are the same table, the image with the smaller number is the earlier one, and an image that is a duplicate is
    not compared with later ones, so every duplicate is similar to an image that is none. Numbers below 0 are never
    duplicates.
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
    found = bytearray(largest + 1)  # by number: 1 for a near duplicate of an earlier image
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
    """For every later image, in order, the earlier ones to compare it with, in order."""
    rows = connection.cursor().execute("SELECT later, earlier FROM near_chosen ORDER BY later, abs(earlier)")
    block: dict[int, deque[int]] = {}
    while batch := rows.fetchmany(_BLOCK):
        for later, earlier in batch:
            block.setdefault(later, deque()).append(earlier)
        if len(block) > 1:
            last = next(reversed(block))  # its rows may continue in the next batch
            rest = {last: block.pop(last)}
            yield block
            block = rest
    if block:
        yield block


def _decide_block(block: dict[int, deque[int]], found: bytearray, thumbnails: _Thumbnails) -> dict[int, int]:
    """The duplicates of a block, each with the image that it repeats. Decided images are removed from the block.

    In each round every image is compared with the first one left in its list; most need one round.
    """
    near: dict[int, int] = {}
    similar_to: dict[int, int] = {}
    while block:
        compared = [(rest[0], later) for later, rest in block.items() if rest and similar_to.get(later) != rest[0]]
        for (earlier, later), same in zip(compared, thumbnails.similar(compared), strict=True):
            if same:
                similar_to[later] = earlier
            else:
                block[later].popleft()
        for later in list(block):
            rest = block[later]
            while rest and rest[0] > 0 and rest[0] < len(found) and found[rest[0]]:
                rest.popleft()
            if rest and similar_to.get(later) == rest[0] and rest[0] not in block:
                near[later], found[later] = rest[0], 1
                del block[later]
            elif not rest:
                del block[later]
    return near


class _Thumbnails:
    """The thumbnails to be compared, in an unnamed file instead of memory."""

    def __init__(self, file: IO[bytes], connection: DuckDBPyConnection, thumbs: str) -> None:
        self._file = file
        numbers = [np.zeros(0, np.int64)]
        for batch in connection.sql(_WANTED.format(thumbs=thumbs)).to_arrow_reader(_BLOCK):
            numbers.append(batch["number"].to_numpy())
            self._file.write(b"".join(batch["thumb"].to_pylist()))
        self._numbers = np.concatenate(numbers)
        self._order = np.argsort(self._numbers)
        self._file.flush()

    def similar(self, pairs: list[tuple[int, int]]) -> list[bool]:
        """Which pairs of images, by number, show the same."""
        found: list[bool] = []
        for start in range(0, len(pairs), _BATCH):
            numbers = np.array(pairs[start : start + _BATCH], np.int64)
            found += similar(self._read(numbers[:, 0]), self._read(numbers[:, 1])).tolist()
        return found

    def _read(self, numbers: np.ndarray) -> np.ndarray:
        places = self._order[np.searchsorted(self._numbers, numbers, sorter=self._order)]
        every = np.memmap(self._file, np.uint8, "r", shape=(len(self._numbers), SIDE, SIDE, 3))
        return np.asarray(every[places])
