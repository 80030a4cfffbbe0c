"""Indexes of folders that change while they are served."""

import asyncio
import time
from collections.abc import Callable, Sequence
from concurrent.futures import CancelledError, ThreadPoolExecutor
from contextlib import suppress
from itertools import filterfalse
from typing import Any

from dcclip_cli.errors import DcclipError, Message
from dcclip_cli.inference.encoder import Encoder
from dcclip_cli.inference.index import ImageIndex, list_images, open_index
from dcclip_cli.inference.videos import is_video
from dcclip_cli.progress import Silent

FOLLOW_S = 1.5  # between two looks at the folders
_LOOK_SHARE = 10  # a look waits at least so many times as long as the last one took
_NEW_IMAGES, _NEW_VIDEOS = 256, 4  # that an update embeds at most: the first of a large copy are found early


class LiveIndexes(Silent):
    """Indexes that follow their folders. A request that takes `current` once has one state of them all.

    Folders are polled: network shares do not report changes of other machines. As the progress of an update, the object
    ends it when the server stops.
    """

    def __init__(self, encoder: Encoder, indexes: Sequence[ImageIndex], say: Callable[[str], object]) -> None:
        self.current, self._encoder, self._say, self._stopping = tuple(indexes), encoder, say, False
        self._listings = [index.listing for index in indexes]  # at the last look
        self._complete = self._listings[:]  # those of their files that had not changed since the look before
        self._reported: set[str] = set()
        self._report(*(error for index in indexes for error in index.errors.values()))

    def counts(self) -> dict[str, int]:
        """How many images can be searched, and how many are unreadable."""
        unreadable = sum(len(index.errors) + len(index.unreadable) for index in self.current)
        return {"images": sum(len(index.images) for index in self.current), "unreadable": unreadable}

    async def follow(self, every_s: float | None) -> None:
        """Update the indexes in a thread until the task is cancelled. Embeddings computed until then are stored."""
        run = asyncio.get_running_loop().run_in_executor
        with ThreadPoolExecutor(1, "index") as thread:
            try:
                while every_s:
                    begin = time.monotonic()
                    await run(thread, self._look)
                    next_look = time.monotonic() + max(every_s, _LOOK_SHARE * (time.monotonic() - begin))
                    while await run(thread, self._update) and time.monotonic() < next_look:
                        pass
                    await asyncio.sleep(next_look - time.monotonic())
                await asyncio.Event().wait()  # until the server stops
            finally:
                self._stopping = True

    def advance(self, steps: int = 1, **metrics: float) -> None:
        if self._stopping:
            raise CancelledError

    def _look(self) -> None:
        """List the folders. A new or changed file counts once its size and time are those of the last look."""
        for place, index in enumerate(self.current):
            listing = dict[str, bytes]()
            try:
                with suppress(DcclipError):  # the folder has no images any more, or is not there
                    listing = list_images(index.folder, index.exclude)
                previous, self._listings[place] = self._listings[place], listing
                self._complete[place] = {name: state for name, state in listing.items() if previous.get(name) == state}
            except OSError as error:  # of a disk; the next look tries again
                self._report(error)

    def _update(self) -> bool:
        """Bring the indexes up to date with the last look, as far as one update may; returns whether files remain."""
        remaining = False
        for place, index in enumerate(self.current):
            files = dict(self._complete[place])
            try:
                new = index.not_stored(files)
                images, videos = list(filterfalse(is_video, new)), list(filter(is_video, new))
                for name in (*images[_NEW_IMAGES:], *videos[_NEW_VIDEOS:]):
                    del files[name]
                if files != index.listing:
                    options: dict[str, Any] = {"exclude": index.exclude, "updated": index, "listing": files}
                    index = open_index(self._encoder, index.folder, progress=self, **options)
                    self.current = (*self.current[:place], index, *self.current[place + 1 :])
                    self._report(*index.errors.values())
                    remaining |= len(files) < len(self._complete[place])
            except (OSError, DcclipError) as error:  # of a disk; the next look tries again
                self._report(error)
        return remaining

    def _report(self, *errors: Exception) -> None:
        for error in errors:
            if str(error) not in self._reported:
                self._say(Message("{}: {}", "serve", error))
            self._reported.add(str(error))
