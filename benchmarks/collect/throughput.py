"""Pairs per second of `collect`, compared with img2dataset and with `datasets.filter` using the same filters.

    python benchmarks/collect/throughput.py MANY WORK [--rounds 3] [--tars 20] [--img2dataset PYTHON]

MANY is the output of many.py. Each round runs the programs one after the other, so that a change in the machine's load
affects all of them; the ratios are of the medians. The CPU time of all processes is printed as well, since it is
more meaningful on a shared machine. `collect` decodes and filters images and stores the original files. img2dataset (in
an environment of its own: --img2dataset is its Python) reads file:// URLs and checks sizes; it runs twice, storing the
original files (`skip_reencode`), like `collect`, and re-encoding them as JPEG, its default. `datasets` applies the
filters of `collect` to every pair. Neither of them finds duplicates or writes a report; `collect` does both.
"""

import argparse
import ctypes
import os
import resource
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import pyarrow.parquet as pq
from running import command, first_tars, kept, recipe

from dcclip_cli.data.dataset import open_pairs

WORKERS = 2
_ADOPT_ORPHANS = 36  # Linux's PR_SET_CHILD_SUBREAPER
IMG2DATASET = """
import sys
from img2dataset import download
if __name__ == "__main__":
    download(url_list=sys.argv[1], output_folder=sys.argv[2], input_format="parquet", url_col="url",
             caption_col="caption", save_additional_columns=["zh", "en"], output_format="webdataset",
             resize_mode="no", skip_reencode=sys.argv[3] == "kept", min_image_size=32, max_aspect_ratio=3.0,
             processes_count=2, thread_count=16, number_sample_per_shard=1000, enable_wandb=False,
             compute_hash="sha256")
"""
DATASETS = """
import sys
import datasets
from dcclip_cli.curation.sources.base import Candidate
from dcclip_cli.curation.filter_pair import filter_pairs
from dcclip_cli.curation.options import CollectOptions
from dcclip_cli.data.pair import Pair

OPTIONS = CollectOptions(sources=[{"kind": "tars", "path": sys.argv[1]}])

def fit(image, record):
    pair = Pair("", image["bytes"], (record["zh"],), (record["en"],))
    return next(filter_pairs([Candidate(pair)], OPTIONS)).drop is None

if __name__ == "__main__":
    tars = sys.argv[1] + "/*.tar"
    pairs = datasets.load_dataset("webdataset", data_files=tars, split="train", num_proc=2, cache_dir=sys.argv[2])
    pairs = pairs.cast_column("jpg", datasets.Image(decode=False))
    pairs.filter(fit, input_columns=["jpg", "json"], num_proc=2).save_to_disk(sys.argv[2] + "/kept", num_proc=2)
"""


@dataclass(frozen=True)
class Cost:
    """Wall time and CPU time of one run."""

    seconds: float
    core_seconds: float


def timed(run: Callable[[], object]) -> Cost:
    begin, before = time.monotonic(), resource.getrusage(resource.RUSAGE_CHILDREN)
    run()
    seconds = time.monotonic() - begin
    with suppress(ChildProcessError):
        while True:  # wait for processes that outlive their command, to count them
            os.waitpid(-1, 0)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return Cost(seconds, after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime)


def quiet(*arguments: str) -> None:
    ended = subprocess.run(arguments, capture_output=True, text=True)
    if ended.returncode:
        raise SystemExit(ended.stderr[-2000:])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("many", type=Path)
    parser.add_argument("work", type=Path)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--tars", type=int, default=20, help="number of tars to read")
    parser.add_argument("--img2dataset", help="a Python that can import img2dataset; skipped if not given")
    options = parser.parse_args()
    ctypes.CDLL(None).prctl(_ADOPT_ORPHANS, 1)
    root = options.work.resolve() / "throughput"
    out = root / "out"
    tars = first_tars(options.many, root / "tars", options.tars)
    pairs = len(open_pairs(Path(tars)))
    urls = str(root / "urls.parquet")
    pq.write_table(pq.read_table(options.many / "urls.parquet").slice(0, pairs), urls)

    programs: dict[str, Callable[[], object]] = {
        "collect": lambda: quiet(*command(recipe(root, tars), out, "--workers", str(WORKERS))),
        "datasets": lambda: quiet(sys.executable, "-c", DATASETS, tars, str(out)),
    }
    if options.img2dataset:
        fetch = (options.img2dataset, "-c", IMG2DATASET, urls, str(out))
        programs["img2dataset"] = lambda: quiet(*fetch, "kept")
        programs["img2dataset, re-encoding"] = lambda: quiet(*fetch, "re-encoded")
    costs: dict[str, list[Cost]] = {name: [] for name in programs}
    print(f"{pairs:,} pairs; per second of wall time, then of CPU time")
    for number in range(options.rounds):
        for name, run in programs.items():
            shutil.rmtree(out, ignore_errors=True)
            costs[name].append(cost := timed(run))
            told = f", kept {kept(out / 'collect'):,}" if name == "collect" else ""
            rates = f"{pairs / cost.seconds:8.1f} {pairs / cost.core_seconds:8.1f} pairs/s"
            print(f"round {number + 1}  {name:<24} {rates}{told}", flush=True)
    medians = {
        name: Cost(
            statistics.median(one.seconds for one in found), statistics.median(one.core_seconds for one in found)
        )
        for name, found in costs.items()
    }
    collect = medians["collect"]
    for name, cost in medians.items():
        rates = f"{pairs / cost.seconds:8.1f} {pairs / cost.core_seconds:8.1f} pairs/s"
        ratios = f"{cost.seconds / collect.seconds:.2f} {cost.core_seconds / collect.core_seconds:.2f}"
        print(f"median   {name:<24} {rates}, collect / it {ratios}")


if __name__ == "__main__":
    main()
