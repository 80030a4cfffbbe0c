"""Searches among a part of the images: those below a folder, and those that were taken on some
days.
"""

import os
import re
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import date
from itertools import compress
from threading import Lock
from urllib.parse import unquote_to_bytes

import numpy as np

from dcclip_cli.core.errors import DcclipError
from dcclip_cli.core.files import cache_folder
from dcclip_cli.core.machine import cores
from dcclip_cli.core.progress import Progress
from dcclip_cli.core.store import FeatureStore, Values, digests, flat
from dcclip_cli.inference.images import batched, opened
from dcclip_cli.inference.videos import split_frame
from dcclip_cli.photos.duplicates import taken_at_s
from dcclip_cli.photos.index import ImageIndex

_BATCH = 256  # files whose days are stored at a time
_DAY_S = 86400


class Filters:
    """Makes indexes of a part of the images, and keeps the last ones. `progress` may stop it."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._running = Lock()
        self._source: Sequence[ImageIndex] = ()
        self._choice: tuple[object, ...] = ()
        self._indexes: Sequence[ImageIndex] = ()

    def apply(
        self, indexes: Sequence[ImageIndex], under: str, after: date | None, before: date | None
    ) -> Sequence[ImageIndex]:
        """Indexes of the images below `under`, images/0/2020, taken from one day to another, these
        included.
        """
        place = re.fullmatch("images/([0-9]{1,9})/(.*)", under, re.DOTALL)
        if under and (place is None or int(place[1]) >= len(indexes)):
            raise DcclipError("unknown folder: {!r:.200}", "use a url from /folders", under)
        with self._running:
            if self._source is not indexes or self._choice != (under, after, before):
                parts = list(indexes)
                if place:
                    folder = int(place[1])
                    top = os.fsdecode(unquote_to_bytes(place[2]))
                    parts = [replace(index, paths=()) for index in indexes]
                    parts[folder] = _below(indexes[folder], top)
                if after or before:
                    first = (after or date.min).toordinal()
                    last = (before or date.max).toordinal()
                    parts = [self._between(index, first, last) for index in parts]
                self._source = indexes
                self._choice = (under, after, before)
                self._indexes = parts
            return self._indexes

    def _between(self, index: ImageIndex, first: int, last: int) -> ImageIndex:
        names = [*index.images]
        day_of = dict(zip(names, self._days(index, names), strict=True))
        return _part(index, [first <= day_of[split_frame(path)[0]] <= last for path in index.paths])

    def _days(self, index: ImageIndex, names: Sequence[str]) -> list[int]:
        """On which day each photograph was taken, by its EXIF, else the day of its file's last
        change.
        """
        folder = index.folder.resolve()
        files = (os.fsencode(folder / name) + index.listing[name] for name in names)

        def compute(places: np.ndarray) -> Iterator[tuple[np.ndarray, Values]]:
            with (
                self._progress.task("dates", len(places)) as task,
                ThreadPoolExecutor(cores()) as pool,
            ):
                for batch in batched(places.tolist(), _BATCH):
                    days = pool.map(lambda place: _day(index, names[place]), batch)
                    yield np.array(batch), {"day": np.array([*days], np.int32)}
                    task.advance(len(batch))

        store = FeatureStore(cache_folder() / "search" / "days", optional=True)
        return (
            flat(store.complete(["day"], digests("day", files), compute)[1]["day"])
            .reshape(-1)
            .tolist()
        )


def _day(index: ImageIndex, name: str) -> int:
    with opened(index.folder / name) as image:
        seconds = taken_at_s(image) if image else 0.0
    if seconds:
        return int(seconds // _DAY_S) + 1  # days from 1 January of the year 1, which is day 1
    changed_ns = int(index.listing[name].rpartition(b"\0")[2] or 0)
    return date.fromtimestamp(changed_ns / 1e9).toordinal()


def _below(index: ImageIndex, top: str) -> ImageIndex:
    return _part(index, [path.startswith(os.path.join(top, "")) for path in index.paths])


def _part(index: ImageIndex, selected: Sequence[bool]) -> ImageIndex:
    paths = tuple(compress(index.paths, selected))
    return replace(index, paths=paths, embeddings=index.embeddings[np.array(selected, bool)])
