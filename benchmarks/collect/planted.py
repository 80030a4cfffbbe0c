"""How reliably `collect` drops faulty pairs for the right reason and keeps clean ones, on real pairs with faults.

    python benchmarks/collect/planted.py DATA DRAWINGS WORK [--each 60] [--seed 0] [--show 5]

DATA contains the real images (see pictures.py), DRAWINGS is `package/assets` of the npm package
@lobehub/fluent-emoji-3d; the corpus and the run are written to WORK/planted. Prints for each fault how many items were
dropped for the right reason, and for each language how many clean pairs lost their captions.
"""

import argparse
import shutil
import subprocess
import sys
from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path
from random import Random

import pyarrow.parquet as pq
from corpus import RIGHT, Planter, write
from layouts import Item
from pictures import Pool, Real, drawings, pool

from dcclip_cli.data.dataset import open_pairs
from dcclip_cli.data.pair import LANGUAGES, Pair


class Outcome:
    """The result for each item, by its name: the drop reasons of the pair or its captions, and the pair if kept."""

    def __init__(self, known: dict[tuple[str, str], Item], folder: Path) -> None:
        self.items = list(known.values())
        self.reasons: dict[str, set[str]] = defaultdict(set)
        for row in pq.read_table(folder / "dropped.parquet", columns=["origin", "reason"]).to_pylist():
            source, _, key = row["origin"].partition(":")
            self.reasons[known[source, key].name].add(row["reason"])
        self.kept: dict[str, Pair] = {}
        for pair in open_pairs(folder):
            self.kept[known[pair.meta["source"], str(pair.meta["origin"])].name] = pair

    def tell_faults(self, show: int) -> None:
        for fault, right in RIGHT.items():
            items = [item for item in self.items if item.fault == fault]
            wrong = [item for item in items if not self.reasons[item.name] & right]
            share = 100 * (1 - len(wrong) / len(items))
            found = Counter(reason for item in wrong for reason in self.reasons[item.name] or {"kept"})
            print(f"{fault:<32}{len(items):>6}{share:>8.1f} %  {dict(found) or ''}")
            for item in wrong[:show]:
                print(f"    {item.name}: {sorted(self.reasons[item.name])} {str(item.captions)[:200]}")

    def tell_clean(self, show: int) -> None:
        for language in LANGUAGES:
            items = [item for item in self.items if item.fault is None and language in item.captions]
            lost = [item for item in items if not (pair := self.kept.get(item.name)) or not pair.captions(language)]
            found = Counter(reason for item in lost for reason in self.reasons[item.name])
            print(
                f"{'lost of the clean, ' + language:<32}{len(items):>6}{100 * len(lost) / len(items):>8.2f} %", end="  "
            )
            print(dict(found))
            for item in lost[:show]:
                print(f"    {item.name}: {sorted(self.reasons[item.name])} {item.captions}")


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("work", type=Path)
    parser.add_argument("--each", type=int, default=60, help="items of each fault")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--show", type=int, default=0, help="wrong items to print for each line")


def measure(real: Pool, drawn: Sequence[Real], options: argparse.Namespace) -> None:
    """Plant the faults, run `collect`, print the result for each fault and language."""
    root = options.work.resolve() / "planted"
    shutil.rmtree(root, ignore_errors=True)
    random = Random(options.seed)
    known = write(Planter(real, drawn, options.each, random), root, random)
    print(f"{len(known):,} pairs, {len(RIGHT)} kinds of fault")
    command = [sys.executable, "-m", "dcclip_cli", "collect", "planted.yaml", "--out", "run"]
    subprocess.run(command, cwd=root, check=True)
    outcome = Outcome(known, root / "run/collect")
    outcome.tell_faults(options.show)
    outcome.tell_clean(options.show)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("drawings", type=Path)
    add_options(parser)
    options = parser.parse_args()
    measure(pool(options.data), drawings(options.drawings), options)


if __name__ == "__main__":
    main()
