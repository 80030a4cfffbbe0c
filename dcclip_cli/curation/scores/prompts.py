"""Does a picture look like one of some texts that describe what nobody wants?"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field

from dcclip_cli.curation.scores.base import Device, Score, ScorerOptions, drop_pairs
from dcclip_cli.curation.scores.encoder import check_model, open_encoder
from dcclip_cli.model.teachers import Teacher

if TYPE_CHECKING:
    from collections.abc import Sequence

    from duckdb import DuckDBPyConnection
    from PIL import Image

    from dcclip_cli.curation.scores.base import Scores
    from dcclip_cli.data.pair import Pair


class Prompts(ScorerOptions):
    """Drops pictures by zero-shot classification: the probability that one of the texts `reject` fits best.

    The softmax goes over all texts of both lists, so what counts is how `reject` does beside `against`: give both lists
    texts of the same sort, in each language that the model knows.
    """

    kind: Literal["prompts"] = "prompts"
    model: str | Teacher = Field(description="A reference as for --model, or the options of a teacher")
    reject: tuple[str, ...] = Field(min_length=1, description="What it must not look like, in Chinese or English")
    against: tuple[str, ...] = Field(
        ("a photo", "an illustration", "一张照片", "一幅插图"),
        min_length=1,
        description="What it may look like",
    )
    threshold: float = Field(0.5, gt=0, le=1, description="Probability of `reject` from which on a pair goes")

    def check(self) -> None:
        check_model(self.model)

    def open(self, device: Device | None = None) -> Score:
        from dcclip_cli.predict.zero_shot import softmax

        encoder = open_encoder(self.model, device or self.device)
        classes = encoder.texts([*self.reject, *self.against], self.batch_size)
        rejected = len(self.reject)

        def score(batch: Sequence[tuple[Pair, Image.Image]]) -> list[Scores]:
            images = encoder.images([picture for _, picture in batch], self.batch_size)
            sums = softmax(images, classes, encoder.model.logit_scale)[:, :rejected].sum(axis=1)
            return [{self.stored: value} for value in sums.tolist()]

        return score

    def apply(self, connection: DuckDBPyConnection) -> None:
        """`prompts-reject`."""
        drop_pairs(connection, self.stored, f"{self.stored}-reject", self.threshold)
