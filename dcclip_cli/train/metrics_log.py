"""What a run writes down as it goes: metrics.jsonl and TensorBoard."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from accelerate import Accelerator


class Log:
    """metrics.jsonl and tensorboard, cut back to the step that training goes on from."""

    def __init__(self, folder: Path, start: int, accelerator: Accelerator) -> None:
        self._accelerator = accelerator
        self._file = folder / "metrics.jsonl"
        if not accelerator.is_main_process:
            return
        folder.mkdir(parents=True, exist_ok=True)
        lines = self._file.read_text().splitlines() if self._file.exists() else []
        kept = [line for line in lines if line.endswith("}") and json.loads(line)["step"] <= start]
        self._file.write_text("".join(line + "\n" for line in kept))
        if not start:
            shutil.rmtree(folder / "tensorboard", ignore_errors=True)
        accelerator.init_trackers("tensorboard")

    def write(self, step: int, figures: dict[str, float]) -> None:
        """Add one line."""
        if self._accelerator.is_main_process:
            rounded = {name: float(f"{value:.6g}") for name, value in figures.items()}
            with self._file.open("a") as stream:
                stream.write(json.dumps({"step": step, **rounded}) + "\n")
            self._accelerator.log(figures, step=step)
