"""EMA of the weights, and the best weights by validation."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from dcclip_cli.files import atomic_folder, read_json

WEIGHTS, METRICS = "weights.safetensors", "metrics.json"


def make_ema(model: nn.Module, decay: float | None) -> AveragedModel | None:
    """An exponential moving average of the model's weights and batch norm statistics, if a decay is given."""
    return AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(decay), use_buffers=True) if decay else None


@contextmanager
def ema_weights(model: nn.Module, ema: AveragedModel | None) -> Iterator[None]:
    """The model has the EMA's weights while the block runs."""
    if ema is None:
        yield
        return
    own = {name: value.detach().clone() for name, value in model.state_dict().items()}
    model.load_state_dict(ema.module.state_dict())
    try:
        yield
    finally:
        model.load_state_dict(own)


class BestCheckpoint:
    """The best weights so far by validation, on disk. `step` is 0 and `metrics` empty before the first validation."""

    def __init__(self, folder: Path, resumed_step: int) -> None:
        """A checkpoint that was written after `resumed_step` is ignored: training will get there again."""
        self._folder = folder
        self.metrics: dict[str, float] = {}
        self.step, self._score = 0, -math.inf
        if (folder / METRICS).is_file():
            saved = read_json(folder / METRICS, "start over with --fresh")
            if saved["step"] <= resumed_step:
                self.step, self.metrics, self._score = saved["step"], saved["metrics"], saved["score"]

    def update(self, step: int, metrics: dict[str, float], model: nn.Module, write: bool) -> bool:
        """Keep the model if its mean metric is the best so far, and return whether it is. One process may `write`."""
        from safetensors.torch import save_file

        score = sum(metrics.values()) / len(metrics)
        if score <= self._score:
            return False
        self.step, self.metrics, self._score = step, metrics, score
        if write:
            with atomic_folder(self._folder) as temporary:
                weights = {name: value.detach().cpu().contiguous() for name, value in model.state_dict().items()}
                save_file(weights, temporary / WEIGHTS)
                content = {"step": step, "metrics": metrics, "score": score}
                (temporary / METRICS).write_text(json.dumps(content))
        return True

    def restore(self, model: nn.Module) -> None:
        """Give the model the best weights."""
        from safetensors.torch import load_file

        with torch.no_grad():
            model.load_state_dict(load_file(self._folder / WEIGHTS))
