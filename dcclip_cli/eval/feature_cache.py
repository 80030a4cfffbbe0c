"""What has a model said of these images and texts before? Kept, so that another language or prompt costs no pass.

A row is filled once per (weights, preprocessing, images); what is not there yet is filled in, in any order, so that a
run that was stopped, or one with a limit, has done its part for the next.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
from numpy.lib.format import open_memmap

from dcclip_cli.errors import DcclipError
from dcclip_cli.files import atomic_write, lock, new_array

_MISSING, _THERE, _CORRUPT = 0, 1, 2
_FLUSH_S = 5.0  # at most so much work is lost when a run is killed


class FeatureCache:
    """Embeddings in folders by their key, under `root`; with no root they are kept until the process ends."""

    def __init__(self, root: Path | None) -> None:
        self._root = None if root is None else root / "features"
        self._rows: dict[str, Rows] = {}
        self._texts: dict[str, np.ndarray] = {}

    @contextmanager
    def rows(self, key: Mapping[str, Any], count: int) -> Iterator[Rows]:
        """The rows of `count` images, locked against other processes."""
        name = _hash(key)
        if self._root is None:
            yield self._rows.setdefault(name, Rows(None, count))
            return
        folder = self._root / name
        folder.mkdir(parents=True, exist_ok=True)
        with lock(folder / "lock"):
            (folder / "key.json").write_text(json.dumps(key, indent=1, ensure_ascii=False) + "\n", "utf-8")
            rows = Rows(folder, count)
            try:
                yield rows
            finally:
                rows.flush()

    def texts(self, fingerprint: str, texts: Sequence[str], embed: Callable[[], np.ndarray]) -> np.ndarray:
        """What `embed` gives for these texts with this model, (N, D) float32, asked for once."""
        name = _hash({"model": fingerprint, "texts": list(texts)})
        if self._root is None:
            if name not in self._texts:
                self._texts[name] = embed()
            return self._texts[name]
        file = self._root / f"texts-{name}.npy"
        with suppress(OSError, ValueError, EOFError):  # none yet, or half of one
            kept = np.asarray(np.load(file, allow_pickle=False))
            if np.isfinite(kept).all():
                return kept
        found = embed()
        file.parent.mkdir(parents=True, exist_ok=True)
        partial = file.with_name(f"{file.name}.{os.getpid()}")
        with partial.open("wb") as stream:
            np.save(stream, found, allow_pickle=False)
        partial.replace(file)
        return found


class Rows:
    """One row for each image: not there, there, or known to be unreadable and why."""

    def __init__(self, folder: Path | None, count: int) -> None:
        self._folder = folder
        self._state = np.zeros(count, np.uint8)
        self._values: np.ndarray | None = None
        self.faults: dict[int, str] = {}
        self._next_flush = time.monotonic() + _FLUSH_S
        if folder is not None:
            self._open(folder, count)

    def _open(self, folder: Path, count: int) -> None:
        try:
            state = np.load(folder / "state.npy", allow_pickle=False)
            values = open_memmap(folder / "features.npy", mode="r+")
            faults = json.loads((folder / "faults.json").read_text("utf-8"))
        except (OSError, ValueError, EOFError):  # none yet, or broken off before anything was done
            return
        if len(state) == len(values) == count:
            self._state, self._values = state, values
            self.faults = {int(index): fault for index, fault in faults.items()}

    def missing(self, wanted: np.ndarray) -> np.ndarray:
        """Those of the indices whose row is not known yet; a row that is not finite is not."""
        missing = self._state[wanted] == _MISSING
        if self._values is not None:
            there = self._state[wanted] == _THERE
            missing[there] = ~np.isfinite(self._values[wanted[there]]).all(axis=1)
        return wanted[missing]

    def fill(self, indices: np.ndarray, values: np.ndarray, faults: Mapping[int, str]) -> None:
        """Take the embeddings (B, D) of images, and what is wrong with others."""
        if len(indices):
            if self._values is None:
                self._values = self._new(values.shape[1])
            self._values[indices] = values
            self._state[indices] = _THERE
        for index, fault in faults.items():
            self._state[index] = _CORRUPT
            self.faults[index] = fault
        if time.monotonic() >= self._next_flush:
            self.flush()

    def take(self, wanted: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Those of the indices that could be read, and their embeddings. Raises DcclipError if none could."""
        there = wanted[self._state[wanted] == _THERE]
        if not len(there) or self._values is None:
            first = next(iter(self.faults.values()), "")
            raise DcclipError(f"none of {len(wanted):,} images can be read: {first}", "fetch them again")
        return there, np.asarray(self._values[there])

    def flush(self) -> None:
        """Put everything on disk, the rows before the word that they are there."""
        self._next_flush = time.monotonic() + _FLUSH_S
        if self._folder is None:
            return
        if isinstance(self._values, np.memmap):
            self._values.flush()
        atomic_write(self._folder / "faults.json", json.dumps(self.faults, ensure_ascii=False).encode())
        partial = self._folder / "state.partial"
        with partial.open("wb") as stream:
            np.save(stream, self._state, allow_pickle=False)
        partial.replace(self._folder / "state.npy")

    def _new(self, width: int) -> np.ndarray:
        shape = (len(self._state), width)
        if self._folder is None:
            return np.zeros(shape, np.float32)
        return new_array(self._folder / "features.npy", np.float32, shape)


def _hash(key: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(key, sort_keys=True, default=str).encode()).hexdigest()[:24]
