"""Several processes give the results of one, and none outlives the command."""

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import psutil
import pytest

from dcclip_cli.data.pair import Pair
from dcclip_cli.errors import DcclipError
from dcclip_cli.eval.dataset import ImageTransform
from dcclip_cli.eval.datasets import open_dataset
from dcclip_cli.eval.embedding import ImageReader, device_of, embed_in_processes
from dcclip_cli.eval.evaluate import EvalOptions, evaluate, open_datasets
from dcclip_cli.model.reference import ModelReference, resolve


@pytest.fixture
def folder(tmp_path: Path, pairs: list[Pair]) -> Path:
    """Class folders `红` and `blue`, with a broken image in one."""
    for number, pair in enumerate(pairs):
        file = tmp_path / "shapes" / ("红" if number % 3 else "blue") / f"{number:02}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(pair.image if number != 7 else b"no image")
    return tmp_path / "shapes"


def test_two_processes_give_the_same_results_as_one(folder: Path, pairs_file: Path, model_folder: Path) -> None:
    found = {}
    for count in (1, 2):
        options = EvalOptions(datasets=(str(folder), str(pairs_file)), batch_size=4, processes=count)
        found[count] = evaluate([resolve(str(model_folder))], open_datasets(options), options, device="cpu")
    assert [one.dataset for one in found[2]] == ["shapes", "train", "train"]
    for one, two in zip(found[1], found[2], strict=True):
        assert (one.metrics, one.details, one.corrupt, one.n) == (two.metrics, two.details, two.corrupt, two.n)
    assert list(found[2][0].corrupt) == ["红/07.png"]


def test_batches_come_in_order_whichever_process_does_them(pairs_file: Path, model_folder: Path) -> None:
    read = ImageReader(open_dataset(str(pairs_file)).images, ImageTransform(), {})
    with embed_in_processes(resolve(str(model_folder)), "cpu", "fp32", 2) as embed:
        batches = list(embed(range(40), read, 3, 1))
        assert [len(batch) for batch in batches] == [3] * 13 + [1]
        assert [index for batch in batches for index, _ in batch] == list(range(40))
        assert all(isinstance(vector, np.ndarray) for batch in batches for _, vector in batch)
        for child in multiprocessing.active_children():
            child.kill()
        with pytest.raises(DcclipError, match="a process with a copy of the model was killed") as caught:
            list(embed(range(40), read, 3, 1))
    assert "--processes" in caught.value.hint


def test_processes_take_the_gpus_by_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    folder, bundle = ModelReference("folder", "a", ""), ModelReference("bundle", "b", "")
    assert [device_of(folder, "auto", number) for number in (0, 1)] == ["auto", "auto"]  # there is none
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    assert [device_of(folder, "auto", number) for number in (0, 1, 2)] == ["cuda:0", "cuda:1", "cuda:0"]
    assert device_of(folder, "cpu", 1) == "cpu" and device_of(bundle, "cuda", 1) == "cuda"


def test_processes_end_with_a_command_that_is_killed(pairs_file: Path, model_folder: Path, tmp_path: Path) -> None:
    command = ["-m", "dcclip_cli", "eval", "--dataset", str(pairs_file), "--model", str(model_folder)]
    running = subprocess.Popen([sys.executable, *command, "--processes", "2"], stdout=subprocess.DEVNULL)
    children: list[psutil.Process] = []
    while len(children) < 2 and running.poll() is None:
        time.sleep(0.05)
        children = psutil.Process(running.pid).children(recursive=True)
    time.sleep(0.5)
    os.kill(running.pid, signal.SIGKILL)
    running.wait()
    _, alive = psutil.wait_procs(children, timeout=30)
    assert children and not alive
