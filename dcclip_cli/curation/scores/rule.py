"""Which pairs and captions do the stored scores speak against?"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import Field

from dcclip_cli.curation.dedup.tables import GlobalFilter
from dcclip_cli.curation.scores.base import ScorerOptions

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection


class ScoreFilter(GlobalFilter):
    """Drops by the scorers' thresholds and fractions, one scorer after the other: a later one sees what is left."""

    scorers: tuple[ScorerOptions, ...] = Field(description="As the recipe has them")

    def apply(self, connection: DuckDBPyConnection) -> None:
        """The reasons of the scorers, each beginning with the scorer's kind."""
        for scorer in self.scorers:
            scorer.apply(connection)
