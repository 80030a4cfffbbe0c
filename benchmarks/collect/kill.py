"""Whether a collection that is killed again and again ends with the same bytes as an uninterrupted one.

    python benchmarks/collect/kill.py MANY WORK [--kills 20] [--tars 10]

Kills with signal 9 at random moments, alternately the whole process group and only the first process, whose orphaned
children may still be writing when the next run begins. A kill counts only if it hits a running command: if the command
ends first, the next collection begins. Every finished output is compared with that of the uninterrupted run.
"""

import argparse
import shutil
import subprocess
import sys
import time
from pathlib import Path
from random import Random

from running import command, differences, first_tars, recipe

sys.path.append(str(Path(__file__).parent.parent))

from killing import killed


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("many", type=Path)
    parser.add_argument("work", type=Path)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--tars", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    root = options.work.resolve() / "kill"
    shutil.rmtree(root, ignore_errors=True)
    read = recipe(root, first_tars(options.many, root / "tars", options.tars))
    begin = time.monotonic()
    subprocess.run(command(read, root / "whole", "-q"), check=True)
    whole_s = time.monotonic() - begin

    random, kills, finished, wrong = Random(options.seed), 0, 0, []
    while kills < options.kills or not (root / "broken/collect").is_dir():
        after_s = random.uniform(0, whole_s) if kills < options.kills else None
        group = kills % 2 == 0
        if killed(command(read, root / "broken", "-q"), after_s, group):
            kills += 1
            print(
                f"kill {kills:>2} after {after_s:5.1f} s, {'all processes' if group else 'the first process'}",
                flush=True,
            )
            continue
        finished += 1
        wrong += differences(root / "whole/collect", root / "broken/collect")
        if kills < options.kills:
            shutil.rmtree(root / "broken")
    print(f"{kills} kills, {finished} finished; a whole run takes {whole_s:.1f} s; differing files: {wrong or 'none'}")


if __name__ == "__main__":
    main()
