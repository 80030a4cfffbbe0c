"""The steps of `collect`, each a set of tasks that an Engine runs.

A task writes its result atomically, so a task whose result exists is never done again.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import ClassVar

from dcclip_cli.curation.filter_pair import filter_pairs
from dcclip_cli.curation.options import CollectOptions
from dcclip_cli.curation.slices import keep_slice, read_pairs, write_slice
from dcclip_cli.curation.sources.base import Candidate
from dcclip_cli.curation.work import PAIRS, SCORES, WorkFolder, key_of, whole_folder


@dataclass(frozen=True)
class SliceStep(ABC):
    """A step with one task for each of `tasks` slices."""

    name: ClassVar[str]
    options: CollectOptions
    work: WorkFolder
    tasks: int

    @abstractmethod
    def result(self, task: int) -> Path:
        """The file or folder that exists once the task is done."""

    @abstractmethod
    def run(self, task: int) -> None:
        """Do one task."""

    def done(self, task: int) -> bool:
        return self.result(task).exists()


class ReadStep(SliceStep):
    """Reads a slice, fetches images known by URL, and filters each pair by itself."""

    name = "read"

    def result(self, task: int) -> Path:
        return self.work.read(task)

    def run(self, task: int) -> None:
        from dcclip_cli.curation.fetch.fetcher import Fetcher

        with whole_folder(self.result(task)) as folder, Fetcher(self.options.fetch) as fetcher:
            candidates = fetcher.fetch_all(self._candidates(task))
            keep_slice(folder, filter_pairs(candidates, self.options), self.options.report.examples)

    def _candidates(self, task: int) -> Iterator[Candidate]:
        """The slice's candidates, each with its key and its source in the metadata."""
        assigned = self.work.assignment(task)
        source = self.options.sources[assigned.source]
        candidates = islice(source.read(assigned.slice.part), assigned.at_most)
        for index, candidate in enumerate(candidates):
            origin = candidate.pair.key
            known = {"source": source.label, "origin": origin, "license": source.license, "url": candidate.url}
            # The pair's own metadata takes precedence over the source's, except for nulls.
            meta = {name: value for name, value in known.items() if value}
            meta |= {name: value for name, value in candidate.pair.meta.items() if value is not None}
            yield replace(candidate, pair=replace(candidate.pair, key=key_of(task, index), meta=meta))


class ScoreStep(SliceStep):
    """Scores the pairs of a slice with the recipe's models."""

    name = "score"

    def result(self, task: int) -> Path:
        return self.work.scored(task)

    def run(self, task: int) -> None:
        from dcclip_cli.curation.scores.base import score_slice

        with whole_folder(self.result(task)) as folder:
            pairs = (kept.pair for kept in read_pairs(self.work.read(task)))
            score_slice(pairs, self.options.scores, folder / SCORES)


class DedupStep(SliceStep):
    """The single task that looks at all pairs of all slices at once."""

    name = "dedup"

    def result(self, task: int) -> Path:
        return self.work.deduped

    def run(self, task: int) -> None:
        from dcclip_cli.curation.dedup.dedup import dedup

        options = self.options
        slices = range((self.work.plan() or {})["slices"])
        signatures = [self.work.read(number) / PAIRS for number in slices]
        scores = [self.work.scored(number) / SCORES for number in slices] if options.scores else []
        with whole_folder(self.result(task)) as out:
            dedup(signatures, scores, options, out, first=options.scores, needs=options.needs)


class WriteStep(SliceStep):
    """Writes the shard of what remains of a slice."""

    name = "write"

    def result(self, task: int) -> Path:
        return self.work.written(task)

    def run(self, task: int) -> None:
        write_slice(self.work, task, self.options.report.examples)
