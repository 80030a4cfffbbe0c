"""Duplicate captions: equal letters, or similar by MinHash and trigram Jaccard similarity."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar, Literal

import numpy as np
from pydantic import Field

from dcclip_cli.curation.dedup import GlobalFilter
from dcclip_cli.options import Removed

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection

# 8 bands of 4: texts of similarity 0.85 share a band in 99.8 % of cases, texts of similarity 0.4 in 19 %.
_PERMUTATIONS, _BANDS = 32, 8
_FACTORS = np.array([0x9E3779B97F4A7C15, 0xC2B2AE3D27D4EB4F, 0x165667B19E3779F9], np.uint64)  # odd: those of xxHash
_MIN_LETTERS = 12  # shorter captions are duplicates only if their letters are equal
_WORD = re.compile(r"[\u3400-\u9fff\uf900-\ufaff\U00020000-\U0003ffff]|[^\W\u3400-\u9fff\uf900-\ufaff]+")


def text_hash(caption: str, letters: str) -> int:
    """64 bits of the caption's `letters_of`; of the whole caption where it has none."""
    import xxhash

    return xxhash.xxh3_64_intdigest((letters or caption).encode())


def letters_of(caption: str) -> str:
    """Only the letters and digits, in NFKC and case-folded: equal for captions that differ in case or punctuation."""
    return "".join(filter(str.isalnum, unicodedata.normalize("NFKC", caption).casefold()))


def jaccard(one: str, other: str) -> float:
    """The Jaccard similarity of two captions' character trigrams, 0 to 1."""
    first, second = _grams(letters_of(one)), _grams(letters_of(other))
    return len(first & second) / len(first | second)


def replaces_a_word(one: str, other: str) -> bool:
    """Whether each caption has a word, or a Chinese character, that the other lacks: then their meanings differ.

    Words that are only added, or in a different order, do not count.
    """
    first, second = (Counter(_WORD.findall(unicodedata.normalize("NFKC", text).casefold())) for text in (one, other))
    return bool(first - second) and bool(second - first)


def bands_of(letters: Sequence[str]) -> np.ndarray:
    """Hashes of the bands of each caption's MinHash, uint64 (captions, 8): captions that share one are compared.

    `letters` are the captions' `letters_of`.
    """
    from rensa import RMinHash

    rows = RMinHash.digest_matrix_from_token_sets(list(map(_grams, letters)), _PERMUTATIONS, 1).to_rows()
    halves = np.array(rows, "<u4").reshape(-1, _PERMUTATIONS).view("<u8").reshape(len(letters), _BANDS, 2)
    first, second, third = _FACTORS
    return halves[..., 0] * first + halves[..., 1] * second + np.arange(_BANDS, dtype=np.uint64) * third  # mod 2**64


def sketches_of(letters: Sequence[str]) -> np.ndarray:
    """The number of each caption's trigrams and 512 bits, one set by each of them, uint64 (captions, 9).

    Two captions have at least as many trigrams that the other lacks as their sketches have different bits.
    """
    codes = np.frombuffer("".join(letters).encode("utf-32-le", "surrogatepass"), "<u4").astype(np.uint64)
    lengths = np.array([len(text) for text in letters], np.int64)
    caption = np.repeat(np.arange(len(letters)), lengths)
    first, second, third = _FACTORS
    hashed = (codes[:-2] * first + codes[1:-1] * second + codes[2:] * third) >> np.uint64(64 - 9)  # mod 2**64
    within = caption[:-2] == caption[2:]
    bits = np.zeros((len(letters), 1 << 9), bool)
    bits[caption[:-2][within], hashed[within]] = True
    words = np.packbits(bits, axis=1, bitorder="little").view("<u8")
    return np.hstack([np.maximum(lengths - 2, 0)[:, None].astype(np.uint64), words])


def _grams(letters: str) -> set[str]:
    return set(map("".join, zip(letters, letters[1:], letters[2:], strict=False))) or {letters}


class SameCaption(GlobalFilter):
    """Drops captions shared by many images: a caption of hundreds of images is boilerplate.

    Captions are duplicates if they differ only in case, width, punctuation and white space; or if both are long enough,
    at least `similarity` similar, and no word is replaced by another: a man on a horse is not a woman on a horse.
    """

    kind: Literal["same-caption"] = "same-caption"
    at_most: int = Field(
        100,
        ge=1,
        le=1_000_000_000,
        description="Maximum number of pairs that keep the same caption; the first ones keep it",
    )
    similarity: float | None = Field(
        0.85,
        gt=0.5,
        le=1,
        description="Character-trigram Jaccard similarity from which captions are duplicates; null: only equal letters",
    )
    removed: ClassVar = {"min_letters": Removed("use similarity", ignored=(12,))}

    def apply(self, connection: DuckDBPyConnection) -> None:
        """`caption-duplicate` if an earlier pair has exactly this caption, else `caption-near-duplicate`."""
        import pyarrow as pa

        connection.execute(_TEXTS)
        families: dict[tuple[str, int], int] = {}
        if self.similarity is not None:
            connection.execute(_TEXT_CANDIDATES, {"letters": _MIN_LETTERS})
            families = _find_families(connection, self.similarity)
        schema = pa.schema({"language": pa.string(), "text_hash": pa.uint64(), "family": pa.uint64()})
        rows = [dict(zip(schema.names, (*key, family), strict=True)) for key, family in families.items()]
        connection.register("families", pa.Table.from_pylist(rows, schema))
        connection.execute(_DROP_TEXTS, {"most": self.at_most})


def _find_families(connection: DuckDBPyConnection, similarity: float) -> dict[tuple[str, int], int]:
    """By language and text: the earliest similar text that is itself not assigned to another one."""
    families: dict[tuple[str, int], int] = {}
    differ = " + ".join(f"bit_count(xor(one.sketch[{word}], other.sketch[{word}]))" for word in range(2, 10))
    most = (1 - similarity) / (1 + similarity)  # trigrams that only one of them has, as a part of those of both
    rows = connection.cursor().execute(_COMPARED.format(differ=differ), {"most": most})
    while batch := rows.fetchmany(10_000):
        for language, earlier, later, text, other in batch:
            if (language, earlier) in families or (language, later) in families:
                continue
            if jaccard(text, other) < similarity or replaces_a_word(text, other):
                continue
            if min(len(letters_of(text)), len(letters_of(other))) >= _MIN_LETTERS:
                families[language, later] = earlier
    return families


# Each text once, with the first pair that has it.
_TEXTS = """
CREATE OR REPLACE TABLE texts AS
    SELECT language, text_hash, min(number) AS number, arg_min(text, (number, place)) AS text,
        arg_min(bands, (number, place)) AS bands, arg_min(sketch, (number, place)) AS sketch
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
    AND {differ} <= $most * (one.sketch[1] + other.sketch[1]) + 0.001
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
