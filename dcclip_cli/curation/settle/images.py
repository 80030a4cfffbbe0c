"""Which pictures are there twice, as they are or a little changed?"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from dcclip_cli.curation.settle.near import find_near
from dcclip_cli.curation.settle.tables import GlobalRule

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection


class SameImage(GlobalRule):
    """Makes one pair of those whose pictures are the same, pixel for pixel, whatever the file format."""

    kind: Literal["same-image"] = "same-image"
    captions: Literal["merge", "drop"] = Field("merge", description="What becomes of the captions of the later pairs")
    most_captions: int = Field(
        16, ge=1, description="Captions that a pair may have in one language after merging; a placeholder has many"
    )

    def apply(self, connection: DuckDBPyConnection) -> None:
        """`image-merged` where at least one caption went to the first pair, else `image-duplicate`."""
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

# Captions that the first pair lacks, the earliest of equal ones, placed after its own.
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

# Of pairs that gave captions, those that did not move.
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


class NearImage(GlobalRule):
    """Drops pictures that show the same as an earlier one: compressed again, resized, slightly cropped, marked.

    The thumbnails of pictures whose hashes are near are compared in colour, so that clock faces or hearts of different
    colours stay. A picture that differs by a few pixels only (a wink, the arms of two flags) can't be told from a mark.
    """

    kind: Literal["near-image"] = "near-image"
    bits: Annotated[int, Field(ge=0, le=16)] = Field(
        12, description="Of 64 bits of the perceptual hash, how many may differ for pictures to be compared in colour"
    )

    def apply(self, connection: DuckDBPyConnection) -> None:
        """`image-near-duplicate`: every picture dropped is like one that stays."""
        find_near(connection, "live_pairs", "live_pairs", "thumbs", self.bits)
        connection.execute("""
            INSERT INTO pair_drops
                SELECT later, 'image-near-duplicate', 'shows the same as ' || key
                FROM near JOIN pairs ON pairs.number = earlier
        """)
