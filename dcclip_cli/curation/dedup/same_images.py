"""Filters of duplicate images: equal pixels, and near duplicates."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field

from dcclip_cli.curation.dedup import GlobalFilter
from dcclip_cli.data.near_duplicates import HASH_BITS, find_near

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection

_MOST_CAPTIONS = 16  # per language after merging pairs


class SameImage(GlobalFilter):
    """Merges pairs whose images have identical pixels into the first of them, whatever their file
    format.
    """

    kind: Literal["same-image"] = "same-image"

    def apply(self, connection: DuckDBPyConnection) -> None:
        """`image-merged` if at least one caption was moved to the first pair, else
        `image-duplicate`.
        """
        connection.execute(_SAME)
        connection.execute(_MOVED, {"most": _MOST_CAPTIONS})
        connection.execute("INSERT INTO captions FROM moved; " + _LEFT_BEHIND + _DROP_SAME)


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
        SELECT same.first, language, text, text_hash, bands, sketch, origin, origin_place
        FROM live_captions JOIN same USING (number)
        ANTI JOIN (SELECT number AS first, language, text FROM live_captions) AS own USING (first, language, text)
        QUALIFY row_number() OVER (PARTITION BY same.first, language, text ORDER BY number, place) = 1
    )
    SELECT first AS number, language, coalesce(last, -1)::INTEGER + place::INTEGER AS place,
        text, text_hash, bands, sketch, origin, origin_place
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
    """Drops near duplicates of an earlier image: recompressed, resized, slightly cropped or
    watermarked copies.

    Images with similar hashes are compared by colour thumbnails, so that different clock faces and
    hearts of different colours are kept. Small or faint differences (a wink, a coat of arms on a
    flag) count as watermarks.
    """

    kind: Literal["near-image"] = "near-image"
    bits: int = Field(
        HASH_BITS,
        ge=0,
        le=16,
        description="Maximum hash difference, in bits out of 64, at which images are compared",
    )

    def apply(self, connection: DuckDBPyConnection) -> None:
        """`image-near-duplicate`; every dropped image is similar to one that is kept."""
        find_near(connection, "live_pairs", "live_pairs", "thumbs", self.bits)
        connection.execute("""
            INSERT INTO pair_drops
                SELECT later, 'image-near-duplicate', 'shows the same as ' || key
                FROM near JOIN pairs ON pairs.number = earlier
        """)
