"""The pass over all pairs at once: score thresholds, decontamination, duplicates."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from pydantic import Field

from dcclip_cli.curation.dedup.decontaminate import Decontaminate
from dcclip_cli.curation.dedup.minhash import SameCaption
from dcclip_cli.curation.dedup.near_duplicates import NearImage, SameImage
from dcclip_cli.curation.dedup.tables import GlobalFilter, drop_empty, fill
from dcclip_cli.data.pair import Language
from dcclip_cli.options import Options

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection

DECISIONS, CAPTIONS = "decisions.parquet", "captions.parquet"

Duplicate = Annotated[SameImage | NearImage | SameCaption, Field(discriminator="kind")]


class DedupOptions(Options):
    """Filters over all pairs at once. Of duplicates, the first one in the order of sources is kept."""

    decontaminate: Decontaminate | None = Field(
        None, description="Evaluation sets whose images must not be in the output"
    )
    duplicates: tuple[Duplicate, ...] = Field(
        (SameImage(), NearImage(), SameCaption()), description="Kinds of duplicates that are removed; empty: none"
    )


def dedup(
    signatures: Sequence[Path],
    scores: Sequence[Path],
    options: DedupOptions,
    out: Path,
    memory: str = "1GB",
    first: Sequence[GlobalFilter] = (),
    needs: Sequence[Language] = (),
) -> None:
    """Write `decisions.parquet` and `captions.parquet` into the folder `out`, ordered by key.

    The filters `first` (thresholds of scores) run before all others; then evaluation sets, equal images, near
    duplicates, captions, whatever their order in the recipe. A pair that lacks a needed language is dropped after
    equal images were merged, since that may have added it. DuckDB uses about `memory` and spills into `out`.

    decisions: key, reason (NULL: kept), detail, zh and en (the final captions of kept pairs, else empty),
    scores (JSON: by name a number, or a list per language in the order of the captions; NULL if there are none).
    captions: key, language, caption, reason, detail of every caption that was dropped without its pair.
    """
    import duckdb

    out.mkdir(parents=True, exist_ok=True)
    working = out / "tables.duckdb"
    _remove(working)
    with duckdb.connect(str(working)) as connection:
        connection.execute("SET memory_limit = $value", {"value": memory})
        connection.execute("SET temp_directory = $value", {"value": str(out / "spill")})
        connection.execute("SET preserve_insertion_order = false")  # the results are sorted explicitly
        fill(connection, signatures, scores)
        _apply(connection, [*first, *([options.decontaminate] if options.decontaminate else [])], ())
        _apply(connection, [each for each in options.duplicates if isinstance(each, SameImage)], needs)
        drop_empty(connection, needs)
        for kind in (NearImage, SameCaption):
            _apply(connection, [each for each in options.duplicates if isinstance(each, kind)], needs)
        for name, query in ((CAPTIONS, _DROPPED_CAPTIONS), (DECISIONS, _DECISIONS)):
            part = out / f"{name}.part"
            connection.execute(f"COPY ({query}) TO '{_quoted(part)}' (FORMAT parquet, COMPRESSION zstd)")
            part.replace(out / name)
    _remove(working)


def _apply(connection: DuckDBPyConnection, filters: Sequence[GlobalFilter], needs: Sequence[Language]) -> None:
    for each in filters:
        each.apply(connection)
        drop_empty(connection, needs)


def _quoted(path: Path) -> str:
    return str(path).replace("'", "''")


def _remove(working: Path) -> None:
    for path in (working, working.with_name(working.name + ".wal")):
        path.unlink(missing_ok=True)


_DECISIONS = """
WITH final AS (
    SELECT number,
        coalesce(list(text ORDER BY place) FILTER (language = 'zh'), []) AS zh,
        coalesce(list(text ORDER BY place) FILTER (language = 'en'), []) AS en
    FROM live_captions GROUP BY number
),
caption_scores AS (
    SELECT number, name, language, to_json(list(value ORDER BY place)) AS value
    FROM (
        SELECT live_captions.number, live_captions.place, language, name, value
        FROM live_captions CROSS JOIN (SELECT DISTINCT name FROM scores WHERE place IS NOT NULL)
        LEFT JOIN scores AS given USING (name, language)
        WHERE given.number = origin AND given.place = origin_place
    ) GROUP BY number, name, language
),
all_scores AS (
    SELECT number, name, to_json(map(list(language ORDER BY language), list(value ORDER BY language))) AS value
    FROM caption_scores GROUP BY number, name
    UNION ALL SELECT number, name, to_json(value) FROM scores WHERE place IS NULL
),
scored AS (
    SELECT number, to_json(map(list(name ORDER BY name), list(value ORDER BY name)))::VARCHAR AS scores
    FROM all_scores GROUP BY number
)
SELECT key, reason, detail, coalesce(zh, []) AS zh, coalesce(en, []) AS en, scores
FROM pairs LEFT JOIN pair_drops USING (number) LEFT JOIN final USING (number) LEFT JOIN scored USING (number)
ORDER BY number
"""

_DROPPED_CAPTIONS = """
SELECT key, language, text AS caption, reason, detail
FROM caption_drops JOIN captions USING (number, language, place) JOIN pairs USING (number)
ORDER BY number, language DESC, place
"""
