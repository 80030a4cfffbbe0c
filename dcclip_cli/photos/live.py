"""Indexes of folders that change while they are served."""

import asyncio
import time
from collections.abc import Callable, Sequence
from concurrent.futures import CancelledError, Future
from contextlib import suppress
from itertools import filterfalse
from threading import Lock, Thread
from typing import Any

from dcclip_cli.core.errors import DcclipError, Message
from dcclip_cli.core.progress import Silent
from dcclip_cli.inference.encoder import Encoder
from dcclip_cli.inference.videos import is_video
from dcclip_cli.photos.index import ImageIndex, list_images, open_index

FOLLOW_S = 1.5  # between two looks at the folders
_LOOK_SHARE = 10  # a look waits at least so many times as long as the last one took
_RETRY_LOOKS = 20  # after which files are tried again that the disk could not read
# that an update embeds at most: the first of a large copy are found early
_NEW_IMAGES = 256
_NEW_VIDEOS = 4


class LiveIndexes(Silent):
    """Indexes that follow their folders. A request that takes `current` once has one state of them
    all.

    Folders are polled: network shares do not report changes of other machines. As the progress of
    an update or of a comparison, the object ends it once `stopping` is set.
    """

    def __init__(
        self, encoder: Encoder, indexes: Sequence[ImageIndex], say: Callable[[str], object]
    ) -> None:
        self.current = tuple(indexes)
        self._encoder = encoder
        self._say = say
        self.folders = [index.folder.resolve() for index in indexes]
        self.stopping = False
        self._updating = Lock()
        self._looks = 0
        self._listings = [index.listing for index in indexes]  # at the last look
        self._complete = self._listings[
            :
        ]  # those of their files that had not changed since the look before
        self._skipped = [dict[str, bytes]() for _ in indexes]  # states of files that end an update
        self._most_new = _NEW_IMAGES + _NEW_VIDEOS  # files that an update tries
        self._away: set[int] = set()  # places of folders whose files have all gone
        self._reported: set[str] = set()
        self._report(*(error for index in indexes for error in index.errors.values()))

    def counts(self) -> dict[str, int]:
        """How many images can be searched, how many are unreadable, and how many folders are not
        there.
        """
        unreadable = sum(len(index.errors) + len(index.unreadable) for index in self.current)
        unreadable += sum(map(len, self._skipped))
        images = sum(len(index.images) for index in self.current)
        return {"images": images, "unreadable": unreadable, "missing_folders": len(self._away)}

    async def follow(self, every_s: float | None) -> None:
        """Update the indexes in threads until the task is cancelled. Embeddings computed until
        then are stored.
        """
        try:
            while every_s:
                begin = time.monotonic()
                await _in_thread(self._look)
                next_look = time.monotonic() + max(
                    every_s, _LOOK_SHARE * (time.monotonic() - begin)
                )
                while await _in_thread(self._update) and time.monotonic() < next_look:
                    pass
                await asyncio.sleep(next_look - time.monotonic())
        finally:
            await asyncio.to_thread(self._updating.acquire)  # once the update has stored its part

    def advance(self, steps: int = 1, **metrics: float) -> None:
        if self.stopping:
            raise CancelledError

    def _look(self) -> None:
        """List the folders. A new or changed file counts once its size and time are those of the
        last look.
        """
        self._looks += 1
        for place, index in enumerate(self.current):
            listing = dict[str, bytes]()
            try:
                with suppress(DcclipError):  # the folder has no images any more, or is not there
                    listing = list_images(index.folder, index.exclude, within=self.folders)
            except Exception as error:  # noqa: BLE001 - following goes on
                self._report(error)
                self._away.add(place)
                continue
            previous = self._listings[place]
            self._listings[place] = listing
            complete = {
                name: state for name, state in listing.items() if previous.get(name) == state
            }
            skipped = {
                name: state
                for name, state in self._skipped[place].items()
                if complete.get(name) == state
            }
            self._skipped[place] = skipped
            if self._looks % _RETRY_LOOKS:
                for name in (index.errors.keys() - index.listing.keys()) | skipped.keys():
                    complete.pop(name, None)
            self._complete[place] = complete
            self._note_missing(place, bool(previous), bool(listing))

    def _note_missing(self, place: int, had_files: bool, has_files: bool) -> None:
        if has_files:
            self._away.discard(place)
        elif had_files:
            self._away.add(place)
            folder = self.current[place].folder
            self._say(
                Message(
                    "serve: warning: {} has no photographs any more; its disk may be away", folder
                )
            )

    def _update(self) -> bool:
        """Bring the indexes up to date with the last look, as far as one update may; returns
        whether files remain.
        """
        remaining = False
        with self._updating:
            try:
                for place in range(len(self.current)):
                    remaining |= self._update_index(place)
            except CancelledError:
                return False
        return remaining

    def _update_index(self, place: int) -> bool:
        """Of new files that an error ends, the first half is tried next, down to a single one,
        which is skipped.
        """
        index = self.current[place]
        files = dict(self._complete[place])
        tried = list[str]()
        try:
            new = index.not_stored(files)
            new.sort(key=self._skipped[place].__contains__)
            images = list(filterfalse(is_video, new))
            videos = list(filter(is_video, new))
            tried = [*images[:_NEW_IMAGES], *videos[:_NEW_VIDEOS]][: self._most_new]
            for name in set(new).difference(tried):
                del files[name]
            if files == index.listing:
                return False

            options: dict[str, Any] = {
                "exclude": index.exclude,
                "updated": index,
                "listing": files,
            }
            index = open_index(self._encoder, index.folder, progress=self, **options)
        except CancelledError:
            raise
        except Exception as error:  # noqa: BLE001 - following goes on
            if len(tried) > 1:
                self._most_new = len(tried) // 2
                return True
            if not tried:
                self._report(error)
            for name in tried:
                self._skipped[place][name] = files[name]
                reason = error if str(error) else type(error).__name__
                self._report(Message("skipped {}: {}", index.folder / name, reason))
            return False

        self.current = (*self.current[:place], index, *self.current[place + 1 :])
        self._most_new = min(2 * self._most_new, _NEW_IMAGES + _NEW_VIDEOS)
        for name in tried:
            self._skipped[place].pop(name, None)
        self._report(*index.errors.values())
        return len(files) < len(self._complete[place])

    def _report(self, *errors: Exception | Message) -> None:
        for error in errors:
            text = str(error) or type(error).__name__
            if text not in self._reported:
                self._say(Message("{}: {}", "serve", error if str(error) else text))
            self._reported.add(text)


async def _in_thread(function: Callable[[], Any]) -> Any:
    """Run in a thread that no exit waits for: a folder of a slow share may take minutes to list."""
    future = Future[Any]()

    def run() -> None:
        try:
            future.set_result(function())
        except Exception as error:  # noqa: BLE001 - raised where it is awaited
            future.set_exception(error)

    future.set_running_or_notify_cancel()
    Thread(target=run, name="index", daemon=True).start()
    return await asyncio.wrap_future(future)
