"""Run bad inputs through all commands and count how they end: refused well, traceback, hang,
silently wrong, ...

    python -m benchmarks.dev.hostile.battery --cases 1000 --workers 2 --out failures.jsonl

Prints a Markdown table of counts; writes each failure to a JSONL file. Exits with 1 if there is
one.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import time
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from random import Random

from benchmarks.dev.hostile.cases import TABLES
from benchmarks.dev.hostile.corpus import make_corpus
from benchmarks.dev.hostile.run import FINE, QUIET, REFUSED, import_everything, run_case


def run_cases(options: argparse.Namespace, worker: int, work: Path) -> Counter[tuple[str, str]]:
    """Run a worker's cases, append the failures to a file, and count verdicts by table."""
    counts: Counter[tuple[str, str]] = Counter()
    make_corpus(work)
    cases = [case for name, table in TABLES.items() for case in table.draw(name, options.cases)]
    cases = [case for case in cases if any(part in case.name for part in options.only.split(","))]
    Random(0).shuffle(cases)
    for case in cases[worker :: options.workers]:
        verdict, why = run_case(case, work)
        counts[case.name.partition(":")[0], verdict] += 1
        if verdict not in (REFUSED, FINE):
            with options.out.open("a", encoding="utf-8") as stream:
                stream.write(
                    json.dumps({"case": case.name[:500], "verdict": verdict, "why": why}) + "\n"
                )
    return counts


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--only",
        default="",
        help="only cases whose name contains one of these, which commas separate",
    )
    parser.add_argument("--cases", type=int, default=1000)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--out", type=Path, default=Path("failures.jsonl"))
    parser.add_argument(
        "--work",
        type=lambda name: Path(name).absolute(),
        default="build/hostile",
        help="kept folder",
    )
    options = parser.parse_args()
    options.out.write_bytes(b"")
    os.environ |= QUIET
    import_everything()
    start, workers = time.monotonic(), range(options.workers)
    shutil.rmtree(options.work, ignore_errors=True)
    # Forks, as the commands are: whoever forks computes nothing, since OpenMP's threads do not
    # survive it.
    with ProcessPoolExecutor(len(workers), get_context("fork")) as pool:
        futures = [
            pool.submit(run_cases, options, worker, options.work / str(worker))
            for worker in workers
        ]
        counts = sum((future.result() for future in futures), Counter[tuple[str, str]]())
    columns = list(dict.fromkeys((REFUSED, FINE, *(verdict for _, verdict in counts))))
    print("| input | cases | " + " | ".join(columns) + " |\n|---|" + "--:|" * (len(columns) + 1))
    for name in dict.fromkeys(name for name, _ in counts):
        cells = [counts[name, verdict] for verdict in columns]
        print(f"| {name} | {sum(cells)} | " + " | ".join(map(str, cells)) + " |")
    print(f"\n{counts.total()} cases, {time.monotonic() - start:.0f} s; failures in {options.out}")
    return int(options.out.stat().st_size > 0)


if __name__ == "__main__":
    sys.exit(main())
