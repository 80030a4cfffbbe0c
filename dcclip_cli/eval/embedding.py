"""Embeddings of a test set's images and texts, cached by model; class names that a model cannot
tell apart.

Chinese BERT's vocabulary lacks characters of names such as 蝾螈, 猞猁 and 犰狳: each is read as two
unknown tokens, and the three classes of ImageNet are one class to a model with that vocabulary.
They are asked for by alternates. Different tokens can be one embedding too: words that a model was
never trained on.
"""

import hashlib
import json
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from dcclip_cli.core.errors import DcclipError, Message
from dcclip_cli.core.files import atomic_write, lock
from dcclip_cli.core.progress import Progress
from dcclip_cli.core.store import FeatureStore, Values, digests, flat
from dcclip_cli.core.text import check_unicode
from dcclip_cli.eval.dataset import Classes, Images, ImageTransform
from dcclip_cli.eval.metrics import TIED, tied_groups
from dcclip_cli.inference.encoder import Encoder
from dcclip_cli.inference.images import aligned, embed_batches
from dcclip_cli.inference.zero_shot import class_means, fill, text_embeddings

_NOBODYS = "\u4dbf"  # a rare Chinese character, in hardly any vocabulary
_NAMED_FAULTS = 3  # unreadable images that are named on the terminal; the result names all


class FeatureCache:
    """Embeddings by model in feature stores under `root`, or in memory; `warn` gets a line about
    each damaged block.
    """

    def __init__(self, root: Path | None, warn: Callable[[str], None] = lambda _: None) -> None:
        self._root = None if root is None else root / "features"
        self._warn = warn
        self._stores: dict[str, FeatureStore] = {}

    def complete(
        self,
        identity: Mapping[str, Any],
        items: Iterable[bytes],
        compute: Callable[[np.ndarray], Iterator[tuple[np.ndarray, Values]]],
    ) -> tuple[np.ndarray, np.ndarray]:
        """(N,) which of the items have embeddings, and their embeddings, of which only the missing
        are computed.

        Embeddings depend on their item and on what `identity` contains. See
        `FeatureStore.complete` for `compute`. Another process that asks for items of the same
        `identity` waits meanwhile.
        """
        described = json.dumps(identity, indent=1, sort_keys=True, ensure_ascii=False, default=str)
        name = hashlib.sha256(described.encode()).hexdigest()[:24]
        if name not in self._stores:
            folder = self._root and self._root / name
            if folder:
                atomic_write(folder / "about.json", described + "\n")
            self._stores[name] = FeatureStore(folder, self._warn)
        store = self._stores[name]
        if store.folder:
            with lock(store.folder / ".lock", wait=False) as is_free:
                pass
            if not is_free:
                self._warn(
                    Message(
                        "another process computes embeddings in {}; waiting for it", store.folder
                    )
                )
        with lock(store.folder / ".lock") if store.folder else nullcontext():
            store.refresh()
            is_embedded, arrays = store.complete(["embedding"], digests("", items), compute)
            return is_embedded, flat(arrays["embedding"])


@dataclass(frozen=True)
class Embedded:
    """Embeddings (N, D) of length 1 of readable images, by `indices`; `computed` were not cached
    and took `seconds`.
    """

    indices: np.ndarray
    vectors: np.ndarray
    corrupt: dict[str, str]
    computed: int
    seconds: float


def sample_indices(count: int, limit: int | None) -> np.ndarray:
    """A fixed random sample of at most `limit` of `count` images, in order."""
    if limit is None or limit >= count:
        return np.arange(count)
    return np.sort(np.random.default_rng(0).permutation(count)[:limit])


@dataclass(frozen=True)
class Embedder:
    """Embeds with a loaded model what is not cached yet; `workers` threads read images while the
    model runs.
    """

    model: Encoder
    cache: FeatureCache
    progress: Progress
    batch_size: int = 64
    workers: int = 2

    def images(
        self, images: Images, transform: ImageTransform, name: str, limit: int | None
    ) -> Embedded:
        """The embeddings of all images, or of a sample of `limit`; unreadable ones are named on
        the terminal.
        """
        preprocessing = dict(self.model.preprocessing)
        begin = time.perf_counter()
        computed = 0
        faults = dict[str, str]()
        sampled = sample_indices(len(images), limit)

        def read(index: int) -> Image.Image:
            return transform(images.load(index), preprocessing)

        def compute(places: np.ndarray) -> Iterator[tuple[np.ndarray, Values]]:
            nonlocal computed
            computed = len(places)
            label = Message("{} on {}", self.model.name, name)
            with self.progress.task(label, len(sampled), len(sampled) - computed) as task:
                batches = (sampled[batch].tolist() for batch in aligned(places, self.batch_size))
                for batch in embed_batches(self.model, batches, read, self.workers):
                    vectors = {
                        index: vector for index, vector in batch if isinstance(vector, np.ndarray)
                    }
                    faults.update(
                        {
                            images.keys[i]: error.what
                            for i, error in batch
                            if isinstance(error, DcclipError)
                        }
                    )
                    rows = np.asarray(list(vectors.values()))
                    yield np.searchsorted(sampled, list(vectors)), {"embedding": rows}
                    task.advance(len(batch))

        identity = {
            "model": self.model.fingerprint,
            "preprocessing": transform.record(preprocessing),
            "images": images.fingerprint,
            "count": len(images),
        }
        is_embedded, vectors = self.cache.complete(
            identity, (str(index).encode() for index in sampled), compute
        )
        if not len(vectors):
            first = next(iter(faults.values()), "")
            raise DcclipError(
                "none of {:,} images is readable: {}",
                "download the images again",
                len(sampled),
                first,
            )
        if faults:
            named = [f"{key} ({fault})" for key, fault in list(faults.items())[:_NAMED_FAULTS]]
            shown = ", ".join(named) + (", ..." if len(faults) > len(named) else "")
            counts = name, len(faults), len(sampled), shown
            self.progress.say(
                Message("data set {}: {:,} of {:,} images are unreadable and ignored: {}", *counts)
            )
        return Embedded(
            sampled[is_embedded], vectors, faults, computed, time.perf_counter() - begin
        )

    def texts(self, texts: Sequence[str]) -> np.ndarray:
        """(N, D), length 1."""

        def compute(places: np.ndarray) -> Iterator[tuple[np.ndarray, Values]]:
            with self.progress.task(Message("{} on texts", self.model.name), len(places)) as task:
                rows = text_embeddings(
                    self.model, [texts[place] for place in places], advance=task.advance
                )
                yield places, {"embedding": rows}

        identity = {"model": self.model.fingerprint, "texts": True}
        return self.cache.complete(identity, (text.encode() for text in texts), compute)[1]

    def classes(self, names: Sequence[str], templates: Sequence[str]) -> np.ndarray:
        """(C, D), length 1: the mean over each class's templates, as in CLIP's zero-shot
        classifier.
        """
        texts = [text for name in names for text in fill(templates, name)]
        return class_means(self.texts(texts), [len(templates)] * len(names))


@dataclass(frozen=True)
class ClassVectors:
    """Classes as embeddings (C, D), the groups with the same embedding, and the alternates in
    place of names.
    """

    vectors: np.ndarray
    alike: list[list[int]]
    replaced: dict[str, str]


def class_vectors(embedder: Embedder, classes: Classes) -> ClassVectors:
    """The embeddings of the classes, where several are the same by alternates whose embedding no
    other class has.

    The alternates with the fewest unknown characters are chosen first; those with any only for a
    class that is still alike to another. Classes that have the same name in the list itself are
    left as they are.
    """
    names = classes.names
    vectors = embedder.classes(classes.names, classes.templates)
    alike = tied_groups(vectors)
    groups = [set(group) for group in alike if len({names[number] for number in group}) > 1]
    group_of = {number: group for group in groups for number in group}
    offered = [
        (number, name) for number in group_of for name in classes.alternates.get(names[number], ())
    ]
    if not offered:
        return ClassVectors(vectors, alike, {})
    alternates = [name for _, name in offered]
    offered_vectors = embedder.classes(alternates, classes.templates)
    # The fraction of each alternate's characters that the tokenizer reads as it reads one that
    # nobody writes.
    characters = sorted({char for name in alternates for char in name})
    check_unicode(characters)
    texts = [fill(classes.templates[:1], char)[0] for char in (*characters, _NOBODYS)]
    *rows, nobodys = embedder.model.tokenize(texts)
    unread = {
        char for char, row in zip(characters, rows, strict=True) if np.array_equal(row, nobodys)
    }
    unknown = [sum(char in unread for char in name) / len(name) for name in alternates]
    chosen = dict[int, int]()
    used = vectors
    for place in sorted(range(len(offered)), key=lambda place: (unknown[place], place)):
        number = offered[place][0]
        vector = offered_vectors[place]
        is_needed = unknown[place] == 0 or len(group_of[number]) > 1
        if number not in chosen and is_needed and (used @ vector).max() <= 1 - TIED:
            chosen[number] = place
            used = np.vstack([used, vector])
            group_of[number].discard(number)
    vectors[list(chosen)] = offered_vectors[list(chosen.values())]
    replaced = {names[number]: alternates[place] for number, place in chosen.items()}
    return ClassVectors(vectors, tied_groups(vectors), replaced)
