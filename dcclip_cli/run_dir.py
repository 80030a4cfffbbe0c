"""The run directory `runs/NAME/`, which contains all that a recipe makes, and the result of a training stage."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class RunDir:
    """A run's directory. A stage is finished when its product exists: products are moved into place last."""

    root: Path

    def stage(self, name: str) -> Path:
        return self.root / name

    def model(self, stage: str) -> Path:
        """The model directory that `distill` or `align` writes."""
        return self.root / stage / "model"


@dataclass(frozen=True)
class TrainResult:
    """The model directory of a training stage, whether an earlier call had finished it, and the metrics logged last."""

    model: Path
    already_finished: bool
    seconds: float = 0.0
    metrics: dict[str, float] = field(default_factory=dict)
    provenance: dict[str, Any] = field(default_factory=dict)
