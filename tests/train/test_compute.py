"""Threads of a training process, and what a stage decides once."""

import os
from pathlib import Path

import pytest
import torch

from dcclip_cli.progress import Silent
from dcclip_cli.train import compute
from dcclip_cli.train.options import TrainOptions


@pytest.fixture
def chosen(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The numbers of threads that torch is given."""
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    requests: list[int] = []
    monkeypatch.setattr(torch, "set_num_threads", requests.append)
    return requests


def machine(monkeypatch: pytest.MonkeyPatch, cores: int, busy: float) -> None:
    monkeypatch.setattr("dcclip_cli.machine.cores", lambda: cores)
    monkeypatch.setattr("dcclip_cli.machine.busy_cores", lambda: busy)


@pytest.mark.parametrize(
    ("cores", "busy", "workers", "threads"),
    [
        *((1, 0, 1, 1), (2, 0.1, 1, 2), (2, 0, 0, 2), (4, 0, 1, 3), (8, 0.3, 1, 7), (8, 0, 8, 5)),
        *((2, 2, 1, 1), (2, 0.9, 1, 1), (8, 6, 1, 2), (8, 8, 1, 1), (8, 1, 1, 7)),
    ],
)
def test_other_work_and_loading_processes_keep_their_cores(
    cores: int, busy: float, workers: int, threads: int, chosen: list[int], tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    machine(monkeypatch, cores, busy)
    compute.use_threads(TrainOptions(steps=1, workers=workers), tmp_path, Silent())
    assert chosen == [threads]


def test_threads_of_the_recipe_win_and_those_of_the_environment_come_next(
    chosen: list[int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(os.environ, "OMP_NUM_THREADS", "3")
    compute.use_threads(TrainOptions(steps=1, threads=5), tmp_path, Silent())
    compute.use_threads(TrainOptions(steps=1), tmp_path, Silent())
    assert chosen == [5]


def test_a_resumed_stage_has_the_threads_it_began_with(
    chosen: list[int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine(monkeypatch, 2, 0)
    compute.use_threads(TrainOptions(steps=1), tmp_path / "distill", Silent())
    machine(monkeypatch, 2, 2)
    compute.use_threads(TrainOptions(steps=1), tmp_path / "distill", Silent())
    compute.use_threads(TrainOptions(steps=1), tmp_path / "align", Silent())
    assert chosen == [2, 2, 1]
