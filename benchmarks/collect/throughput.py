"""How many pairs a second does `collect` get through, beside img2dataset and beside `datasets.filter` with its rules?

    python benchmarks/collect/throughput.py MANY WORK [--rounds 3] [--img2dataset PYTHON]

MANY is what many.py wrote. Each round runs the programs one after the other, so that a change in the machine's load
meets all of them alike; the ratios are of the medians. `collect` decodes and looks at pictures and stores them as they
came. img2dataset (in an environment of its own: --img2dataset names its python) reads file:// addresses and checks
sizes; it runs twice, told to store pictures as they came (`skip_reencode`), which is the same way, and re-encoding them
as JPEG, which is its default. `datasets` asks the very rules of `collect` of every pair. Neither looks for duplicates
or writes a report; `collect` does both.
"""

import argparse
import json
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pyarrow.parquet as pq
from runs import command, kept, recipe

WORKERS = 2
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
from dcclip_cli.collect.candidate import Candidate
from dcclip_cli.collect.judge import judge
from dcclip_cli.collect.options import CollectOptions
from dcclip_cli.data.pair import Pair

OPTIONS = CollectOptions(sources=[{"kind": "tars", "path": sys.argv[1]}])

def fit(image, record):
    pair = Pair("", image["bytes"], (record["zh"],), (record["en"],))
    return judge(Candidate(pair), OPTIONS).drop is None

if __name__ == "__main__":
    tars = sys.argv[1] + "/*.tar"
    pairs = datasets.load_dataset("webdataset", data_files=tars, split="train", num_proc=2, cache_dir=sys.argv[2])
    pairs = pairs.cast_column("jpg", datasets.Image(decode=False))
    pairs.filter(fit, input_columns=["jpg", "json"], num_proc=2).save_to_disk(sys.argv[2] + "/kept", num_proc=2)
"""


def timed(run: Callable[[], object]) -> float:
    begin = time.monotonic()
    run()
    return time.monotonic() - begin


def quiet(*arguments: str) -> None:
    ended = subprocess.run(arguments, capture_output=True, text=True)
    if ended.returncode:
        raise SystemExit(ended.stderr[-2000:])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("many", type=Path)
    parser.add_argument("work", type=Path)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--img2dataset", help="a python that can import img2dataset; left out if not given")
    options = parser.parse_args()
    tars, urls = str(options.many.resolve() / "tars"), str(options.many.resolve() / "urls.parquet")
    pairs = pq.read_metadata(urls).num_rows
    root = options.work.resolve() / "throughput"
    out = root / "out"

    programs: dict[str, Callable[[], object]] = {
        "collect": lambda: quiet(*command(recipe(root, tars), out, "--workers", str(WORKERS))),
        "datasets": lambda: quiet(sys.executable, "-c", DATASETS, tars, str(out)),
    }
    if options.img2dataset:
        fetch = (options.img2dataset, "-c", IMG2DATASET, urls, str(out))
        programs["img2dataset"] = lambda: quiet(*fetch, "kept")
        programs["img2dataset, re-encoding"] = lambda: quiet(*fetch, "re-encoded")
    rates: dict[str, list[float]] = {name: [] for name in programs}
    for number in range(options.rounds):
        for name, run in programs.items():
            shutil.rmtree(out, ignore_errors=True)
            rates[name].append(pairs / timed(run))
            told = f", kept {kept(out / 'collect'):,}" if name == "collect" else ""
            print(f"round {number + 1}  {name:<24} {rates[name][-1]:8.1f} pairs/s{told}", flush=True)
    medians = {name: statistics.median(found) for name, found in rates.items()}
    print(json.dumps({"pairs": pairs, **{name: round(rate, 1) for name, rate in medians.items()}}))
    for name in [name for name in medians if name != "collect"]:
        print(f"collect / {name}: {medians['collect'] / medians[name]:.2f}")


if __name__ == "__main__":
    main()
