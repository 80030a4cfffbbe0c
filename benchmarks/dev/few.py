"""The small recipe on few pairs and few steps, run through the command line, for benchmarks of the
training loop.
"""

from __future__ import annotations

import hashlib
import sys
from pathlib import Path

from dcclip_cli.data.dataset import open_pairs, write_parquet

ROOT = Path(__file__).resolve().parents[2]
RECIPE, TRAIN = ROOT / "benchmarks/train/small.yaml", ROOT / "recipes/quickstart/train.parquet"
PAIRS = 512
WEIGHTS = "model/open_clip_model.safetensors"
STAGES = ("distill", "align")


def few_pairs(folder: Path) -> Path:
    """The first pairs of the quick start's as a Parquet file in `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    table = open_pairs(str(TRAIN))
    file = folder.resolve() / "few.parquet"
    write_parquet(file, [table[number] for number in range(PAIRS)])
    return file


def arguments(stage: str, pairs: Path, out: Path, *sets: str) -> list[str]:
    """What `dcclip` is called with for this stage, or for `run`; `sets` hold for both stages where
    they name none.
    """
    further = [
        pair if "." in pair.partition("=")[0] else f"{stage}.{pair}"
        for pair in sets
        for stage in STAGES
    ]
    values = dict.fromkeys(
        [
            f"data.train={pairs}",
            f"data.validation={pairs}",
            *(f"{name}.augmentations=1" for name in STAGES),
            *further,
        ]
    )
    return [
        stage,
        str(RECIPE),
        "--out",
        str(out),
        "-q",
        *(part for pair in values for part in ("--set", pair)),
    ]


def dcclip(*given: str) -> list[str]:
    return [sys.executable, "-m", "dcclip_cli", *given]


def sha256(run: Path) -> dict[str, str]:
    """The sha256 of each stage's weights in a run."""
    return {
        stage: hashlib.sha256((run / stage / WEIGHTS).read_bytes()).hexdigest() for stage in STAGES
    }
