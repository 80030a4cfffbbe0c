"""Block cache: parts of data files kept as local files of bounded total size, fetched ahead of their use."""

from __future__ import annotations

import os
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from dcclip_cli.errors import DcclipError, Message, writing
from dcclip_cli.files import lock, partial, remove

SUFFIX, PARTIAL = ".block", ".partial"
_READING = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0)  # a pipe in the place of a block would wait for a writer
_TOUCH_S = 30.0  # how often a block's last use is noted
_RECENT_S = 60.0  # a block that was evicted so soon after its last use is not fetched again for single images
_FEW = 2  # so many images of a block are read from their origin before it is fetched: some uses need no more


@dataclass(frozen=True)
class Block:
    """A part of a data file: `key` names it in the cache, `write` writes its `size` bytes to a file descriptor.

    `read_range`, where there is one, reads some bytes of it from their origin. `source` is for error messages.
    """

    key: str
    size: int
    source: str
    write: Callable[[int], None]
    read_range: Callable[[int, int], bytes] | None = None


class BlockCache:
    """Blocks in `folder`, at most `max_bytes` of them; any number of processes share it.

    The least recently used are removed. A block appears under its name when it is complete, so a killed process leaves
    nothing that is read. `warn` gets a line about each that proves to be damaged.
    """

    def __init__(self, folder: Path, max_bytes: int, warn: Callable[[str], None] = lambda _: None) -> None:
        self.folder, self.max_bytes, self._warn = folder, max_bytes, warn
        self._used: dict[str, float] = {}  # when this process last noted the use of a block
        self._reads: Counter[str] = Counter()  # of single images of a block that is not here
        self._ahead = _Ahead(self)

    def __reduce__(self) -> tuple[type, tuple[Path, int]]:
        return type(self), (self.folder, self.max_bytes)

    def read(self, block: Block, offset: int, size: int) -> bytes:
        """Some bytes of a block, which is fetched if it is not here. Raises DcclipError where that fails."""
        while True:
            try:
                descriptor = os.open(self._file(block.key), _READING)
            except FileNotFoundError:
                recent = time.monotonic() - self._used.get(block.key, -_RECENT_S) < _RECENT_S
                self._reads[block.key] += 1
                if block.read_range and (recent or self._reads[block.key] <= _FEW):
                    return block.read_range(offset, size)
                self.fetch(block)
                continue
            try:
                content = os.pread(descriptor, size, offset)
            except OSError:  # a folder, a pipe, a sector that cannot be read
                self.discard(block)
                continue
            finally:
                os.close(descriptor)
            self._note_use(block.key)
            return content

    def fetch(self, block: Block, keep: Collection[str] = ()) -> None:
        """Make a block local unless it is; of the others, those in `keep` are not removed for it.

        Raises OSError where the cache cannot be written: a DcclipError would count as a fault of the image.
        """
        if block.size > self.max_bytes:
            raise too_small(block.source, block.size, self.max_bytes)
        with writing(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
            with lock(self.folder / f".{block.key[:2]}.lock"):  # one of 256: lock files do not add up
                if not self._file(block.key).exists():
                    self._write(block, keep)
        self._used[block.key] = time.monotonic()
        self._reads.pop(block.key, None)

    def discard(self, block: Block) -> None:
        """Remove a block, whose bytes proved to be wrong. Raises DcclipError if that is not possible."""
        file = self._file(block.key)
        self._used.pop(block.key, None)
        if os.path.lexists(file):
            self._warn(f"warning: {file} is damaged: {block.source} is read again")
            remove(file)
        if os.path.lexists(file):
            raise DcclipError("{} is damaged and cannot be removed", "name another folder with DCCLIP_CACHE", file)

    def prefetch(self, blocks: Iterable[Block]) -> None:
        """Fetch the blocks of the next window in the background; those of the window before are kept.

        Raises DcclipError where the window does not fit the cache: each image would fetch its block again.
        """
        self._ahead.add({block.key: block for block in blocks})

    def missing(self, blocks: Iterable[Block]) -> list[Block]:
        """Those of the blocks that are not local; the use of the others is noted."""
        return [block for block in blocks if not self._note_use(block.key, 0.0)]

    def _file(self, key: str) -> Path:
        return self.folder / f"{key}{SUFFIX}"

    def _note_use(self, key: str, every_s: float = _TOUCH_S) -> bool:
        now = time.monotonic()
        if now - self._used.get(key, -every_s) < every_s:
            return True
        try:
            os.utime(self._file(key))
        except FileNotFoundError:
            return False
        self._used[key] = now
        return True

    def _write(self, block: Block, keep: Collection[str]) -> None:
        with self._reserved(block, keep) as path:
            descriptor = os.open(path, os.O_RDWR)
            try:
                block.write(descriptor)
                written = os.fstat(descriptor).st_size
            finally:
                os.close(descriptor)
            if written != block.size:
                what = Message("{} has {} bytes where its index says {}", block.source, written, block.size)
                raise DcclipError(what, "the data has changed: run dcclip index on it")
            path.replace(self._file(block.key))

    @contextmanager
    def _reserved(self, block: Block, keep: Collection[str]) -> Iterator[Path]:
        """A partial file that takes a block's space, after as many old blocks were removed as that needs."""
        with ExitStack() as stack:
            with lock(self.folder / ".room.lock"):
                self._make_room(block.size, keep)
                path = stack.enter_context(partial(self._file(block.key)))
                os.truncate(path, block.size)
            yield path

    def _make_room(self, size: int, keep: Collection[str]) -> None:
        kept = {f"{key}{SUFFIX}" for key in keep}
        found, total = [], size
        for entry in os.scandir(self.folder):
            if not entry.name.endswith((SUFFIX, PARTIAL)):
                continue
            with suppress(FileNotFoundError):
                about = entry.stat()
                total += about.st_size
                if entry.name.endswith(SUFFIX) and entry.name not in kept:
                    found.append((about.st_mtime_ns, about.st_size, entry.path))
        for _, bytes_of, path in sorted(found):
            if total <= self.max_bytes:
                break
            Path(path).unlink(missing_ok=True)
            total -= bytes_of


def too_small(source: str, needed: int, max_bytes: int) -> DcclipError:
    """The error of a cache that is smaller than what is needed at a time."""
    what = Message(
        "{} needs {:.3g} GB in the block cache, which may have {:.3g} GB", source, needed / 1e9, max_bytes / 1e9
    )
    return DcclipError(what, "make data.cache_gb larger, or data.shuffle_window smaller")


class _Ahead:
    """The thread that fetches blocks ahead, in the process that makes the batches.

    What it cannot fetch is left to the process that reads it, which raises the error.
    """

    def __init__(self, cache: BlockCache) -> None:
        self._cache = cache
        self._windows: deque[dict[str, Block]] = deque(maxlen=2)  # the one in use and the next
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None

    def add(self, window: dict[str, Block]) -> None:
        needed = sum(block.size for block in window.values())
        if needed > self._cache.max_bytes:
            raise too_small(f"a shuffle window of {next(iter(window.values())).source}", needed, self._cache.max_bytes)
        with self._changed:
            self._windows.append(window)
            self._changed.notify()
        if self._thread is None or not self._thread.is_alive():
            self._thread = threading.Thread(target=self._run, name="prefetch", daemon=True)
            self._thread.start()

    def _run(self) -> None:
        while True:
            with self._changed:
                windows = list(self._windows)
            with suppress(OSError):  # of the cache's folder: whoever reads the block meets it, and says so
                self._fetch({key: block for window in windows for key, block in window.items()})
            with self._changed:
                if list(self._windows) == windows:
                    self._changed.wait()

    def _fetch(self, needed: dict[str, Block]) -> None:
        room = self._cache.max_bytes
        absent = {block.key for block in self._cache.missing(needed.values())}
        for key, block in needed.items():
            room -= block.size
            if room < 0:
                return  # the rest is fetched when it is read
            if key in absent:
                with suppress(DcclipError):
                    self._cache.fetch(block, keep=needed)
