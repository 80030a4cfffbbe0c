"""Which captions say the same as those of other pictures?"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from dcclip_cli.curation.settle.tables import GlobalRule
from dcclip_cli.curation.settle.wording import letters_of, likeness, replaces_a_word

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection


class SameCaption(GlobalRule):
    """Drops captions that many pictures share: what is said of hundreds of pictures is boilerplate.

    Captions count as one if they differ by case, width, punctuation and white space only, or by `similarity` where
    both are long enough and no word stands in the place of another: a man on a horse is not a woman on a horse.
    """

    kind: Literal["same-caption"] = "same-caption"
    at_most: int = Field(100, ge=1, description="Pairs that may share a caption; the first ones keep it")
    similarity: float | None = Field(
        0.85, gt=0.5, le=1, description="Jaccard measure of runs of three letters from which captions are one"
    )
    min_letters: int = Field(12, ge=3, description="Shorter captions are one only if they are equal")

    def apply(self, connection: DuckDBPyConnection) -> None:
        """`caption-duplicate` where the very same caption came before, else `caption-near-duplicate`."""
        connection.execute(_TEXTS)
        connection.execute("CREATE OR REPLACE TABLE families (language VARCHAR, text_hash UBIGINT, family UBIGINT)")
        if self.similarity is not None:
            connection.execute(_TEXT_CANDIDATES, {"letters": self.min_letters})
            self._find_families(connection, self.similarity)
        connection.execute(_DROP_TEXTS, {"most": self.at_most})

    def _find_families(self, connection: DuckDBPyConnection, similarity: float) -> None:
        """A text belongs to the earliest text that it is like and that belongs to none."""
        rows = connection.cursor().execute(_COMPARED)
        member: set[tuple[str, int]] = set()
        found: list[tuple[Any, ...]] = []
        while batch := rows.fetchmany(10_000):
            for language, hash_, other_hash, text, other in batch:
                if (language, hash_) in member or (language, other_hash) in member:
                    continue
                if likeness(text, other) < similarity or replaces_a_word(text, other):
                    continue
                if min(len(letters_of(text)), len(letters_of(other))) >= self.min_letters:
                    member.add((language, other_hash))
                    found.append((language, other_hash, hash_))
        for start in range(0, len(found), 10_000):
            part = found[start : start + 10_000]
            columns = dict(zip(("languages", "texts", "families"), map(list, zip(*part, strict=True)), strict=True))
            connection.execute(
                "INSERT INTO families SELECT unnest($languages), unnest($texts), unnest($families::UBIGINT[])", columns
            )


# Each text once, with the pair that had it first.
_TEXTS = """
CREATE OR REPLACE TABLE texts AS
    SELECT language, text_hash, min(number) AS number, arg_min(text, (number, place)) AS text,
        arg_min(bands, (number, place)) AS bands
    FROM live_captions GROUP BY language, text_hash
"""

_TEXT_CANDIDATES = """
CREATE OR REPLACE TABLE text_candidates AS
    WITH keys AS (
        SELECT language, number, text_hash, unnest(bands) AS band FROM texts WHERE length(text) >= $letters
    ),
    earlier AS (
        SELECT * FROM keys
        QUALIFY row_number() OVER (PARTITION BY language, band ORDER BY number, text_hash) <= 200
    )
    SELECT * FROM (
        SELECT language, earlier.number AS earlier_number, earlier.text_hash AS earlier,
            keys.number AS later_number, keys.text_hash AS later, count(*) AS shared
        FROM earlier JOIN keys USING (language, band)
        WHERE (earlier.number, earlier.text_hash) < (keys.number, keys.text_hash)
        GROUP BY ALL
    )
    QUALIFY row_number() OVER (PARTITION BY language, later ORDER BY shared DESC, earlier_number, earlier) <= 16
        OR row_number() OVER (PARTITION BY language, later ORDER BY earlier_number, earlier) <= 16
"""

_COMPARED = """
SELECT language, earlier, later, one.text, other.text
FROM text_candidates
JOIN texts AS one USING (language) JOIN texts AS other USING (language)
WHERE one.text_hash = earlier AND other.text_hash = later
ORDER BY later_number, later, language, earlier_number, earlier
"""

_DROP_TEXTS = """
INSERT INTO caption_drops
    SELECT counted.number, language, place,
        CASE WHEN same_before > 0 THEN 'caption-duplicate' ELSE 'caption-near-duplicate' END,
        before || CASE WHEN before = 1 THEN ' earlier pair has' ELSE ' earlier pairs have' END || ' it, the first is '
            || pairs.key
    FROM (
        SELECT number, language, place, text, first,
            count(*) OVER (family ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING) AS before,
            count(*) OVER (
                PARTITION BY language, family, text ORDER BY number, place
                ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING
            ) AS same_before,
        FROM (
            SELECT number, language, place, text, coalesce(family, text_hash) AS family,
                min(number) OVER (PARTITION BY language, coalesce(family, text_hash)) AS first
            FROM live_captions LEFT JOIN families USING (language, text_hash)
        )
        WINDOW family AS (PARTITION BY language, family ORDER BY number, place)
    ) AS counted
    JOIN pairs ON pairs.number = first
    WHERE before >= $most
"""
