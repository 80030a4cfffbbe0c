"""A stage of dcclip that trains in fp64: python benchmarks/train/double.py align RECIPE [options of `dcclip align`]

Sums in another order differ by 1e-16 there and not by 1e-7, so that no activation comes to the other side of a ReLU's
kink, where a gradient jumps. Data, teachers and checkpoints are as always.
"""

from __future__ import annotations

from typing import Any

import torch

from dcclip_cli.__main__ import main
from dcclip_cli.train import stage
from dcclip_cli.train.task import TrainingTask
from dcclip_cli.train.trainer import Trainer


class DoubleTrainer(Trainer):
    """A trainer of fp64 weights, which makes all that becomes a float from then on a double."""

    def __init__(self, task: TrainingTask, *others: Any) -> None:
        torch.set_default_dtype(torch.float64)
        torch.Tensor.float = torch.Tensor.double  # type: ignore[method-assign,assignment]
        super().__init__(task.double(), *others)


if __name__ == "__main__":
    stage.Trainer = DoubleTrainer  # type: ignore[misc]
    main()
