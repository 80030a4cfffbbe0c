"""The signatures of pairs, and the pass over them: score thresholds, decontamination, duplicates."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

import numpy as np
from pydantic import Field

from dcclip_cli.core.errors import DcclipError, Message
from dcclip_cli.core.files import write_json
from dcclip_cli.core.machine import cores
from dcclip_cli.core.options import Options, PathOption
from dcclip_cli.curation.dedup import GlobalFilter, drop_empty, fill
from dcclip_cli.curation.dedup.minhash import (
    SameCaption,
    bands_of,
    letters_of,
    sketches_of,
    text_hash,
)
from dcclip_cli.curation.dedup.same_images import NearImage, SameImage
from dcclip_cli.data.dataset import open_pairs, shards_at
from dcclip_cli.data.decoded import DecodedImage
from dcclip_cli.data.near_duplicates import SIDE, find_near, perceptual_hashes, thumbnail
from dcclip_cli.data.pair import LANGUAGES, Language, Pair, image_digest
from dcclip_cli.data.preview import preview_pairs
from dcclip_cli.data.reading import ALL_IMAGE_SUFFIXES
from dcclip_cli.data.remote import DataFile
from dcclip_cli.data.shards import open_parquet, parquet_errors
from dcclip_cli.model.preprocess import FORMATS, decode

if TYPE_CHECKING:
    import pyarrow as pa
    from duckdb import DuckDBPyConnection

DECISIONS = "decisions.parquet"
CAPTIONS = "captions.parquet"
COMPARED = "compared.json"
_EVALUATION_FORMATS = (*FORMATS, "BMP", "GIF", "TIFF")
_BATCH = 1000  # evaluation images in memory
_PAIRS_AT_A_TIME = 50_000  # whose captions and scores are gathered in memory
_GROUP_ROWS = 4096  # of a row group: a task of the write step reads those of its slice only


def signatures_of(
    pair: Pair, decoded: DecodedImage, source: str, names_class: bool = False
) -> dict[str, Any]:
    """What `signature_table` makes a row of: hashes and a thumbnail of the image as training sees
    it, and the captions.

    Captions that name the image's class have hashes of their own in each pair, so that none is a
    duplicate. 128 bits of a hash: no collision is expected among 10**12 images.
    """
    import xxhash

    image = decoded.image
    pixels = xxhash.xxh3_128(f"{image.width} {image.height} ".encode())
    pixels.update(decoded.pixels)
    return {
        "key": pair.key,
        "source": source,
        "file_hash": image_digest(pair.image),
        "pixel_hash": pixels.digest(),
        "thumb": thumbnail(decoded).tobytes(),
        "width": image.width,
        "height": image.height,
        "names_class": names_class,
        **{language: pair.captions(language) for language in LANGUAGES},
    }


def signature_table(
    rows: Sequence[Mapping[str, Any]], extra: Mapping[str, pa.DataType] | None = None
) -> pa.Table:
    """Rows of `signatures_of`, with perceptual hashes and hashes of captions; `extra`: columns
    they also have.
    """
    import pyarrow as pa

    kinds = {
        "key": pa.string(),
        "source": pa.string(),
        "file_hash": pa.binary(),
        "pixel_hash": pa.binary(),
    }
    kinds |= {
        "hashes": pa.list_(pa.uint64()),
        "thumb": pa.binary(),
        "width": pa.int32(),
        "height": pa.int32(),
    }
    kinds |= extra or {}
    values = {name: [row[name] for row in rows] for name in kinds if name != "hashes"}
    thumbs = np.frombuffer(b"".join(values["thumb"]), np.uint8).reshape(-1, SIDE, SIDE, 3)
    values["hashes"] = perceptual_hashes(thumbs).tolist()
    columns = {name: pa.array(values[name], kind) for name, kind in kinds.items()}
    for language in LANGUAGES:
        captions = pa.array([row[language] for row in rows], pa.list_(pa.string()))
        named = np.array([row["names_class"] for row in rows for _ in row[language]], bool)
        texts = [
            f"{row['key']} {text}" if row["names_class"] else text
            for row in rows
            for text in row[language]
        ]
        letters = list(map(letters_of, texts))
        hashes = pa.array(list(map(text_hash, texts, letters)), pa.uint64())
        columns |= {
            language: captions,
            f"{language}_hashes": pa.ListArray.from_arrays(captions.offsets, hashes),
        }
        for name, compute in (("bands", bands_of), ("sketches", sketches_of)):
            matrix = compute(letters)
            ends = np.cumsum([0, *np.where(named, 0, matrix.shape[1])], dtype=np.int32)
            by_caption = pa.ListArray.from_arrays(ends, matrix[~named].ravel())
            columns[f"{language}_{name}"] = pa.ListArray.from_arrays(captions.offsets, by_caption)
    return pa.table(columns)


class Decontaminate(GlobalFilter):
    """Drops images, and optionally captions, that are in evaluation sets."""

    _of: ClassVar[str] = "evaluation"  # in the reasons

    paths: tuple[PathOption, ...] = Field(
        min_length=1,
        description="Evaluation sets: Parquet or tar files of pairs, folders of shards, or "
        "folders of images",
    )
    images: bool = Field(
        True, description="Drop pairs whose image equals or nearly equals an evaluation image"
    )
    captions: bool = Field(
        False,
        description="Also drop captions that occur in evaluation sets; class names are common "
        "words and match many",
    )
    bits: int = Field(
        12,
        ge=0,
        le=16,
        description="Maximum different bits of perceptual hashes, as for `near-image`",
    )

    def apply(self, connection: DuckDBPyConnection) -> None:
        """`evaluation-image` for pairs, `evaluation-caption` for captions. Raises DcclipError for
        no images.
        """
        import pyarrow as pa

        number_column = {"number": pa.int64()}
        total = 0
        connection.register("evaluation_rows", signature_table([], number_column))
        connection.execute("CREATE OR REPLACE TABLE evaluation AS FROM evaluation_rows")
        for path in self.paths:
            faults = list[str]()
            before = total
            pairs = _evaluation_pairs(path)
            while batch := list(islice(pairs, _BATCH)):
                rows = []
                for pair in batch:
                    try:
                        image = decode(pair.image, formats=_EVALUATION_FORMATS)
                    except DcclipError as error:
                        faults.append(f"{pair.key} ({error.what})")
                        continue
                    total += 1
                    signatures = signatures_of(
                        pair, DecodedImage(image, "", 1, len(pair.image)), path.name
                    )
                    rows.append(signatures | {"number": -total})  # below those of all pairs
                connection.register("evaluation_rows", signature_table(rows, number_column))
                connection.execute("INSERT INTO evaluation FROM evaluation_rows")
            counts = [str(path), total - before, len(faults), next(iter(faults), "")]
            if total == before:
                message = Message(
                    "{}: none of {:,} images is readable: {}", path, len(faults), counts[-1]
                )
                raise DcclipError(
                    message, "copy the images again, or remove the path from the recipe"
                )
            connection.execute("INSERT INTO compared VALUES (?, ?, ?, ?)", counts)
        if self.images:
            thumbs = (
                "(SELECT number, thumb FROM evaluation UNION ALL SELECT number, thumb FROM thumbs)"
            )
            find_near(connection, "evaluation", "live_pairs", thumbs, self.bits)
            connection.execute(_DROP_IMAGES, {"reason": f"{self._of}-image"})
        if self.captions:
            connection.execute(_DROP_CAPTIONS)


class Earlier(Decontaminate):
    """Drops images that earlier collections have."""

    _of = "earlier"


_DROP_IMAGES = """
INSERT INTO pair_drops
    SELECT later, $reason, 'shows the same as ' || key FROM near JOIN evaluation ON number = earlier
"""

_DROP_CAPTIONS = """
INSERT INTO caption_drops
    SELECT live_captions.number, language, place, 'evaluation-caption', 'a caption of ' || key
    FROM live_captions JOIN (
        SELECT language, text_hash, arg_max(key, number) AS key FROM (
            SELECT 'zh' AS language, unnest(zh_hashes) AS text_hash, key, number FROM evaluation
            UNION ALL SELECT 'en', unnest(en_hashes), key, number FROM evaluation
        ) GROUP BY language, text_hash
    ) USING (language, text_hash)
"""


def _evaluation_pairs(path: Path) -> Iterator[Pair]:
    """The images of one evaluation set, with their captions and keys by which a person finds them."""
    sources, files = _evaluation_files(path)
    for source in sources:
        for pair in open_pairs(source):
            yield Pair(
                f"{source.relative_to(path.parent)}:{pair.key}", pair.image, pair.zh, pair.en
            )
    for file in files:
        yield Pair(f"{path.name}/{file.relative_to(path)}", file.read_bytes())


def _evaluation_files(path: Path) -> tuple[list[Path], list[Path]]:
    """The shards, or folders of them, of one evaluation set, and its image files: of a folder all
    in it and below.
    """
    entries = sorted(path.rglob("*")) if path.is_dir() else []
    entries = [
        entry
        for entry in entries
        if not any(part[0] == "." for part in entry.relative_to(path).parts)
    ]
    shards = [
        folder
        for folder in (path, *entries)
        if folder.is_dir() and any(map(_has_images, shards_at(folder)))
    ]
    files = [
        file for file in entries if file.suffix.lower() in ALL_IMAGE_SUFFIXES and file.is_file()
    ]
    return shards or ([] if files else [path]), files


def _has_images(shard: DataFile) -> bool:
    """Whether it is a tar, or Parquet that may have images: img2dataset writes tables of URLs next
    to image files.
    """
    if not shard.name.endswith(".parquet"):
        return True
    with open_parquet(shard) as parquet, parquet_errors(shard):
        return any(
            "binary" in str(field.type) or "image" in field.name for field in parquet.schema_arrow
        )


def check_evaluation_set(path: Path) -> None:
    """Raise DcclipError where one evaluation set or earlier collection has nothing to compare; no
    image is decoded.
    """
    for source in _evaluation_files(path)[0]:
        preview_pairs(source)


Duplicate = Annotated[SameImage | NearImage | SameCaption, Field(discriminator="kind")]


class DedupOptions(Options):
    """Filters over all pairs at once. Of duplicates, the first one in the order of sources is
    kept.
    """

    decontaminate: Decontaminate | None = Field(
        None, description="Evaluation sets whose images are removed"
    )
    earlier: tuple[PathOption, ...] = Field(
        (),
        description="Outputs of earlier collections, or other shards; pairs with their images are dropped",
    )
    duplicates: tuple[Duplicate, ...] = Field(
        (SameImage(), NearImage(), SameCaption()),
        description="Kinds of duplicates to remove; empty: none",
    )


def dedup(
    signatures: Sequence[Path],
    scores: Sequence[Path],
    options: DedupOptions,
    out: Path,
    memory_mb: int | None = None,
    first: Sequence[GlobalFilter] = (),
    needs: Sequence[Language] = (),
) -> None:
    """Write `decisions.parquet` and `captions.parquet` into the folder `out`, ordered by key.

    The filters `first` (thresholds of scores) run before all others; then evaluation sets, earlier
    collections, equal images, near duplicates, captions, whatever their order in the recipe. A
    pair that lacks a needed language is dropped after equal images were merged, since that may
    have added it. DuckDB uses about `memory_mb`, by default 256 and 128 for each core, and spills
    into `out`.

    decisions: key, reason (NULL: kept), detail, zh and en (the final captions of kept pairs, else
    empty), scores (JSON: by name a number, or a list per language in the order of the captions;
    NULL if there are none). captions: key, language, caption, reason, detail of every caption that
    was dropped without its pair. `compared.json`: for each path of evaluation sets and earlier
    collections, how many of its images were compared.
    """
    import duckdb
    import pyarrow.parquet as pq

    out.mkdir(parents=True, exist_ok=True)
    with (
        tempfile.TemporaryDirectory(dir=out) as working,
        duckdb.connect(f"{working}/tables.duckdb") as connection,
    ):
        connection.execute(
            "SET memory_limit = $value", {"value": f"{memory_mb or 256 + 128 * cores()}MB"}
        )
        connection.execute("SET temp_directory = $value", {"value": f"{working}/spill"})
        connection.execute(
            "SET preserve_insertion_order = false"
        )  # all choices are ordered explicitly
        fill(connection, signatures, scores)
        earlier = Earlier(paths=options.earlier) if options.earlier else None
        for rule in [*first, *filter(None, (options.decontaminate, earlier))]:
            rule.apply(connection)
            drop_empty(connection)
        for kind in (SameImage, NearImage, SameCaption):
            for rule in options.duplicates:
                if isinstance(rule, kind):
                    rule.apply(connection)
            drop_empty(connection, needs)
        connection.execute(
            "SET preserve_insertion_order = true"
        )  # else Arrow's tables may lose that of ORDER BY
        [(pairs,)] = connection.execute("SELECT count(*) FROM pairs").fetchall()
        starts = range(0, pairs + 1, _PAIRS_AT_A_TIME)
        ranges = [f"number BETWEEN {start} AND {start + _PAIRS_AT_A_TIME - 1}" for start in starts]
        for name, query in ((CAPTIONS, _DROPPED_CAPTIONS), (DECISIONS, _DECISIONS)):
            schema = connection.sql(query.format(within="false")).to_arrow_table().schema
            with pq.ParquetWriter(out / name, schema, compression="zstd") as writer:
                for within in ranges:
                    writer.write_table(
                        connection.sql(query.format(within=within)).to_arrow_table(), _GROUP_ROWS
                    )
        compared = connection.sql("FROM compared")
        write_json(
            out / COMPARED,
            [dict(zip(compared.columns, row, strict=True)) for row in compared.fetchall()],
        )


_DECISIONS = """
WITH final AS (
    SELECT number,
        coalesce(list(text ORDER BY place) FILTER (language = 'zh'), []) AS zh,
        coalesce(list(text ORDER BY place) FILTER (language = 'en'), []) AS en
    FROM live_captions WHERE {within} GROUP BY number
),
caption_scores AS (
    SELECT number, name, language, to_json(list(value ORDER BY place)) AS value
    FROM (
        SELECT live_captions.number, live_captions.place, language, name, value
        FROM (FROM live_captions WHERE {within}) AS live_captions
        CROSS JOIN (SELECT DISTINCT name FROM scores WHERE place IS NOT NULL)
        LEFT JOIN scores AS given USING (name, language)
        WHERE given.number = origin AND given.place = origin_place
    ) GROUP BY number, name, language
),
all_scores AS (
    SELECT number, name, to_json(map(list(language ORDER BY language), list(value ORDER BY language))) AS value
    FROM caption_scores GROUP BY number, name
    UNION ALL SELECT number, name, to_json(value) FROM scores WHERE place IS NULL AND {within}
),
scored AS (
    SELECT number, to_json(map(list(name ORDER BY name), list(value ORDER BY name)))::VARCHAR AS scores
    FROM all_scores GROUP BY number
)
SELECT key, reason, detail, coalesce(zh, []) AS zh, coalesce(en, []) AS en, scores
FROM (FROM pairs WHERE {within}) LEFT JOIN pair_drops USING (number)
LEFT JOIN final USING (number) LEFT JOIN scored USING (number)
ORDER BY number
"""

_DROPPED_CAPTIONS = """
SELECT key, language, text AS caption, reason, detail
FROM caption_drops JOIN captions USING (number, language, place) JOIN pairs USING (number)
WHERE {within} ORDER BY number, language DESC, place
"""
