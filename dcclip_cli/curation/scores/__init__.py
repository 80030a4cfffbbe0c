"""Scores that models give to pairs and captions. The union is the registry of scorers."""

from __future__ import annotations

from typing import Annotated

from pydantic import AfterValidator, Field

from dcclip_cli.curation.scores.base import ScoreFilter, score_slice, unique_names
from dcclip_cli.curation.scores.classifier import Classifier
from dcclip_cli.curation.scores.dual_encoder import Agreement, Prompts

__all__ = ["ScoreFilter", "Scorer", "Scorers", "score_slice"]

Scorer = Annotated[Agreement | Classifier | Prompts, Field(discriminator="kind")]
Scorers = Annotated[tuple[Scorer, ...], AfterValidator(unique_names)]
"""The scorers of a recipe, each with scores of its own name."""
