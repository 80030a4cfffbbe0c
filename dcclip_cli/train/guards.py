"""What tells a run that goes wrong from one that goes well, and says so early?"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from dcclip_cli.errors import DcclipError
from dcclip_cli.progress import Progress

_AT_CHANCE = 0.98  # share of the loss of guessing above which a contrast counts as having learnt nothing


class NonFiniteGuard:
    """Counts steps whose loss or gradient is not finite, which are left out, and stops a run that has only such.

    A forward pass with such numbers in it spoils batch norms' running statistics: these are put back.
    """

    def __init__(self, stage: nn.Module, most_in_a_row: int, folder: Path) -> None:
        self.skipped = 0
        self._most, self._folder, self._in_a_row = most_in_a_row, folder, 0
        self._buffers = [buffer for buffer in stage.buffers() if buffer.is_floating_point()]
        self._before = [buffer.clone() for buffer in self._buffers]

    @torch.no_grad()
    def good(self) -> None:
        """Note a step that went well."""
        self._in_a_row = 0
        for kept, buffer in zip(self._before, self._buffers, strict=True):
            kept.copy_(buffer)

    @torch.no_grad()
    def bad(self, step: int, terms: Mapping[str, Tensor], norm: float) -> None:
        """Note a step to be left out. Raises DcclipError where there were too many in a row."""
        self.skipped += 1
        self._in_a_row += 1
        for kept, buffer in zip(self._before, self._buffers, strict=True):
            buffer.copy_(kept)
        if self._in_a_row < self._most:
            return
        wrong = [name for name, term in terms.items() if not math.isfinite(float(term))]
        if not wrong and not math.isfinite(norm):
            wrong = ["the gradient"]
        what = ", ".join(wrong) or "the loss of another process"
        raise DcclipError(
            f"step {step}: {what} is not finite, for {self._in_a_row} steps in a row",
            f"lower optimizer.lr, or raise warmup_steps; the figures are in {self._folder}/metrics.jsonl",
        )


def warn_at_chance(terms: Mapping[str, float], chance: Mapping[str, float], step: int, progress: Progress) -> None:
    """Say which contrasts are still where guessing would be, and what that usually comes from."""
    stuck = [name for name, guessing in chance.items() if guessing and terms.get(name, 0.0) > _AT_CHANCE * guessing]
    for name in stuck:
        progress.say(
            f"warning: after {step} steps {name} is {terms[name]:.3f}, and guessing gives {chance[name]:.3f}. Usual "
            "causes: optimizer.lr too high or too low; captions that do not belong to their pictures; one caption for "
            "most of them"
        )
