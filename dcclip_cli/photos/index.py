"""Embeddings of many inputs, stored as they are computed: for `search` and for `embed`."""

import hashlib
import os
import re
import shutil
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import cached_property
from itertools import chain, compress, product
from operator import itemgetter
from pathlib import Path
from typing import Self

import numpy as np

from dcclip_cli.core.errors import DcclipError, Message
from dcclip_cli.core.files import cache_folder, is_within
from dcclip_cli.core.progress import Progress, Silent, Task, clock
from dcclip_cli.core.store import FeatureStore, MissingRows, Ragged, Values, digests, flat
from dcclip_cli.inference.encoder import Encoder, ShortEncoder
from dcclip_cli.inference.images import (
    BATCH_SIZE,
    LINKS,
    aligned,
    batched,
    embed,
    embed_batches,
    find_images,
    read,
    readers,
    skipped_line,
)
from dcclip_cli.inference.videos import frame_name, frames, is_video, split_frame
from dcclip_cli.inference.zero_shot import text_embeddings
from dcclip_cli.model.preprocess import ImageError

Stored = tuple[np.ndarray, Values]  # which rows, and their arrays
# arrays in the store
_OF_IMAGE = ["embedding"]
_OF_VIDEO = ["frames", "time_s"]
_TEXTS = 256  # in a batch
_FRAMES_PER_HIT = 8  # by which more rows are compared if videos have many of the nearest


@dataclass(frozen=True)
class Hit:
    """An image and the cosine between its embedding and that of the text; of a video, that of its
    frame at `time_s`.
    """

    image: Path
    score: float
    time_s: float | None = None

    @property
    def frame(self) -> Path:
        """The image, or the frame of the video by its name: holiday.mp4#t=83.2."""
        return Path(frame_name(self.image, self.time_s))

    @property
    def title(self) -> str:
        """The path for people: holiday.mp4 @ 1:23."""
        return str(self.image) if self.time_s is None else f"{self.image} @ {clock(self.time_s)}"


@dataclass(frozen=True)
class ImageIndex:
    """The images of a folder: `paths` relative to it, their `embeddings` (N, D) of length 1, and
    what failed.

    Each frame of a video has a path, holiday.mp4#t=83.2. `embedded` is how many of the images and
    videos went through the model this time. `unreadable` failed before and have not changed; they
    are not among the `errors`. `skipped` counts the pictures and videos in other formats, by
    suffix. `listing` has the states of all files that were read, also of damaged ones; `exclude`
    and `store` are for an update.
    """

    folder: Path
    paths: tuple[str, ...]
    embeddings: np.ndarray
    errors: dict[str, DcclipError]
    embedded: int
    unreadable: tuple[str, ...] = ()
    skipped: Counter[str] = field(default_factory=Counter)
    listing: Mapping[str, bytes] = field(default_factory=dict)
    exclude: Sequence[str] = ()
    store: FeatureStore | None = None

    @cached_property
    def images(self) -> dict[str, str]:
        """The path of each image by its file, and of the last frame of each video."""
        return {split_frame(path)[0]: path for path in self.paths}

    def not_stored(self, files: Mapping[str, bytes]) -> list[str]:
        """The names of new and changed files, of these with their states, whose embeddings are not
        stored.
        """
        changed = {name: state for name, state in files.items() if self.listing.get(name) != state}
        if self.store and changed:
            self.store.refresh()
            return [*compress(changed, _not_stored(self.store, _keys(changed)))]
        return [*changed]

    def count(self, query: np.ndarray, least: float) -> int:
        """How many images have a cosine of at least `least` with `query` (D,)."""
        rows = np.flatnonzero(self.embeddings @ query >= least) if self.paths else np.empty(0, int)
        return len({split_frame(self.paths[row])[0] for row in rows.tolist()})

    def search(self, query: np.ndarray, top_k: int) -> list[Hit]:
        """The `top_k` images nearest to `query` (D,), the nearest first, videos by their best
        frame.

        100,000 images take 12 ms at 256 numbers each and 22 ms at 768, on one thread of a server:
        a vector index would save less than it costs to load.
        """
        hits = dict[str, Hit]()
        rows = top_k
        while True:
            places, scores = nearest(self.embeddings, query, rows)
            for place, score in zip(places.tolist(), scores.tolist(), strict=True):
                name, time_s = split_frame(self.paths[place])
                hits.setdefault(name, Hit(self.folder / name, score, time_s))
            if len(hits) >= top_k or rows >= len(self.paths):
                return [*hits.values()][:top_k]
            rows *= _FRAMES_PER_HIT


def direction(added: np.ndarray, subtracted: np.ndarray | None = None) -> np.ndarray:
    """(D,), length 1: the sum of embeddings (N, D) less the sum of others. Raises DcclipError if
    nothing is left.
    """
    total = added.sum(axis=0) - (0 if subtracted is None else subtracted.sum(axis=0))
    if not (length := float(np.linalg.norm(total))) > 1e-6:
        raise DcclipError(
            "the query is empty: --text and --not cancel out",
            "use different inputs for --text and --not",
        )
    return np.asarray(total / length, np.float32)


def search_all(indexes: Sequence[ImageIndex], query: np.ndarray, top_k: int) -> list[Hit]:
    """The `top_k` images of several indexes nearest to `query` (D,), the nearest first, each once."""
    hits: dict[Path, Hit] = {}
    for index in filter(lambda index: index.paths, indexes):
        for hit in index.search(query, top_k):
            hits.setdefault(hit.image.parent.resolve() / hit.image.name, hit)
    return sorted(hits.values(), key=lambda hit: -hit.score)[:top_k]


def count_all(indexes: Sequence[ImageIndex], query: np.ndarray, least: float) -> int:
    """How many images of several indexes have a cosine of at least `least` with `query` (D,)."""
    return sum(index.count(query, least) for index in indexes)


@dataclass(frozen=True)
class EmbeddedInputs:
    """Which of the inputs have an embedding (N,), these embeddings, the others' errors, and how
    many are new.

    Those of images come first, then for each of `frames` (place of the video, time in seconds)
    one.
    """

    has_vector: np.ndarray
    vectors: np.ndarray
    errors: dict[int, DcclipError]
    computed: int
    frames: Sequence[tuple[int, float]] = ()

    @classmethod
    def of_stored(
        cls, images: Stored, videos: Stored, errors: dict[int, DcclipError], computed: int
    ) -> Self:
        """From which inputs (N,) the store has as images, with their arrays, and which as videos."""
        (is_image, of_images) = images
        (is_filmed, of_videos) = videos
        lengths = (
            of_videos["time_s"].lengths if isinstance(of_videos["time_s"], Ragged) else 0
        )  # without videos
        places = np.repeat(np.flatnonzero(is_filmed), lengths).tolist()
        parts = flat(of_images["embedding"]), flat(of_videos["frames"])
        filled = [*filter(len, parts)] or parts[:1]
        vectors = (
            np.concatenate(filled) if len(filled) > 1 else filled[0]
        )  # no copy of images alone
        filmed = list(zip(places, flat(of_videos["time_s"]).reshape(-1).tolist(), strict=True))
        return cls(is_image | is_filmed, vectors, errors, computed, filmed)


def distinct(folders: Iterable[Path]) -> list[Path]:
    """The folders in order, without repetitions by another path."""
    return [*{folder.resolve(): folder for folder in folders}.values()]


def list_images(
    folder: Path,
    exclude: Sequence[str] = (),
    skipped: Counter[str] | None = None,
    within: Sequence[Path] = (),
) -> dict[str, bytes]:
    """The states of a folder's images and videos, by relative path. Raises DcclipError if there is
    nothing.

    Links that lead out of the real folders `within` are left out, and counted as `LINKS`.
    """
    if not folder.is_dir():
        raise DcclipError("{} is not a folder", "choose a folder of images", folder)
    paths = find_images([str(folder)], exclude=exclude, skipped=skipped, videos=True)
    if within:
        parents = {path.parent for path in paths}
        inside = {parent for parent in parents if is_within(parent, within)}
        count = len(paths)
        paths = [path for path in paths if path.parent in inside]
        paths = [path for path in paths if not path.is_symlink() or is_within(path, within)]
        if skipped is not None and len(paths) < count:
            skipped[LINKS] += count - len(paths)
    return {str(path.relative_to(folder)): file_state(path) for path in paths}


def open_index(
    model: Encoder,
    folder: Path,
    fresh: bool = False,
    progress: Progress | None = None,
    exclude: Sequence[str] = (),
    updated: ImageIndex | None = None,
    listing: Mapping[str, bytes] | None = None,
    within: Sequence[Path] = (),
) -> ImageIndex:
    """The up-to-date index of the images in a folder and below it; new and changed ones are
    embedded now.

    It is stored in the cache folder, if that can be written, for all models with the same image
    tower. Files that the index of a folder above has are not embedded again, and those that could
    not be decoded are not tried again, unless `fresh`. Rows of other files remain stored: their
    disk may be away for a moment. Raises DcclipError where there is no such folder, or no image in
    it that can be read. With a `listing`, the index has only these files, perhaps none. `updated`
    is the index before. Links that lead out of the real folders `within` are left out.
    """
    progress = progress or Silent()
    skipped = Counter[str]()
    may_be_empty = listing is not None
    listing = list_images(folder, exclude, skipped, within) if listing is None else listing
    names = [*listing]
    paths = [folder / name for name in listing]
    videos = np.fromiter(map(is_video, listing), bool)
    store = (updated and updated.store) or FeatureStore(
        _index_folder(model, folder), progress.say, optional=True
    )
    store.refresh()  # another process may have replaced blocks
    keys = _keys(listing)
    failures = _reported()
    if fresh:
        store.clear()
    else:
        _copy_stored(store, keys, listing, model, folder)
    missing = np.flatnonzero(store.missing(keys, ["embedding"]))
    missing_files = {names[place]: listing[names[place]] for place in missing}
    failure_keys = keys.copy()
    is_unreadable = np.zeros(len(keys), bool)
    failure_keys[missing] = _keys(missing_files, folder.resolve(), f"unreadable {readers()}")
    is_unreadable[missing] = ~failures.missing(failure_keys[missing], ["reported"]) & (not fresh)
    masks = ~videos & ~is_unreadable, videos & ~is_unreadable
    embedded = _embed_files(
        model, paths, store, keys, np.float16, f"index {folder}", progress, *masks
    )
    is_unreadable &= ~embedded.has_vector
    failed = [place for place, error in embedded.errors.items() if isinstance(error, ImageError)]
    _report(failures, failure_keys[failed])
    if not (may_be_empty or embedded.has_vector.any()):
        raise DcclipError(
            "{} contains no readable image", "choose a folder with readable images", folder
        )
    embeddings = normalized(embedded.vectors)
    is_image = embedded.has_vector & ~videos
    frame_names = (frame_name(names[place], time_s) for place, time_s in embedded.frames)
    indexed = (*compress(names, is_image), *frame_names)
    unreadable = tuple(compress(names, is_unreadable))
    errors = {names[place]: error for place, error in embedded.errors.items()}
    unread = {
        name for name, error in errors.items() if not isinstance(error, ImageError)
    }  # perhaps only for a moment
    listing = {name: state for name, state in listing.items() if name not in unread}
    return ImageIndex(
        folder=folder,
        paths=indexed,
        embeddings=embeddings,
        errors=errors,
        embedded=embedded.computed,
        unreadable=unreadable,
        skipped=skipped,
        listing=listing,
        exclude=exclude,
        store=store,
    )


def say_missing(command: str, indexes: Sequence[ImageIndex], progress: Progress) -> None:
    """Say what is not in the indexes: skipped files once, as long as their counts do not change;
    unreadable images.
    """
    if skipped := sum((index.skipped for index in indexes), Counter[str]()):
        line = skipped_line(command, skipped, videos=True)
        folders = [str(index.folder.resolve()) for index in indexes]
        reports = _reported()
        key = digests(line, [repr(folders).encode()])
        if not isinstance(progress, Silent) and reports.missing(key, ["reported"])[0]:
            progress.say(line)
            _report(reports, key)
    if unreadable := [index.folder / name for index in indexes for name in index.unreadable]:
        count = len(unreadable)
        first = unreadable[0]
        progress.say(
            Message(
                "{}: skipped {:,} images that are still unreadable, such as {}",
                command,
                count,
                first,
            )
        )


def _reported() -> FeatureStore:
    """What was reported once, by digest: files that cannot be decoded, and counts of skipped
    files.
    """
    return FeatureStore(cache_folder() / "search" / "reported", optional=True)


def _report(store: FeatureStore, keys: np.ndarray) -> None:
    store.write([(keys, {"reported": np.ones((len(keys), 1), np.uint8)})] if len(keys) else [])


@contextmanager
def embedded_images(
    model: Encoder, paths: Sequence[Path], out: Path, progress: Progress
) -> Iterator[EmbeddedInputs]:
    """Embeddings, float32, of images for the file `out`; those of a stopped call are used until it
    is written.
    """
    with _until_written(model, out, progress) as store:
        # A row depends on all images of its batch: the last bits of an embedding do.
        stamps = [str(path).encode(errors="surrogateescape") + file_state(path) for path in paths]
        keys = _keys_in_batches(stamps, BATCH_SIZE)
        masks = np.ones(len(paths), bool), np.zeros(len(paths), bool)
        yield _embed_files(model, paths, store, keys, np.float32, "embed", progress, *masks)


@contextmanager
def embedded_texts(
    model: Encoder, texts: Sequence[str], out: Path, progress: Progress
) -> Iterator[np.ndarray]:
    """Embeddings (N, D), float32, of texts for the file `out`, like `embedded_images`."""
    order = sorted(
        range(len(texts)), key=lambda index: len(texts[index])
    )  # little padding in each batch

    def compute(places: np.ndarray) -> Iterator[tuple[np.ndarray, Values]]:
        with progress.task(Message("embed"), len(texts), len(texts) - len(places)) as task:
            for batch in aligned(places, _TEXTS):
                rows = text_embeddings(model, [texts[order[place]] for place in batch], _TEXTS)
                yield np.asarray(batch), {"embedding": rows}
                task.advance(len(batch))

    with _until_written(model, out, progress) as store:
        keys = _keys_in_batches(
            [texts[index].encode(errors="surrogatepass") for index in order], _TEXTS
        )
        sorted_vectors = flat(store.complete(["embedding"], keys, compute)[1]["embedding"])
        vectors = np.empty_like(sorted_vectors)
        vectors[order] = sorted_vectors
        yield vectors


def _embed_files(
    model: Encoder,
    paths: Sequence[Path],
    store: FeatureStore,
    keys: np.ndarray,
    dtype: type[np.floating],
    name: str,
    progress: Progress,
    images: np.ndarray,
    videos: np.ndarray,
) -> EmbeddedInputs:
    """What is stored of all files, and computed of missing `images` and `videos` (N,)."""
    errors = dict[int, DcclipError]()
    computed = 0

    def compute_images(places: np.ndarray) -> Iterator[tuple[np.ndarray, Values]]:
        nonlocal computed
        places = places[images[places]]
        if not len(places):  # videos are not images
            return
        with progress.task(name, len(paths), len(paths) - len(places)) as task:
            for batch in embed_batches(
                model, aligned(places, BATCH_SIZE), lambda place: read(paths[place])
            ):
                errors.update(
                    {place: result for place, result in batch if isinstance(result, DcclipError)}
                )
                vectors = {
                    place: result for place, result in batch if isinstance(result, np.ndarray)
                }
                computed += len(vectors)
                if vectors:
                    rows = np.stack(list(vectors.values())).astype(dtype)
                    yield np.asarray(list(vectors)), {"embedding": rows}
                task.advance(len(batch))

    def compute_frames(places: np.ndarray) -> Iterator[tuple[np.ndarray, Values]]:
        nonlocal computed
        places = places[videos[places]]
        if not len(places):  # images have no frames
            return
        with progress.task(name, len(places)) as task:
            for place in places.tolist():
                try:
                    times, vectors = _embed_frames(model, paths[place], task)
                except DcclipError as error:
                    errors[place] = error
                else:
                    computed = computed + 1
                    count = np.array([len(times)])
                    rows = Ragged(vectors.astype(dtype), count)
                    yield np.array([place]), {"frames": rows, "time_s": Ragged(times, count)}
                task.advance()

    stored = (
        store.complete(_OF_IMAGE, keys, compute_images),
        store.complete(_OF_VIDEO, keys, compute_frames),
    )
    return EmbeddedInputs.of_stored(*stored, errors, computed)


def _embed_frames(model: Encoder, video: Path, task: Task) -> tuple[np.ndarray, np.ndarray]:
    """The times (N,) and embeddings (N, D) of a video's frames. Raises DcclipError for one that
    cannot be read.
    """
    times = list[float]()
    vectors = list[np.ndarray]()
    for (time_s, _), result in embed(model, frames(video), itemgetter(1)):
        if isinstance(result, DcclipError):
            raise result
        times.append(time_s)
        vectors.append(result)
        task.advance(0)  # which may stop
    return np.array(times), np.stack(vectors)


def _index_folder(model: Encoder, path: Path) -> Path:
    """The folder of an index, which models with the same image tower share."""
    return _stored("search", model.image_fingerprint, model.precision, path)


def _not_stored(store: FeatureStore, keys: np.ndarray) -> np.ndarray:
    return store.missing(keys, _OF_IMAGE) & store.missing(keys, _OF_VIDEO)


def _copy_stored(
    store: FeatureStore,
    keys: np.ndarray,
    listing: Mapping[str, bytes],
    model: Encoder,
    folder: Path,
) -> None:
    """Add to an index what others have, so that no model computes it again.

    These are the indexes of the folders above, and for shortened embeddings those of full ones.
    """
    full = model.full if isinstance(model, ShortEncoder) else model
    missing = _not_stored(store, keys)
    sources = dict.fromkeys((model, full))
    for base in dict.fromkeys((Path(os.path.abspath(folder)), folder.resolve())):
        for parent, encoder in product((base, *base.parents), sources):
            if not missing.any():
                return
            source = _index_folder(encoder, parent)
            if source == store.folder or not source.is_dir():
                continue
            index = FeatureStore(source, optional=True)
            source_keys = _keys(listing, base.relative_to(parent))
            for array_names in (_OF_IMAGE, _OF_VIDEO):
                reusable = missing & ~index.missing(source_keys, array_names)
                if not reusable.any():
                    continue
                with suppress(MissingRows):  # of a damaged block
                    arrays = index.read_arrays(array_names, source_keys[reusable])
                    if isinstance(model, ShortEncoder) and encoder is not model:
                        rows = arrays[array_names[0]]
                        vectors = model.shortened(normalized(flat(rows)), "images").astype(
                            np.float16
                        )
                        arrays[array_names[0]] = (
                            Ragged(vectors, rows.lengths) if isinstance(rows, Ragged) else vectors
                        )
                    store.write([(keys[reusable], arrays)])
                    missing &= ~reusable


def _stored(kind: str, fingerprint: str, precision: str, path: Path) -> Path:
    identity = f"{fingerprint} {precision} {path.resolve()}".encode(errors="surrogateescape")
    name = re.sub(r"[^\w.-]+", "-", path.resolve().name)[:100]
    return cache_folder() / kind / f"{name}-{hashlib.sha256(identity).hexdigest()[:24]}"


@contextmanager
def _until_written(model: Encoder, out: Path, progress: Progress) -> Iterator[FeatureStore]:
    folder = _stored("embed", model.fingerprint, model.precision, out)
    yield FeatureStore(folder, progress.say, optional=True)
    shutil.rmtree(folder, ignore_errors=True)


def _keys_in_batches(inputs: Sequence[bytes], size: int) -> np.ndarray:
    batches = (hashlib.sha256(b"\0".join(batch)).digest() for batch in batched(inputs, size))
    rows = ((batch + bytes([number]) for number in range(size)) for batch in batches)
    return digests("", list(chain.from_iterable(rows))[: len(inputs)])


def _keys(listing: Mapping[str, bytes], above: Path = Path(), context: str = "") -> np.ndarray:
    """The keys of files, whose names are those from a folder `above`."""
    files = listing.items()
    return digests(
        context,
        (str(above / name).encode(errors="surrogateescape") + state for name, state in files),
    )


def file_state(file: Path) -> bytes:
    """What changes when a file does: its size and time of change (ns)."""
    try:
        status = Path(split_frame(file)[0]).stat()
    except (OSError, ValueError):  # reading it reports that
        return b""
    return f"\0{status.st_size}\0{status.st_mtime_ns}".encode()


def normalized(rows: np.ndarray) -> np.ndarray:
    """Stored embeddings (N, D) with length 1 again, float32."""
    vectors = rows.astype(np.float32)
    vectors /= np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
    return vectors


def nearest(rows: np.ndarray, query: np.ndarray, top_k: int) -> tuple[np.ndarray, np.ndarray]:
    """The places of the `top_k` rows nearest to `query` (D,), and their cosines, the nearest
    first.
    """
    scores = rows @ query
    places = np.arange(len(rows))
    if top_k < len(rows):
        places = np.sort(np.argpartition(-scores, top_k - 1)[:top_k])
    places = places[np.argsort(-scores[places], kind="stable")]
    return places, scores[places]
