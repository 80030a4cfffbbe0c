"""Threads of a training process."""

import os

import pytest
import torch

from dcclip_cli.train import stage
from dcclip_cli.train.options import LoopOptions


@pytest.mark.parametrize(
    ("cores", "workers", "threads"), [(1, 1, 1), (2, 1, 2), (2, 0, 2), (4, 1, 3), (8, 1, 7), (8, 8, 5)]
)
def test_loading_processes_keep_their_cores_and_training_more_than_half(
    cores: int, workers: int, threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(stage, "cores", lambda: cores)
    chosen: list[int] = []
    monkeypatch.setattr(torch, "set_num_threads", chosen.append)
    stage.use_process(LoopOptions(steps=1, workers=workers))
    assert chosen == [threads]


def test_threads_of_the_recipe_win_and_those_of_the_environment_come_next(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(os.environ, "OMP_NUM_THREADS", "3")
    chosen: list[int] = []
    monkeypatch.setattr(torch, "set_num_threads", chosen.append)
    stage.use_process(LoopOptions(steps=1, threads=5))
    stage.use_process(LoopOptions(steps=1))
    assert chosen == [5]
