"""What may stand in a recipe's section `collect`?"""

from __future__ import annotations

from pydantic import Field

from dcclip_cli.curation.executors import ClusterOptions
from dcclip_cli.curation.fetch import FetchOptions
from dcclip_cli.curation.rules import DEFAULT_RULES, RuleUnion
from dcclip_cli.curation.scores import Scorers
from dcclip_cli.curation.settle.settle import SettleOptions
from dcclip_cli.curation.sources import Source
from dcclip_cli.curation.tidy import TidyOptions
from dcclip_cli.data.pair import Language
from dcclip_cli.options import Neutral, Options


class ReportOptions(Options):
    """What report.html shows beside the figures."""

    examples: int = Field(12, ge=0, le=100, description="Pairs shown for each reason, and of the kept ones")


class CollectOptions(SettleOptions):
    """What to read, what to keep and how to store it.

    Whatever the rules, a kept pair has a readable JPEG, PNG or WebP image and at least one caption.
    """

    sources: tuple[Source, ...] = Field(min_length=1, description="Read one after the other")
    fetch: FetchOptions = Field(FetchOptions(), description="How images are downloaded that a source knows by URL")
    tidy: TidyOptions = Field(TidyOptions(), description="What is mended in a caption before the rules see it")
    filters: tuple[RuleUnion, ...] = Field(DEFAULT_RULES, description="Asked in this order; the first objection counts")
    needs: tuple[Language, ...] = Field((), description="Languages a pair must have captions in; none: any one will do")
    scores: Scorers = Field((), description="Models that judge what has passed the filters")
    shard_size: int = Field(
        1000, ge=1, le=100_000, description="Candidates that become one shard, what is kept of them"
    )
    report: ReportOptions = Field(ReportOptions(), description="What report.html shows")
    cluster: Neutral[ClusterOptions] = Field(ClusterOptions(), description="Where --engine ray and slurm run")
