"""Memory of `collect` with ten times as many shards.

    python benchmarks/collect/memory.py MANY WORK [--shards 20]

MANY is the output of many.py, with at least ten times as many tars. Prints the peaks of proportional memory for both.
"""

import argparse
import shutil
from pathlib import Path

from running import command, first_tars, kept, measured, recipe


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("many", type=Path)
    parser.add_argument("work", type=Path)
    parser.add_argument("--shards", type=int, default=20)
    options = parser.parse_args()
    peaks = []
    for shards in (options.shards, 10 * options.shards):
        root = options.work.resolve() / "memory" / str(shards)
        shutil.rmtree(root, ignore_errors=True)
        read = recipe(root, first_tars(options.many, root / "tars", shards))
        cost = measured(command(read, root / "out", "--workers", "2", "-q"))
        peaks.append(cost.megabytes)
        print(
            f"{shards:>5} shards, {kept(root / 'out/collect'):>7,} pairs kept: all processes {cost.megabytes:7.0f} MB, "
            f"the largest {cost.largest_megabytes:7.0f} MB, {cost.seconds:6.1f} s",
            flush=True,
        )
    print(f"ten times the shards take {peaks[1] / peaks[0]:.2f} times the memory")


if __name__ == "__main__":
    main()
