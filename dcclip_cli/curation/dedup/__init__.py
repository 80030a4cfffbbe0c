"""Deduplication and decontamination over all pairs at once: the DuckDB tables, and the base class
of filters on them.

`pairs` and `captions` never lose a row: a filter adds rows to `pair_drops` and `caption_drops`,
and reads what is left from `live_pairs` and `live_captions`. A filter reads only these views and
adds a pair or caption once, so each has one reason. A pair's `number` is its position in the order
of keys, from 1.

| table or view   | columns                                                                                          |
|-----------------|--------------------------------------------------------------------------------------------------|
| `pairs`         | number BIGINT, key, source, file_hash BLOB, pixel_hash BLOB, hashes UBIGINT[], width, height INT |
| `captions`      | number, language ('zh', 'en'), place INT, text, text_hash UBIGINT, bands UBIGINT[], sketch       |
|                 | UBIGINT[], origin BIGINT, origin_place INT (the pair and place that it had before merging)       |
| `scores`        | number, name, language (NULL: of the whole pair), place INT (NULL: of the whole pair), value     |
| `pair_drops`    | number, reason, detail                                                                           |
| `caption_drops` | number, language, place, reason, detail                                                          |
| `compared`      | path, images BIGINT, unreadable BIGINT, first_unreadable: of images to compare pairs with        |
| `live_pairs`    | the rows of `pairs` without a drop                                                               |
| `live_captions` | the rows of `captions` without a drop, of live pairs                                             |
| `thumbs`        | number, thumb BLOB; stays in the files, where only thumbnails that are compared are read         |

Score files have the columns `key`, `name`, `language`, `place`, `value`; `place` counts from 0
within the captions of one language, in the order that the pair had when it was scored. A score
belongs to the caption whose `(origin, language, origin_place)` is its `(number, language, place)`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from dcclip_cli.core.options import Options
from dcclip_cli.data.pair import LANGUAGES, Language

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection


class GlobalFilter(Options, ABC):
    """A filter over all pairs at once.

    Its result must not depend on the number of threads: order every choice by `number`.
    """

    @abstractmethod
    def apply(self, connection: DuckDBPyConnection) -> None:
        """Add this filter's drops to the tables. Pairs left without captions are dropped
        afterwards.
        """


_TABLES = """
CREATE TABLE pair_drops (number BIGINT, reason VARCHAR, detail VARCHAR);
CREATE TABLE caption_drops (number BIGINT, language VARCHAR, place INTEGER, reason VARCHAR, detail VARCHAR);
CREATE TABLE scores (number BIGINT, name VARCHAR, language VARCHAR, place INTEGER, value DOUBLE);
CREATE TABLE compared (path VARCHAR, images BIGINT, unreadable BIGINT, first_unreadable VARCHAR);
CREATE VIEW live_pairs AS SELECT * FROM pairs ANTI JOIN pair_drops USING (number);
CREATE VIEW live_captions AS
    SELECT * FROM captions ANTI JOIN pair_drops USING (number) ANTI JOIN caption_drops USING (number, language, place);
"""

_PAIRS = """
CREATE TABLE pairs AS
    SELECT number, key, source, file_hash, pixel_hash, hashes, width, height
    FROM read_parquet({files})
    JOIN (SELECT key, row_number() OVER (ORDER BY key) AS number FROM read_parquet({files})) USING (key)
    ORDER BY number;
CREATE VIEW thumbs AS SELECT number, thumb FROM read_parquet({files}) JOIN pairs USING (key);
"""

_CAPTIONS = """
SELECT number, '{language}' AS language, (place - 1)::INTEGER AS place, {language}[place] AS text,
    {language}_hashes[place] AS text_hash, {language}_bands[place] AS bands, {language}_sketches[place] AS sketch,
    number AS origin, (place - 1)::INTEGER AS origin_place
FROM (
    SELECT number, {language}, {language}_hashes, {language}_bands, {language}_sketches,
        unnest(range(1, len({language}) + 1)) AS place
    FROM read_parquet({files}) JOIN pairs USING (key)
)
"""

_EMPTY_PAIRS = """
INSERT INTO pair_drops
    SELECT number, 'no-caption', 'none is left in ' || string_agg(language, ' or ' ORDER BY place)
    FROM (SELECT number FROM live_pairs)
    CROSS JOIN (SELECT unnest($languages) AS language, unnest(range(len($languages))) AS place)
    ANTI JOIN live_captions USING (number, language)
    GROUP BY number HAVING $each OR count(*) = len($languages)
"""


def fill(
    connection: DuckDBPyConnection, signatures: Sequence[Path], scores: Sequence[Path]
) -> None:
    """Create the tables and load the signature files and the score files into them."""
    names = ([str(path).replace("'", "''") for path in paths] for paths in (signatures, scores))
    files, score_files = (
        "['" + "', '".join(paths) + "']" for paths in names
    )  # as SQL: views take no parameters
    connection.execute(_PAIRS.format(files=files))
    selected = [_CAPTIONS.format(language=language, files=files) for language in LANGUAGES]
    connection.execute("CREATE TABLE captions AS " + " UNION ALL ".join(selected) + ";" + _TABLES)
    if scores:
        rows = f"read_parquet({score_files}) JOIN pairs USING (key)"
        connection.execute(
            f"INSERT INTO scores SELECT number, name, language, place, value FROM {rows}"
        )


def drop_empty(connection: DuckDBPyConnection, needs: Sequence[Language] = ()) -> None:
    """Drop as `no-caption` pairs without captions in a needed language, or in any language if
    `needs` is empty.
    """
    connection.execute(_EMPTY_PAIRS, {"languages": list(needs or LANGUAGES), "each": bool(needs)})
