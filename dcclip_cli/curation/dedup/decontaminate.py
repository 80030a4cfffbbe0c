"""Decontamination: images and captions of evaluation sets, whose scores they would inflate."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import Field

from dcclip_cli.curation.decode_image import DecodedImage
from dcclip_cli.curation.dedup.near_duplicates import find_near
from dcclip_cli.curation.dedup.signatures import signature_schema, signatures_of
from dcclip_cli.curation.dedup.tables import GlobalFilter
from dcclip_cli.data.dataset import open_pairs
from dcclip_cli.data.pair import Pair
from dcclip_cli.data.reading import IMAGE_SUFFIXES
from dcclip_cli.errors import DcclipError
from dcclip_cli.model.preprocess import decode

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection

_BATCH = 1000


class Decontaminate(GlobalFilter):
    """Drops images, and optionally captions, that are in evaluation sets."""

    paths: tuple[Path, ...] = Field(
        min_length=1,
        description="Evaluation sets: Parquet or tar files of pairs, folders of shards, or folders of images",
    )
    images: bool = Field(
        True, description="Drop pairs whose image is equal to an evaluation image or a near duplicate of one"
    )
    captions: bool = Field(
        False, description="Also drop captions that occur in them; note that class names are common words"
    )
    bits: int = Field(
        12, ge=0, le=16, description="Maximum number of differing bits between perceptual hashes, as for `near-image`"
    )

    def apply(self, connection: DuckDBPyConnection) -> None:
        """`evaluation-image` for pairs, `evaluation-caption` for single captions."""
        _fill(connection, self.paths)
        if self.images:
            thumbs = "(SELECT number, thumb FROM evaluation UNION ALL SELECT number, thumb FROM thumbs)"
            find_near(connection, "evaluation", "live_pairs", thumbs, self.bits)
            connection.execute(_DROP_IMAGES)
        if self.captions:
            connection.execute(_DROP_CAPTIONS)


_DROP_IMAGES = """
INSERT INTO pair_drops
    SELECT later, 'evaluation-image', 'shows the same as ' || key FROM near JOIN evaluation ON number = earlier
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


def _fill(connection: DuckDBPyConnection, paths: tuple[Path, ...]) -> None:
    """Fill the table `evaluation` with the signatures of all evaluation images that can be decoded."""
    import pyarrow as pa

    schema = signature_schema().append(pa.field("number", pa.int64()))
    for start, rows in enumerate(_batches(paths)):
        connection.register("evaluation_rows", pa.Table.from_pylist(rows, schema))
        into = "INSERT INTO evaluation" if start else "CREATE OR REPLACE TABLE evaluation AS"
        connection.execute(f"{into} SELECT * FROM evaluation_rows")
        connection.unregister("evaluation_rows")


def _batches(paths: tuple[Path, ...]) -> Iterator[list[dict[str, Any]]]:
    """Rows for the table, at least one batch, which may be empty."""
    rows: list[dict[str, Any]] = []
    number = 0
    for path in paths:
        for pair in _pairs(path):
            try:
                image = decode(pair.image)
            except DcclipError:
                continue
            number -= 1  # below those of all pairs
            rows.append(
                signatures_of(pair, DecodedImage(image, "", 1, len(pair.image)), path.name) | {"number": number}
            )
            if len(rows) == _BATCH:
                yield rows
                rows = []
    yield rows


def _pairs(path: Path) -> Iterator[Pair]:
    """The images of one evaluation set, with their captions and keys by which a person finds them."""
    files = sorted(file for file in path.rglob("*") if file.suffix.lower() in IMAGE_SUFFIXES) if path.is_dir() else []
    if files and not any(path.glob("*.tar")):
        for file in files:
            yield Pair(f"{path.name}/{file.relative_to(path)}", file.read_bytes())
    else:
        for pair in open_pairs(path):
            yield Pair(f"{path.name}:{pair.key}", pair.image, pair.zh, pair.en)
