"""Run bad inputs through all commands and count how they end: refused well, traceback, hang, silently wrong, ...

    python -m benchmarks.dev.hostile.battery --cases 1150 --workers 2 --out failures.jsonl
    python -m benchmarks.dev.hostile.battery --group models --only 17 --keep DIR       one case, its folder kept

Prints a Markdown table of counts by group; writes each failure, with the line that runs it again, to a JSONL file.
Exits with 1 if there is one.
"""

from __future__ import annotations

import argparse
import json
import queue
import shlex
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from random import Random

from benchmarks.dev.hostile.case import Case, Report, Runner, Verdict
from benchmarks.dev.hostile.corpus import make_corpus
from benchmarks.dev.hostile.groups import data, environment, labels, models, pictures, recipes, saved, training
from benchmarks.dev.hostile.server import Server

Job = tuple[str, int, Case]
# Rules by group, and its share of all cases in percent: of cases that take long there are fewer.
GROUPS: Mapping[str, tuple[Sequence[Callable[[Random], Case]], int]] = {
    "recipes, --set, --out": (recipes.RULES, 18),
    "pictures, names, stdin": (pictures.RULES, 16),
    "labels, templates, --model": (labels.RULES, 14),
    "models and bundles": (models.RULES, 25),
    "runs and caches": (saved.RULES, 9),
    "data of collect, eval, training": (data.RULES, 10),
    "training, export": (training.RULES, 4),
    "environment, command lines": (environment.RULES, 4),
}


def cases(group: str, seed: int, count: int) -> Iterator[Job]:
    """The first `count` cases of a group, each with its number; none comes twice."""
    seen, number = set[str](), 0
    while len(seen) < count and number < 20 * count + 100:
        made = case(group, seed, number)
        if made.name not in seen:
            seen.add(made.name)
            yield group, number, made
        number += 1


def case(group: str, seed: int, number: int) -> Case:
    """One case of a group."""
    rules, _ = GROUPS[group]
    return rules[number % len(rules)](Random(f"{group} {seed} {number}"))


def _work(jobs: queue.SimpleQueue[Job], reports: queue.SimpleQueue[tuple[Job, Report] | None], where: Path,
          keep: bool) -> None:  # fmt: skip
    try:
        with Server() as server:
            where.mkdir(parents=True, exist_ok=True)
            if not (where / "corpus").exists():
                make_corpus(where, server)
            runner = Runner(server, where, keep)
            while True:
                try:
                    job = jobs.get_nowait()
                except queue.Empty:
                    return
                reports.put((job, runner.run(job[2])))
    finally:
        reports.put(None)


def _line(job: Job, report: Report, seed: int) -> dict[str, object]:
    """A failure as the JSONL file has it."""
    group, number, made = job
    again = f"python -m benchmarks.dev.hostile.battery --group {shlex.quote(group)} --seed {seed} --only {number}"
    return {
        "group": group,
        "number": number,
        "case": made.name,
        "verdict": report.verdict,
        "why": report.why,
        "command": shlex.join(["dcclip", *made.arguments])[:500],
        "seconds": round(report.outcome.seconds, 1),
        "peak_mb": round(report.outcome.peak_mb),
        "again": f"{again} --keep DIR",
        "stderr": report.stderr[-1500:],
    }


def _table(counts: Mapping[str, Counter[Verdict]]) -> str:
    """The counts as Markdown."""
    columns = [verdict for verdict in Verdict if verdict.is_good or any(found[verdict] for found in counts.values())]
    lines = ["| group | cases | " + " | ".join(columns) + " |", "|---|" + "--:|" * (len(columns) + 1)]
    for group, found in (counts | {"**sum**": sum(counts.values(), Counter())}).items():
        cells = [found.total(), *(found[verdict] for verdict in columns)]
        lines.append(f"| {group} | " + " | ".join(map(str, cells)) + " |")
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--group", default="", help="only groups whose name contains this")
    parser.add_argument("--only", type=int, help="only the case of this number")
    parser.add_argument("--again", type=Path, help="only the failures in this file, that --out wrote with this --seed")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--cases", type=int, default=1150)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--out", type=Path, default=Path("failures.jsonl"))
    parser.add_argument("--keep", type=Path, help="work here, and keep the last case's folder")
    given = parser.parse_args()
    groups = [group for group in GROUPS if given.group in group]
    if given.again:
        lines = map(json.loads, given.again.read_text("utf-8").splitlines())
        jobs = [(line["group"], line["number"], case(line["group"], given.seed, line["number"])) for line in lines]
    elif given.only is not None:
        jobs = [(groups[0], given.only, case(groups[0], given.seed, given.only))]
    else:
        wanted = {group: max(1, round(given.cases * share / 100)) for group, (_, share) in GROUPS.items()}
        jobs = [job for group in groups for job in cases(group, given.seed, wanted[group])]
    waiting: queue.SimpleQueue[Job] = queue.SimpleQueue()
    reports: queue.SimpleQueue[tuple[Job, Report] | None] = queue.SimpleQueue()
    Random(given.seed).shuffle(jobs)
    for job in jobs:
        waiting.put(job)
    counts = {group: Counter[Verdict]() for group in groups}
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as temporary, given.out.open("w", encoding="utf-8") as failures:
        workers = min(given.workers, len(jobs))
        for number in range(workers):
            place = (given.keep or Path(temporary)) / str(number)
            threading.Thread(target=_work, args=(waiting, reports, place, bool(given.keep)), daemon=True).start()
        while workers:
            if (answer := reports.get()) is None:
                workers -= 1
                continue
            job, report = answer
            if given.only is not None:
                print(f"{report.verdict}: {report.why}\n{shlex.join(job[2].arguments)[:2000]}")
                print(f"{report.stdout}{report.stderr}")
            if not report.verdict.is_good:
                failures.write(json.dumps(_line(job, report, given.seed)) + "\n")
                failures.flush()
            counts[job[0]][report.verdict] += 1
    print(_table(counts))
    print(f"\n{len(jobs)} cases, seed {given.seed}, {time.monotonic() - began:.0f} s; failures in {given.out}")
    return int(sum(found.total() for found in counts.values()) < len(jobs) or given.out.stat().st_size > 0)


if __name__ == "__main__":
    sys.exit(main())
