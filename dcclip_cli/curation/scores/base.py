"""What is a scorer? A model that gives every pair, or every caption of it, a number; the numbers decide later."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Literal, TypeVar

from pydantic import Field

from dcclip_cli.options import Options

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection
    from PIL import Image

    from dcclip_cli.data.pair import Language, Pair

Scores = Mapping[str, "float | Mapping[Language, list[float]]"]
"""One pair's scores by the names they are stored under: one number, or one for each caption of each language."""

Score = Callable[[Sequence["tuple[Pair, Image.Image]"]], "list[Scores]"]
Device = Literal["auto", "cpu", "cuda", "mps"]

Some = TypeVar("Some", bound="ScorerOptions")

DECIMALS = 5  # of a stored score: finer differences depend on the machine


class ScorerOptions(Options, ABC):
    """What every scorer has: its name, where it runs, how it scores, and what its scores mean for a pair."""

    kind: str
    name: str | None = Field(
        None, pattern=r"^\w[\w-]{0,39}$", description="Tells two of a kind apart, in reasons and in stored scores"
    )
    device: Device = Field("auto", description="Where the model runs")
    batch_size: int = Field(32, ge=1, le=4096, description="Pictures, or texts, that the model gets at once")

    @property
    def stored(self) -> str:
        """The name of its scores, unique among the scorers of a recipe; every reason it gives begins with it."""
        return f"{self.kind}-{self.name}" if self.name else self.kind

    @abstractmethod
    def check(self) -> None:
        """Raises DcclipError where the model is plainly not there. Loads nothing."""

    @abstractmethod
    def open(self, device: Device | None = None) -> Score:
        """A function from pairs with their decoded pictures to the scores of each pair.

        A model is loaded once in a process. `device` goes before the option. Raises DcclipError where there is none.
        """

    @abstractmethod
    def apply(self, connection: DuckDBPyConnection) -> None:
        """Add the drops that follow from the stored scores of all pairs to the tables of `dedup.tables`."""


# A model that has gone astray gives no number: NULL.
_DROP_PAIRS = """
INSERT INTO pair_drops
    SELECT number, $reason, coalesce(format('{{:.3f}}', value), 'no score') || $said
    FROM live_pairs JOIN scores USING (number)
    WHERE scores.name = $name AND (value IS NULL OR value {sign} $threshold)
"""


def drop_pairs(connection: DuckDBPyConnection, stored: str, reason: str, threshold: float, below: bool = False) -> None:
    """Drop the pairs whose score under the name `stored` is at least the threshold, or is `below` it."""
    said = f", rejected {'below' if below else 'from'} {threshold:.3f}"
    values = {"name": stored, "reason": reason, "threshold": threshold, "said": said}
    connection.execute(_DROP_PAIRS.format(sign="<" if below else ">="), values)


def told_apart(scorers: tuple[Some, ...]) -> tuple[Some, ...]:
    """The scorers as they are. Raises ValueError where two scorers would store their scores under one name."""
    names = [scorer.stored for scorer in scorers]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ValueError(f"two scorers are both called {twice[0]}: give each a name of its own")
    return scorers
