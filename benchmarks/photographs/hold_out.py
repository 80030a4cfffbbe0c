"""Class folders split by a hash of each file's name: four fifths to learn from, one fifth to
measure with.

    python benchmarks/photographs/hold_out.py FOLDER OUT

FOLDER has a folder of images for each class and classes.yaml (`cat: {en: cat, zh: 猫}`). Writes
OUT/train and OUT/held, class folders both, and OUT/labels.txt, the names of the classes in both
languages, one in each line.
"""

from __future__ import annotations

import argparse
import hashlib
import shutil
from collections import Counter
from pathlib import Path

import yaml

FIFTHS = 5


def is_held_out(name: str) -> bool:
    """Whether a file is in the fifth to measure with, by its name without the suffix."""
    return int(hashlib.sha256(name.encode()).hexdigest(), 16) % FIFTHS == 0


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("out", type=Path)
    chosen = parser.parse_args()
    names = yaml.safe_load((chosen.folder / "classes.yaml").read_text("utf-8"))
    counts: Counter[str] = Counter()
    for file in sorted(file for name in names for file in (chosen.folder / name).iterdir()):
        part = "held" if is_held_out(file.stem) else "train"
        target = chosen.out / part / file.parent.name / file.name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, target)
        counts[part] += 1
    for part in counts:
        shutil.copyfile(chosen.folder / "classes.yaml", chosen.out / part / "classes.yaml")
    labels = dict.fromkeys(
        names[name][language] for name in sorted(names) for language in ("en", "zh")
    )
    (chosen.out / "labels.txt").write_text("\n".join(labels) + "\n", "utf-8")
    print(
        ", ".join(f"{part} {count:,}" for part, count in sorted(counts.items())),
        f"{len(labels)} labels",
        sep=", ",
    )


if __name__ == "__main__":
    main()
