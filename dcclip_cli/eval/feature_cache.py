"""Cache of the embeddings of images and texts by model, so that another language or prompt needs no second pass."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from dcclip_cli.errors import DcclipError
from dcclip_cli.files import atomic_write, lock
from dcclip_cli.store import FeatureStore, digests


class FeatureCache:
    """Embeddings in feature stores under `root`; without a root they are kept in memory.

    `warn` gets a line about each damaged block.
    """

    def __init__(self, root: Path | None, warn: Callable[[str], None] = lambda _: None) -> None:
        self._root, self._warn = None if root is None else root / "features", warn
        self._stores: dict[str, FeatureStore] = {}

    def complete(
        self,
        about: Mapping[str, Any],
        items: Iterable[bytes],
        compute: Callable[[np.ndarray], Iterator[tuple[np.ndarray, np.ndarray]]],
    ) -> tuple[np.ndarray, np.ndarray]:
        """(N,) which of the items have embeddings, and their embeddings, of which only the missing are computed.

        Embeddings depend on their item and on what `about` contains. See `FeatureStore.complete` for `compute`. Another
        process that asks for items of the same `about` waits meanwhile.
        """
        store = self._store(about)
        with ExitStack() as held:
            if store.folder:
                with _writable(store.folder):
                    held.enter_context(lock(store.folder / ".lock"))
            store.refresh()
            return store.complete("embedding", digests("", items), compute)

    def _store(self, about: Mapping[str, Any]) -> FeatureStore:
        described = json.dumps(about, indent=1, sort_keys=True, ensure_ascii=False, default=str)
        name = hashlib.sha256(described.encode()).hexdigest()[:24]
        if name not in self._stores:
            folder = self._root and self._root / name
            if folder:
                with _writable(folder):
                    folder.mkdir(parents=True, exist_ok=True)
                    atomic_write(folder / "about.json", described + "\n")
            self._stores[name] = FeatureStore(folder, self._warn)
        return self._stores[name]


@contextmanager
def _writable(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        hint = "name another folder with DCCLIP_CACHE, or use --no-cache"
        raise DcclipError(f"{folder} cannot be written: {error.strerror}", hint) from None
