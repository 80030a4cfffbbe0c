"""Guards of training: steps that are not finite are undone, losses that stay at chance level are reported."""

from __future__ import annotations

import math
from pathlib import Path

import torch
from torch import Tensor, nn

from dcclip_cli.errors import DcclipError, Message
from dcclip_cli.progress import Progress
from dcclip_cli.train.checkpoint import TrainState

MAX_SKIPPED_STEPS = 10  # in a row, before the run ends
_AT_CHANCE = 0.98  # fraction of the loss at chance level above which nothing has been learned


class NonFiniteGuard:
    """Undoes steps whose loss or gradient is not finite, and ends a run that has only such steps.

    A forward pass with such numbers spoils the running statistics of batch norms: they are restored.
    """

    def __init__(self, task: nn.Module, folder: Path) -> None:
        self._folder = folder
        by_type: dict[torch.dtype, list[Tensor]] = {}
        for buffer in task.buffers():
            by_type.setdefault(buffer.dtype, []).append(buffer)
        self._buffers = [(buffers, [buffer.clone() for buffer in buffers]) for buffers in by_type.values()]

    @torch.no_grad()
    def accept(self, state: TrainState) -> None:
        """Note a finite step."""
        state.skipped_in_a_row = 0
        for buffers, saved in self._buffers:
            torch._foreach_copy_(saved, buffers)

    @torch.no_grad()
    def restore(self) -> None:
        """Give batch norms the statistics that they had after the last step."""
        for buffers, saved in self._buffers:
            torch._foreach_copy_(buffers, saved)

    def skip(self, state: TrainState, terms: dict[str, Tensor], norm: Tensor) -> None:
        """Note a step that is not finite. Raises DcclipError after too many in a row."""
        state.skipped_steps += 1
        state.skipped_in_a_row += 1
        self.restore()
        if state.skipped_in_a_row < MAX_SKIPPED_STEPS:
            return
        wrong = [name for name, term in terms.items() if not math.isfinite(float(term))]
        if not wrong and not math.isfinite(float(norm)):
            wrong = ["the gradient"]
        what = ", ".join(wrong) or Message("the loss of another process")
        what = Message("step {}: {} is not finite, for {} steps in a row", state.step, what, state.skipped_in_a_row)
        hint = Message("lower optimizer.lr, or raise warmup_steps; the metrics are in {}/metrics.jsonl", self._folder)
        raise DcclipError(what, hint)


def warn_at_chance(terms: dict[str, Tensor], chance: dict[str, Tensor], step: int, progress: Progress) -> None:
    """Report contrastive losses that are still at chance level, and the usual causes."""
    for name, level in ((name, float(value)) for name, value in chance.items()):
        if level and name in terms and float(terms[name]) > _AT_CHANCE * level:
            progress.say(
                Message(
                    "warning: after {} steps {} is {:.3f}, and chance level is {:.3f}. "
                    "Usual causes: optimizer.lr too high or too low; captions that do not belong to their images; one "
                    "caption for most of them",
                    step,
                    name,
                    float(terms[name]),
                    level,
                )
            )
