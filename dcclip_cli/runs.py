"""The run directory: `runs/NAME/` holds everything that one recipe makes."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class RunFolder:
    """A run's folder. A stage is finished when its product is there: products take their names last."""

    root: Path

    def stage(self, name: str) -> Path:
        return self.root / name

    def model(self, stage: str) -> Path:
        """The model directory that `distill` or `align` leaves."""
        return self.root / stage / "model"


@dataclass(frozen=True)
class StageResult:
    """What a training stage left: its model directory, whether it was there before, and the figures it measured."""

    folder: Path
    already_finished: bool
    seconds: float = 0.0
    figures: dict[str, float] = field(default_factory=dict)
    provenance: dict[str, Any] = field(default_factory=dict)
