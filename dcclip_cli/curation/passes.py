"""What does one task of each pass do? Steps for datatrove's executors, which pipe candidates from one to the next.

A task whose result is there already does nothing: what a killed run has finished stays as it is.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from itertools import islice
from typing import Any

from datatrove.pipeline.base import PipelineStep

from dcclip_cli.curation.candidate import Candidate
from dcclip_cli.curation.judge import Verdict, judge
from dcclip_cli.curation.options import CollectOptions
from dcclip_cli.curation.slices import keep_slice
from dcclip_cli.curation.work import FACTS, PAIRS, SCORES, WorkFolder, key_of, whole_file, whole_folder
from dcclip_cli.curation.writing import write_slice


class Step(PipelineStep):
    """One of our steps: knows the recipe's section and the folder that all tasks share."""

    type = "dcclip"

    def __init__(self, options: CollectOptions, work: WorkFolder) -> None:
        super().__init__()
        self.options, self.work = options, work

    def finished(self, rank: int) -> bool:
        """Whether this task's result is there already."""
        return self.work.read(rank).is_dir()


class ReadSlice(Step):
    """The candidates of one slice, each with its key and what is known of its source."""

    name = "read"

    def run(self, data: Any = None, rank: int = 0, world_size: int = 1) -> Iterator[Candidate]:
        if self.finished(rank):
            return
        assigned = self.work.assignment(rank)
        source = self.options.sources[assigned.source]
        candidates = islice(source.read(assigned.slice.part), assigned.at_most)
        for index, candidate in enumerate(candidates):
            origin = candidate.pair.key
            known = {"source": source.label, "origin": origin} | ({"licence": source.licence} if source.licence else {})
            if candidate.url:
                known["url"] = candidate.url
            # What the pair knows of itself is nearer to the truth, where it is said.
            meta = known | {name: value for name, value in candidate.pair.meta.items() if value is not None}
            yield replace(candidate, pair=replace(candidate.pair, key=key_of(rank, index), meta=meta))


class FetchImages(Step):
    """The candidates, with the images that had to be downloaded."""

    name = "fetch"

    def run(self, data: Iterable[Candidate], rank: int = 0, world_size: int = 1) -> Iterator[Candidate]:
        from dcclip_cli.curation.fetch import Fetcher

        with Fetcher(self.options.fetch) as fetcher:
            yield from fetcher.fetch_all(iter(data))


class JudgeCandidates(Step):
    """What becomes of each candidate."""

    name = "judge"

    def run(self, data: Iterable[Candidate], rank: int = 0, world_size: int = 1) -> Iterator[Verdict]:
        for candidate in data:
            yield judge(candidate, self.options)


class KeepSlice(Step):
    """Writes what the read pass found out."""

    name = "keep"

    def run(self, data: Iterable[Verdict], rank: int = 0, world_size: int = 1) -> None:
        if self.finished(rank):
            return
        with whole_folder(self.work.read(rank)) as folder:
            keep_slice(folder, data, self.options.report.examples)


class ScoreSlice(Step):
    """Writes what models say of the pairs of a slice."""

    name = "score"

    def run(self, data: Any = None, rank: int = 0, world_size: int = 1) -> None:
        from dcclip_cli.curation.scores import score_slice

        folder = self.work.read(rank)
        if (folder / SCORES).exists():
            return
        with whole_file(folder / SCORES) as path:
            score_slice(folder / PAIRS, self.options.scores, path)


class Settle(Step):
    """The one task that looks at all pairs at once."""

    name = "settle"

    def __init__(self, options: CollectOptions, work: WorkFolder, slices: int) -> None:
        super().__init__(options, work)
        self.slices = slices

    def run(self, data: Any = None, rank: int = 0, world_size: int = 1) -> None:
        from dcclip_cli.curation.settle.settle import settle

        if self.work.settled.is_dir():
            return
        from dcclip_cli.curation.scores import ScoreRule

        folders = [self.work.read(number) for number in range(self.slices)]
        scores = [folder / SCORES for folder in folders] if self.options.scores else []
        first = [ScoreRule(scorers=self.options.scores)] if self.options.scores else []
        with whole_folder(self.work.settled) as out:
            settle(
                [folder / FACTS for folder in folders], scores, self.options, out, first=first, needs=self.options.needs
            )


class WriteSlice(Step):
    """Writes the shard that remains of a slice."""

    name = "write"

    def run(self, data: Any = None, rank: int = 0, world_size: int = 1) -> None:
        if not self.work.written(rank).is_dir():
            write_slice(self.work, rank, self.options.report.examples)
