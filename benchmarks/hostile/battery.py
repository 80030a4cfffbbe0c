"""Run bad inputs through all commands and count how they end: refused well, traceback, hang, silently wrong, ...

    python -m benchmarks.hostile.battery --cases 1100 --workers 2 --out failures.jsonl
    python -m benchmarks.hostile.battery --group bundles --only 17 --keep DIR       one case, its folder kept

Prints a Markdown table of counts by group; writes each failure, with the line that runs it again, to a JSONL file.
Exits with 1 if there is one.
"""

import argparse
import json
import queue
import shlex
import sys
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path
from random import Random

from tests.hostile.battery import GROUPS, case, cases, excepted, shares
from tests.hostile.case import Case, Report, Runner, Verdict
from tests.hostile.corpus import make_corpus
from tests.hostile.server import Server

Job = tuple[str, int, Case]


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--group", help="only groups whose name contains this")
    parser.add_argument("--only", type=int, help="only the case of this number")
    parser.add_argument("--again", type=Path, help="only the failures in this file, that --out wrote with this --seed")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--cases", type=int, default=1100)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--out", type=Path, default=Path("failures.jsonl"))
    parser.add_argument("--keep", type=Path, help="work here, and keep the last case's folder")
    return parser.parse_args()


def _work(jobs: "queue.SimpleQueue[Job]", reports: "queue.SimpleQueue[tuple[Job, Report] | None]", where: Path,
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


def _line(job: Job, report: Report, seed: int, groups: list[str]) -> dict[str, object]:
    """A failure as the JSONL file has it."""
    group, number, made = job
    again = (
        f"python -m benchmarks.hostile.battery --group {shlex.quote(group)} --seed {seed} --only {number} --keep DIR"
    )
    return {
        "group": group,
        "number": number,
        "case": made.name,
        "verdict": report.verdict,
        "why": report.why,
        "command": shlex.join(["dcclip", *made.arguments]) if len(str(made.arguments)) < 500 else made.arguments[0],
        "seconds": round(report.outcome.seconds, 1),
        "peak_mb": round(report.outcome.peak_mb),
        "again": again,
        "stderr": report.stderr[-1500:],
    }


def _table(counts: dict[str, Counter[Verdict]], listed: Counter[str]) -> str:
    """The counts as Markdown."""
    columns = list(Verdict)
    lines = ["| group | tried | " + " | ".join(columns) + " | listed |", "|---|" + "--:|" * (len(columns) + 2)]
    for group, found in counts.items():
        cells = [found.total() + listed[group], *(found[verdict] for verdict in columns), listed[group]]
        lines.append(f"| {group} | " + " | ".join(map(str, cells)) + " |")
    whole = sum(counts.values(), Counter())
    cells = [whole.total() + listed.total(), *(whole[verdict] for verdict in columns), listed.total()]
    return "\n".join([*lines, "| **sum** | " + " | ".join(f"**{cell}**" for cell in cells) + " |"])


def main() -> int:
    given = _arguments()
    groups = [group for group in GROUPS if not given.group or given.group in group]
    wanted = shares(given.cases)
    if given.again:
        lines = map(json.loads, given.again.read_text("utf-8").splitlines())
        jobs = [(line["group"], line["number"], case(line["group"], given.seed, line["number"])) for line in lines]
    elif given.only is not None:
        jobs = [(groups[0], given.only, case(groups[0], given.seed, given.only))]
    else:
        jobs = [(group, number, made) for group in groups for number, made in cases(group, given.seed, wanted[group])]
    waiting: queue.SimpleQueue[Job] = queue.SimpleQueue()
    reports: queue.SimpleQueue[tuple[Job, Report] | None] = queue.SimpleQueue()
    Random(given.seed).shuffle(jobs)
    for job in jobs:
        waiting.put(job)
    counts: dict[str, Counter[Verdict]] = {group: Counter() for group in groups}
    listed: Counter[str] = Counter()
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as temporary, given.out.open("w", encoding="utf-8") as failures:
        where = given.keep or Path(temporary)
        workers = min(given.workers, len(jobs))
        for number in range(workers):
            place = where / str(number)
            threading.Thread(target=_work, args=(waiting, reports, place, bool(given.keep)), daemon=True).start()
        while workers:
            if (answer := reports.get()) is None:
                workers -= 1
                continue
            job, report = answer
            if given.only is not None:
                command = shlex.join(job[2].arguments)[:2000]
                print(f"{report.verdict}: {report.why}\n{command}\n{report.stdout}{report.stderr}")
            if not report.verdict.is_good:
                if excepted(report):
                    listed[job[0]] += 1
                    continue
                failures.write(json.dumps(_line(job, report, given.seed, groups)) + "\n")
                failures.flush()
            counts[job[0]][report.verdict] += 1
    print(_table(counts, listed))
    print(f"\n{len(jobs)} cases, seed {given.seed}, {time.monotonic() - began:.0f} s; failures in {given.out}")
    return int(any(not verdict.is_good for found in counts.values() for verdict in found))


if __name__ == "__main__":
    sys.exit(main())
