"""Threads of a training process, and what a stage decides once."""

import os
from pathlib import Path

import pytest
import torch

from dcclip_cli.train import compute
from dcclip_cli.train.options import TrainOptions


@pytest.fixture
def chosen(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The numbers of threads that torch is given."""
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    requests: list[int] = []
    monkeypatch.setattr(torch, "set_num_threads", requests.append)
    return requests


@pytest.mark.parametrize(
    ("cores", "workers", "threads"), [(1, 1, 1), (2, 1, 2), (2, 0, 2), (4, 1, 3), (8, 1, 7), (8, 8, 5)]
)
def test_loading_processes_keep_their_cores(
    cores: int, workers: int, threads: int, chosen: list[int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dcclip_cli.core.machine.cores", lambda: cores)
    compute.use_threads(TrainOptions(steps=1, workers=workers), tmp_path)
    assert chosen == [threads]


def test_threads_of_the_recipe_win_and_those_of_the_environment_come_next(
    chosen: list[int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(os.environ, "OMP_NUM_THREADS", "3")
    compute.use_threads(TrainOptions(steps=1, threads=5), tmp_path)
    compute.use_threads(TrainOptions(steps=1), tmp_path)
    assert chosen == [5]


def test_a_resumed_stage_has_the_threads_it_began_with(
    chosen: list[int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for cores, stage in ((2, "distill"), (4, "distill"), (4, "align")):
        monkeypatch.setattr("dcclip_cli.core.machine.cores", lambda count=cores: count)
        compute.use_threads(TrainOptions(steps=1), tmp_path / stage)
    assert chosen == [2, 2, 3]
