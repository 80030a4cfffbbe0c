"""Rows of numbers kept in blocks, each in a folder named after all that it depends on: never misused, never half there.

A block that another process, or another run, is filling is left to it; one that a killed process left is taken over
where it was. So any number of processes can fill a store together.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.lib.format import open_memmap

from dcclip_cli.errors import DcclipError
from dcclip_cli.files import atomic_write, lock, new_array
from dcclip_cli.model.precision import finite

DONE = "done.json"
_OPEN_FILES = 256  # memory maps that a reader holds at once


@dataclass(frozen=True)
class Block:
    """Rows [first, last) and the key that names them."""

    key: str
    first: int
    last: int


@dataclass(frozen=True)
class Rows:
    """A piece of a block: its first row, counted over the whole store, and values by name, equally many rows each."""

    first: int
    values: dict[str, np.ndarray]


def key_of(parts: Any) -> str:
    """A short hash over everything that decides a block's contents."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True, ensure_ascii=False).encode()).hexdigest()[:32]


class BlockStore:
    """Blocks under `folder`; whole ones may also lie in one of `elsewhere`, where nothing is ever written.

    All blocks but the last have `block_rows` rows. Arrays of a name have the same shape from the second dimension on,
    or differ in the second, like tokens padded to a block's longest text.
    """

    def __init__(self, folder: Path, elsewhere: Sequence[Path], blocks: Sequence[Block], block_rows: int) -> None:
        self._folder, self._elsewhere, self._blocks, self._block_rows = folder, elsewhere, blocks, block_rows
        self._array = lru_cache(_OPEN_FILES)(self._open_array)

    @property
    def rows(self) -> int:
        """The rows of all blocks."""
        return self._blocks[-1].last if self._blocks else 0

    @property
    def rows_there(self) -> int:
        """The rows of whole blocks, and those that unfinished ones here hold so far."""
        # Unfinished ones first: a block that another process finishes meanwhile is then seen as a whole one.
        unfinished = [int(self._done(self._partial(block))["done"]) for block in self._blocks]
        return sum(
            block.last - block.first if self._place(block) else done
            for block, done in zip(self._blocks, unfinished, strict=True)
        )

    @property
    def seconds(self) -> float:
        """What filling all blocks took, whoever did it."""
        return sum(float(self._done(place)["seconds"]) for block in self._blocks if (place := self._place(block)))

    def fill(
        self, compute: Callable[[Block, int], Iterator[Rows]], advance: Callable[[int], None], first: int = 0
    ) -> None:
        """Fill what is missing, beginning with block `first`, and return when all blocks are there.

        `compute(block, row)` yields the block's rows from `row` on, piece by piece.
        """
        waiting = [*self._blocks[first:], *self._blocks[:first]]
        while waiting := [block for block in waiting if not self._place(block)]:
            worked = [self._fill_block(block, compute, advance) for block in waiting]
            if not any(worked):
                time.sleep(0.2)  # others have them all in hand

    def read(self, name: str, rows: np.ndarray, width: int | None = None) -> np.ndarray:
        """The rows of an array, in the order asked for; a second dimension is cut or filled up with 0 to `width`.

        Raises DcclipError where one is not finite.
        """
        first = self._array(0, name)
        shape = (len(rows), *first.shape[1:]) if width is None else (len(rows), width, *first.shape[2:])
        result = np.zeros(shape, first.dtype)
        numbers = rows // self._block_rows
        for number in np.unique(numbers):
            here = numbers == number
            array = self._array(int(number), name)
            file = Path(str(array.filename))
            hint = f"delete {file.parent}, then run the same command again"
            values = finite(array[rows[here] - number * self._block_rows], str(file), "rows", hint)
            if width is None:
                result[here] = values
            else:
                size = min(width, values.shape[1])
                result[np.flatnonzero(here)[:, None], np.arange(size)] = values[:, :size]
        return result

    def _open_array(self, number: int, name: str) -> np.memmap:
        place = self._place(self._blocks[number])
        assert place is not None
        return open_memmap(place / f"{name}.npy", "r")

    def _place(self, block: Block) -> Path | None:
        return next(
            (folder / block.key for folder in (self._folder, *self._elsewhere) if (folder / block.key).is_dir()), None
        )

    def _partial(self, block: Block) -> Path:
        return self._folder / f".{block.key}.partial"

    @staticmethod
    def _done(folder: Path) -> dict[str, Any]:
        try:
            return dict(json.loads((folder / DONE).read_text("utf-8")))
        except FileNotFoundError:  # not begun, or another process has just finished the block and moved the folder
            return {"done": 0, "seconds": 0.0}
        except ValueError as error:
            raise DcclipError(f"{folder / DONE} is not JSON: {error}", f"delete {folder}") from None

    def _fill_block(
        self, block: Block, compute: Callable[[Block, int], Iterator[Rows]], advance: Callable[[int], None]
    ) -> bool:
        """Fill one block unless another process is at it; whether this one did."""
        partial, lock_file = self._partial(block), self._folder / f".{block.key}.lock"
        with lock(lock_file, wait=False) as mine:
            if not mine or self._place(block):
                return False
            partial.mkdir(exist_ok=True)
            state = self._done(partial)
            done, seconds, began = int(state["done"]), float(state["seconds"]), time.monotonic()
            stores: dict[str, np.memmap] = {}
            for piece in compute(block, block.first + done):
                assert piece.first == block.first + done
                for name, values in piece.values.items():
                    if name not in stores:
                        shape = (block.last - block.first, *values.shape[1:])
                        file = partial / f"{name}.npy"
                        stores[name] = open_memmap(file, "r+") if done else new_array(file, values.dtype, shape)
                    stores[name][done : done + len(values)] = values
                rows = len(next(iter(piece.values.values())))
                done += rows
                self._note(partial, done, seconds + time.monotonic() - began, stores)
                advance(rows)
            stores.clear()  # Windows renames no folder with a mapped file in it
            partial.rename(self._folder / block.key)
        with suppress(OSError):  # another process is just looking at it, on Windows
            lock_file.unlink()
        return True

    @staticmethod
    def _note(folder: Path, done: int, seconds: float, stores: dict[str, np.memmap]) -> None:
        """Say how many rows are whole, once they are on the disk: a killed run never trusts a half-written one."""
        for store in stores.values():
            store.flush()
        atomic_write(folder / DONE, json.dumps({"done": done, "seconds": round(seconds, 3)}).encode())
