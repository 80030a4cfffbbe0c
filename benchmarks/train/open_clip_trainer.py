"""open_clip's own trainer on our pairs, and its speed."""

from __future__ import annotations

import csv
import re
import statistics
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from dcclip_cli.data.pair import Language, PairDataset
from dcclip_cli.data.samplers import EpochBatchSampler
from dcclip_cli.model.preprocess import flatten


def write_rows(
    folder: Path,
    pictures: Path,
    table: PairDataset,
    steps: int,
    batch_size: int,
    seed: int,
    languages: Sequence[Language],
) -> Path:
    """A CSV for --train-data with a row for each picture of each step, and the pictures as PNGs on
    white.

    A row has one caption in one of the languages, both drawn at random, a pair's first caption
    seven times in ten.
    """
    files = [pictures.resolve() / f"{number:05}.png" for number in range(len(table))]
    if not files[-1].is_file():
        pictures.mkdir(parents=True, exist_ok=True)
        for number, file in enumerate(files):
            flatten(table.decoded(number)).save(file, compress_level=1)
    random = np.random.default_rng(seed)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "train.csv"
    with path.open("w", encoding="utf-8", newline="") as stream:
        writer = csv.writer(stream, delimiter="\t")
        writer.writerow(("filepath", "title"))
        for samples in EpochBatchSampler(table, batch_size, seed)(0, steps):
            for number, _ in samples:
                captions = table.captions(languages[random.integers(len(languages))])[number]
                has_other = len(captions) > 1 and random.random() > 0.7
                writer.writerow(
                    (
                        files[number],
                        captions[1 + random.integers(len(captions) - 1) if has_other else 0],
                    )
                )
    return path


def train(
    start: Path,
    rows: Path,
    folder: Path,
    batch_size: int,
    precision: str,
    seed: int,
    *more: str,
    threads: int = 1,
) -> dict[str, Any]:
    """Train the model directory `start` on all rows once, in `folder`; the weights that it comes
    to.
    """
    own_parsed = {
        "model": f"local-dir:{start}",
        "train-data": rows,
        "dataset-type": "csv",
        "batch-size": batch_size,
        "epochs": 1,
        "workers": 1,
        "precision": precision,
        "lr": 1e-3,
        "wd": 0.05,
        "beta1": 0.9,
        "beta2": 0.98,
        "eps": 1e-6,
        "warmup": 20,
        "grad-clip-norm": 1.0,
        "log-every-n-steps": 10,
        "seed": seed,
        "logs": folder,
        "name": "run",
    }
    flags = [part for name, value in own_parsed.items() for part in (f"--{name}", str(value))]
    begin = (
        f"import torch; torch.set_num_threads({threads}); from open_clip_train.main import main; "
    )
    with (folder / "log").open("w", encoding="utf-8") as stream:
        command = [sys.executable, "-c", f"{begin}import sys; main(sys.argv[1:])", *flags, *more]
        subprocess.run(command, check=True, stdout=stream, stderr=subprocess.STDOUT)
    checkpoint = folder / "run/checkpoints/epoch_1.pt"
    weights: dict[str, Any] = torch.load(checkpoint, map_location="cpu", weights_only=True)[
        "state_dict"
    ]
    return weights


def seconds_of_a_step(folder: Path) -> float:
    """What a step took, reading pictures included, without the first one and the ten after it."""
    times_of_batches = re.findall(r"Batch \(t\): ([\d.]+)", (folder / "log").read_text("utf-8"))
    return statistics.mean(map(float, times_of_batches[2:]))
