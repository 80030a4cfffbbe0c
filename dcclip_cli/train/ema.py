"""Which weights does a run keep in the end: the last, their average, or the best by validation?"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from dcclip_cli.files import atomic_folder, read_json
from dcclip_cli.train.validation import score

WEIGHTS, FIGURES = "weights.safetensors", "figures.json"


def averaged(model: nn.Module, decay: float | None) -> AveragedModel | None:
    """An exponential moving average of the model's weights and batch norm statistics, if a decay is given."""
    return AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(decay), use_buffers=True) if decay else None


@contextmanager
def in_place_of(model: nn.Module, average: AveragedModel | None) -> Iterator[None]:
    """The model has the average's weights for as long as this lasts."""
    if average is None:
        yield
        return
    own = {name: value.detach().clone() for name, value in model.state_dict().items()}
    model.load_state_dict(average.module.state_dict())
    try:
        yield
    finally:
        model.load_state_dict(own)


class Best:
    """The best weights so far, on disk, and how long ago that was."""

    def __init__(self, folder: Path, start: int, patience: int | None, measure: Callable[[], dict[str, float]]) -> None:
        """`start`: the step that training goes on from; what a later step left behind will come again."""
        self._folder, self._patience, self._measure = folder, patience, measure
        self.figures: dict[str, float] = {}
        self.step, self._worse, self._score = 0, 0, -math.inf
        if (folder / FIGURES).is_file():
            kept = read_json(folder / FIGURES, "start over with --fresh")
            if kept["step"] <= start:
                self.step, self.figures, self._score = kept["step"], kept["figures"], kept["score"]

    def resume(self, worse: int) -> None:
        """Put back how many validations in a row were worse."""
        self._worse = worse

    @property
    def worse(self) -> int:
        """Validations since the best one."""
        return self._worse

    def validate(self, step: int, model: nn.Module, write: bool) -> dict[str, float]:
        """Measure, keep the model if it is the best so far, and return the figures. Only one process may `write`."""
        from safetensors.torch import save_file

        figures = self._measure()
        if score(figures) <= self._score:
            self._worse += 1
            return figures
        self.step, self.figures, self._score, self._worse = step, figures, score(figures), 0
        if write:
            with atomic_folder(self._folder) as temporary:
                weights = {name: value.detach().cpu().contiguous() for name, value in model.state_dict().items()}
                save_file(weights, temporary / WEIGHTS)
                content = {"step": step, "figures": figures, "score": self._score}
                (temporary / FIGURES).write_text(json.dumps(content))
        return figures

    @property
    def over(self) -> bool:
        """Whether there were more worse validations in a row than patience has."""
        return self._patience is not None and self._worse >= self._patience

    def restore(self, model: nn.Module) -> None:
        """Give the model the best weights."""
        from safetensors.torch import load_file

        with torch.no_grad():
            model.load_state_dict(load_file(self._folder / WEIGHTS))
