"""Duplicate captions: equal letters, or similar by MinHash and trigram Jaccard similarity."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

import numpy as np
from pydantic import Field

from dcclip_cli.curation.dedup import GlobalFilter

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection

# 8 bands of 4: texts of similarity 0.85 share a band in 99.8 % of cases, texts of similarity 0.4
# in 19 %.
_PERMUTATIONS = 32
_BANDS = 8
_FACTORS = np.array(
    [0x9E3779B97F4A7C15, 0xC2B2AE3D27D4EB4F, 0x165667B19E3779F9], np.uint64
)  # odd: those of xxHash
_TEXTS_AT_A_TIME = 50_000  # of which candidates are counted in memory, some hundred of each
_MIN_LETTERS = 12  # shorter captions are duplicates only if their letters are equal
_WORD = re.compile(
    r"[\u3400-\u9fff\uf900-\ufaff\U00020000-\U0003ffff]|[^\W\u3400-\u9fff\uf900-\ufaff]+"
)


def text_hash(caption: str, letters: str) -> int:
    """64 bits of the caption's `letters_of`; of the whole caption where it has none."""
    import xxhash

    return xxhash.xxh3_64_intdigest((letters or caption).encode())


def letters_of(caption: str) -> str:
    """Only the letters and digits, in NFKC and case-folded: equal for captions that differ in case
    or punctuation.
    """
    return "".join(filter(str.isalnum, unicodedata.normalize("NFKC", caption).casefold()))


def jaccard(caption: str, other_caption: str) -> float:
    """The Jaccard similarity of two captions' character trigrams, 0 to 1."""
    first = set(_grams(letters_of(caption)))
    second = set(_grams(letters_of(other_caption)))
    return len(first & second) / len(first | second)


def replaces_a_word(caption: str, other_caption: str) -> bool:
    """Whether each caption has a word or Chinese character that the other lacks; order does not
    count.
    """
    first, second = (
        Counter(_WORD.findall(unicodedata.normalize("NFKC", text).casefold()))
        for text in (caption, other_caption)
    )
    return bool(first - second) and bool(second - first)


def bands_of(letters: Sequence[str]) -> np.ndarray:
    """MinHash bands of captions by their `letters_of`, uint64 (captions, 8): those that share one
    are compared.
    """
    from rensa import RMinHash

    rows = RMinHash.digest_matrix_from_token_sets(
        list(map(_grams, letters)), _PERMUTATIONS, 1
    ).to_rows()
    halves = (
        np.array(rows, "<u4")
        .reshape(-1, _PERMUTATIONS)
        .view("<u8")
        .reshape(len(letters), _BANDS, 2)
    )
    first, second, third = _FACTORS
    return (
        halves[..., 0] * first
        + halves[..., 1] * second
        + np.arange(_BANDS, dtype=np.uint64) * third
    )  # mod 2**64


def sketches_of(letters: Sequence[str]) -> np.ndarray:
    """The number of each caption's trigrams and 512 bits, one set by each of them, uint64
    (captions, 9).

    Two captions have at least as many trigrams that the other lacks as their sketches have
    different bits.
    """
    codes = np.frombuffer("".join(letters).encode("utf-32-le", "surrogatepass"), "<u4").astype(
        np.uint64
    )
    lengths = np.array([len(text) for text in letters], np.int64)
    caption = np.repeat(np.arange(len(letters)), lengths)
    first, second, third = _FACTORS
    hashed = (codes[:-2] * first + codes[1:-1] * second + codes[2:] * third) >> np.uint64(
        64 - 9
    )  # mod 2**64
    within = caption[:-2] == caption[2:]
    bits = np.zeros((len(letters), 1 << 9), bool)
    bits[caption[:-2][within], hashed[within]] = True
    words = np.packbits(bits, axis=1, bitorder="little").view("<u8")
    return np.hstack([np.maximum(lengths - 2, 0)[:, None].astype(np.uint64), words])


def _grams(letters: str) -> list[str]:
    return list(map("".join, zip(letters, letters[1:], letters[2:], strict=False))) or [letters]


class SameCaption(GlobalFilter):
    """Drops captions shared by many images: a caption of hundreds of images is boilerplate.

    Captions are duplicates if they differ only in case, width, punctuation and white space. Long
    captions are also duplicates if their similarity is at least `similarity` and no word is
    replaced: a man on a horse is not a woman on a horse.
    """

    kind: Literal["same-caption"] = "same-caption"
    at_most: int = Field(
        100,
        ge=1,
        le=1_000_000_000,
        description="Maximum pairs with the same caption; later pairs lose the caption",
    )
    similarity: float | None = Field(
        0.85,
        gt=0.5,
        le=1,
        description="Minimum character-trigram Jaccard similarity of duplicates; null: only "
        "captions with identical "
        "letters",
    )

    def apply(self, connection: DuckDBPyConnection) -> None:
        """`caption-duplicate` if an earlier pair has exactly this caption, else
        `caption-near-duplicate`.
        """
        connection.execute(_TEXTS)
        families: dict[
            int, int
        ] = {}  # by a text's id: that of the earliest similar text that is itself in no family
        if self.similarity is not None:
            connection.execute(_TEXT_KEYS, {"letters": _MIN_LETTERS})
            [(count,)] = connection.execute("SELECT count(*) FROM texts").fetchall()
            step = max(_TEXTS_AT_A_TIME, count // 100)  # all keys are read for each step
            for start in range(1, count + 1, step):
                connection.execute(_TEXT_CANDIDATES, {"start": start, "end": start + step})
            differ = " + ".join(
                f"bit_count(xor(one.sketch[{word}], other.sketch[{word}]))" for word in range(2, 10)
            )
            # Trigrams that only one of two texts has, as a part of those of both.
            share = (1 - self.similarity) / (1 + self.similarity)
            rows = connection.cursor().execute(_COMPARED.format(differ=differ), {"most": share})
            while batch := rows.fetchmany(10_000):
                for earlier, later, *texts in batch:
                    if (
                        earlier in families
                        or later in families
                        or jaccard(*texts) < self.similarity
                    ):
                        continue
                    shortest = min(len(letters_of(text)) for text in texts)
                    if shortest >= _MIN_LETTERS and not replaces_a_word(*texts):
                        families[later] = earlier
        values = {"most": self.at_most, "ids": list(families), "firsts": list(families.values())}
        connection.execute(_DROP_TEXTS, values)


# Each text once, with the first pair that has it; ids are in the order of languages, then of
# pairs.
_TEXTS = """
CREATE OR REPLACE TABLE texts AS
    SELECT id, captions.* FROM captions JOIN (
        SELECT *, row_number() OVER (ORDER BY language, number, text_hash) AS id FROM (
            SELECT language, text_hash, min(number) AS number, arg_min(place, (number, place)) AS place
            FROM live_captions GROUP BY language, text_hash
        )
    ) USING (language, number, place)
"""

_TEXT_KEYS = """
CREATE OR REPLACE TABLE text_candidates (earlier BIGINT, later BIGINT);
CREATE OR REPLACE TABLE text_keys AS
    SELECT language, band, id, row_number() OVER (PARTITION BY language, band ORDER BY id) <= 200 AS early
    FROM (SELECT language, id, unnest(bands) AS band FROM texts WHERE length(text) >= $letters)
    QUALIFY count(*) OVER (PARTITION BY language, band) > 1
"""

_TEXT_CANDIDATES = """
INSERT INTO text_candidates
    SELECT earlier, later FROM (
        SELECT earlier.id AS earlier, keys.id AS later, count(*) AS shared
        FROM text_keys AS earlier
        JOIN (SELECT * FROM text_keys WHERE id >= $start AND id < $end) AS keys USING (language, band)
        WHERE earlier.early AND earlier.id < keys.id
        GROUP BY ALL
    )
    QUALIFY row_number() OVER (PARTITION BY later ORDER BY shared DESC, earlier) <= 16
        OR row_number() OVER (PARTITION BY later ORDER BY earlier) <= 16
"""

_COMPARED = """
SELECT earlier, later, one.text, other.text
FROM text_candidates JOIN texts AS one ON one.id = earlier JOIN texts AS other ON other.id = later
WHERE {differ} <= $most * (one.sketch[1] + other.sketch[1]) + 0.001
ORDER BY later, earlier
"""

_DROP_TEXTS = """
INSERT INTO caption_drops
    SELECT counted.number, language, place,
        CASE WHEN same_before > 0 THEN 'caption-duplicate' ELSE 'caption-near-duplicate' END,
        before || CASE WHEN before = 1 THEN ' earlier pair has' ELSE ' earlier pairs have' END || ' it, the first is '
            || pairs.key
    FROM (
        SELECT number, language, place, text, first,
            dense_rank() OVER (PARTITION BY language, family ORDER BY number) - 1 AS before,
            dense_rank() OVER (PARTITION BY language, family, text ORDER BY number) - 1 AS same_before,
        FROM (
            SELECT number, language, place, text, coalesce(families.first, id) AS family,
                min(number) OVER (PARTITION BY coalesce(families.first, id)) AS first
            FROM live_captions JOIN (SELECT id, language, text_hash FROM texts) USING (language, text_hash)
            LEFT JOIN (SELECT unnest($ids::BIGINT[]) AS id, unnest($firsts::BIGINT[]) AS first) AS families USING (id)
        )
    ) AS counted
    JOIN pairs ON pairs.number = first
    WHERE before >= $most
"""
