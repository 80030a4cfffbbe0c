"""Memory of `collect` with more and more shards.

    python benchmarks/collect/memory.py MANY WORK [--shards 20 200]

MANY is the output of many.py. Prints the peaks of proportional memory for each number of its tars, and compares them
with those of the first.
"""

import argparse
import shutil
from pathlib import Path

from running import command, first_tars, kept, measured, recipe


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("many", type=Path)
    parser.add_argument("work", type=Path)
    parser.add_argument("--shards", type=int, nargs="+", default=[20, 200])
    options = parser.parse_args()
    first = None
    for shards in options.shards:
        root = options.work.resolve() / "memory" / str(shards)
        shutil.rmtree(root, ignore_errors=True)
        read = recipe(root, first_tars(options.many, root / "tars", shards))
        cost = measured(command(read, root / "out", "--workers", "2", "-q"))
        first = first or cost
        peaks = {"all processes": "megabytes", "main": "main_megabytes", "worker": "worker_megabytes"}
        sizes = [
            f"{name} {getattr(cost, field):.0f} MB ({getattr(cost, field) / getattr(first, field):.2f} x)"
            for name, field in peaks.items()
        ]
        pairs = kept(root / "out/collect")
        print(f"{shards} shards, {pairs:,} pairs kept: {', '.join(sizes)}, {cost.seconds:.1f} s", flush=True)


if __name__ == "__main__":
    main()
