"""What the loop asks of a module that it trains."""

from __future__ import annotations

from abc import ABC, abstractmethod

from torch import Tensor, nn

from dcclip_cli.data.collator import Batch


class Trainable(nn.Module, ABC):
    """Forward: a batch -> named, weighted loss terms whose sum is minimised."""

    @abstractmethod
    def forward(self, batch: Batch) -> dict[str, Tensor]: ...

    @property
    def kept(self) -> nn.Module:
        """The part whose weights outlive training: what is averaged, and chosen by validation."""
        return self

    @property
    def chance(self) -> dict[str, float]:
        """The values that terms of the last batch would have if the model were guessing, where that is known."""
        return {}

    def begin_step(self, done: float) -> None:  # most modules don't care
        """Hear what share of the run, in 0..1, is over."""

    def figures(self) -> dict[str, float]:
        """What else is worth a place in the log."""
        return {}
