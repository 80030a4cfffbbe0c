"""The stages of a recipe in order: what each leaves in the run directory and which sections decide it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

StageName = Literal["collect", "distill", "align", "eval", "export"]


@dataclass(frozen=True)
class Stage:
    """One stage. Its name is also that of its recipe section and of its folder in the run directory.

    It is finished when `product` exists in its folder. A change in the recipe's sections `made_from` makes the product
    out of date. `model` is the folder of the model that it leaves, relative to its own; None if it leaves none.
    """

    name: StageName
    product: str
    made_from: tuple[str, ...]
    model: str | None = None

    @property
    def trains(self) -> bool:
        """Whether the stage trains: it can be resumed from a saved state and leaves a model directory."""
        return self.model == "model"


_TRAINING = ("teacher", "student", "data", "seed")
STAGES = (
    Stage("collect", "manifest.json", ("collect",)),
    Stage("distill", "model", (*_TRAINING, "distill"), "model"),
    Stage("align", "model", (*_TRAINING, "align"), "model"),
    Stage("eval", "summary.json", ("teacher", "eval")),
    Stage("export", "dcclip.json", ("data", "eval", "export"), "."),
)


def finished(run: Path, stage: StageName) -> bool:
    """Whether a run directory contains the product of a stage."""
    return any((run / one.name / one.product).exists() for one in STAGES if one.name == stage)
