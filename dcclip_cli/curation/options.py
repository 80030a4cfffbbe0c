"""Options of a recipe's `collect` section."""

import io
from dataclasses import replace
from typing import Literal

from PIL import Image
from pydantic import Field

from dcclip_cli.core.options import Neutral, Options
from dcclip_cli.curation.dedup.dedup import DedupOptions
from dcclip_cli.curation.fetch import FetchOptions
from dcclip_cli.curation.filters import DEFAULT_FILTERS, AnyFilter
from dcclip_cli.curation.filters.image import image_suffix
from dcclip_cli.curation.normalize_text import NormalizeOptions
from dcclip_cli.curation.scores import Scorers
from dcclip_cli.curation.sources import Source
from dcclip_cli.data.pair import Language, Pair
from dcclip_cli.model.preprocess import decode, flatten

_QUALITY = 95  # of images that become JPEGs


class OutputOptions(Options):
    """Image file format, and kind of shards."""

    format: Literal["original", "jpeg"] = Field(
        "original",
        description="Image file format; jpeg converts all other formats, with transparent areas in white",
    )
    shards: Literal["tar", "parquet"] = Field(
        "tar", description="Kind of shards: WebDataset tars or Parquet"
    )
    max_side: int | None = Field(
        None,
        ge=16,
        le=100_000,
        description="Longest side in pixels: larger images are shrunk when they are written, and "
        "become JPEGs of "
        "quality 95; null: no limit. Filters, duplicates and decontamination see the "
        "images as they were",
    )

    def written(self, pair: Pair) -> Pair:
        """The pair as its shard has it: with an image of the chosen format and size, upright if it
        is encoded again.
        """
        is_large = False
        if self.max_side is not None:
            with Image.open(io.BytesIO(pair.image)) as header:
                is_large = max(header.size) > self.max_side
        if not is_large and (self.format == "original" or image_suffix(pair.image) == "jpg"):
            return pair

        image = flatten(decode(pair.image, draft=self.max_side or 0))
        if self.max_side is not None:
            image.thumbnail(
                (self.max_side, self.max_side), reducing_gap=None
            )  # bicubic, as teachers resize
        stream = io.BytesIO()
        image.save(stream, "JPEG", quality=_QUALITY)
        return replace(pair, image=stream.getvalue())


class SlurmOptions(Options):
    """What each task requests from Slurm. The run directory must be on a file system that all
    nodes share.
    """

    partition: str = Field(description="Slurm partition")
    time: str = Field("04:00:00", description="Time limit of each task, as for sbatch --time")
    cpus: int = Field(1, ge=1, le=4096, description="CPU cores per task")
    memory_gb: int = Field(4, ge=1, le=100_000, description="Memory for each core, in GB")
    setup: str | None = Field(
        None, description="Shell command that activates dcclip's environment before each task"
    )
    sbatch: dict[str, str] = Field(
        {}, description="Further sbatch options, for example account, qos or gres"
    )


class ClusterOptions(Options):
    """How --engine slurm runs the tasks; does not change the output."""

    slurm: SlurmOptions | None = Field(None, description="Options for --engine slurm")


class CollectOptions(DedupOptions):
    """Sources, filters, deduplication and storage of image-caption pairs.

    Every kept pair has a readable JPEG, PNG or WebP image and at least one caption, whatever the
    filters.
    """

    sources: tuple[Source, ...] = Field(
        min_length=1, description="Sources of pairs, read in this order"
    )
    fetch: FetchOptions = Field(
        FetchOptions(), description="How images are downloaded for sources that list URLs"
    )
    normalize: NormalizeOptions = Field(
        NormalizeOptions(), description="How captions are normalized before filtering"
    )
    filters: tuple[AnyFilter, ...] = Field(
        DEFAULT_FILTERS,
        description="Filters on single pairs, in this order; the first filter that applies gives "
        "the drop reason",
    )
    needs: tuple[Language, ...] = Field(
        (), description="Languages that a kept pair must have; empty: any language"
    )
    scores: Scorers = Field((), description="Models that score the pairs that passed the filters")
    output: OutputOptions = Field(OutputOptions(), description="How kept pairs are stored")
    shard_size: int = Field(
        1000,
        ge=1,
        le=100_000,
        description="Input pairs per shard; the shard contains only the kept pairs",
    )
    cluster: Neutral[ClusterOptions] = Field(
        ClusterOptions(), description="Resources that each job of --engine slurm requests"
    )
