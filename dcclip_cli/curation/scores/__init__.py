"""What do models say of pairs: does the caption fit, is the picture safe, clean, good? The union is the registry."""

from __future__ import annotations

from typing import Annotated

from pydantic import AfterValidator, Field

from dcclip_cli.curation.scores.agreement import Agreement
from dcclip_cli.curation.scores.base import told_apart
from dcclip_cli.curation.scores.classifier import Classifier
from dcclip_cli.curation.scores.prompts import Prompts
from dcclip_cli.curation.scores.rule import ScoreFilter
from dcclip_cli.curation.scores.slices import score_slice

__all__ = ["ScoreFilter", "Scorer", "Scorers", "score_slice"]

Scorer = Annotated[Agreement | Classifier | Prompts, Field(discriminator="kind")]
Scorers = Annotated[tuple[Scorer, ...], AfterValidator(told_apart)]
"""The scorers of a recipe, each with scores of its own name."""
