"""Copies and bursts among photographs: for `dcclip search --duplicates`, `dcclip serve` and
`dcclip mcp`.
"""

from __future__ import annotations

import os
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from importlib.util import find_spec
from itertools import chain, compress, product
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from dcclip_cli.core.errors import DcclipError, Message
from dcclip_cli.core.files import cache_folder, several
from dcclip_cli.core.machine import cores
from dcclip_cli.core.progress import Progress, ProgressChoice, progress_for
from dcclip_cli.core.store import (
    SUFFIX,
    FeatureStore,
    Values,
    digests,
    flat,
    open_block,
    write_block,
)
from dcclip_cli.core.versions import VERSION
from dcclip_cli.data.decoded import DecodedImage
from dcclip_cli.data.near_duplicates import HASH_BITS, SIDE, find_near, perceptual_hashes, thumbnail
from dcclip_cli.model.preprocess import DAMAGE

if TYPE_CHECKING:
    from dcclip_cli.inference.model import Model
    from dcclip_cli.photos.index import ImageIndex

PathLike = str | os.PathLike[str]
_BATCH = 128  # photographs whose thumbnails are stored at a time
_ARRAYS = ("thumb", "size", "taken_s")
# ExifIFD, DateTimeOriginal, SubSecTimeOriginal
_EXIF = 0x8769
_TAKEN = 0x9003
_FRACTION = 0x9291
_BURST_S = 3.0  # between two photographs of a burst, at most
# Of two shifted, brighter and noisier views of 200 photographs, 99 % reach both, of different
# photographs of one class in Caltech-101 7 %, by the starter: similarity of embeddings, and
# correlation of thumbnails at the best of 9 shifts.
_MIN_COSINE = 0.5
_MIN_CORRELATION = 0.6
_CELLS = 16  # of a thumbnail along each side, by one of which it is shifted
_SHIFTS = (slice(1, None), slice(-1)), (slice(None), slice(None)), (slice(-1), slice(1, None))
# number of photographs at which half of their mean is subtracted: a part that CLIPs give to all
_MEAN_OF = 100
# earlier photographs that a photograph is compared with, at most: a wrong clock gives all one time
_COMPARED = 32


@dataclass(frozen=True)
class Photo:
    """A photograph and its size in pixels."""

    image: Path
    width: int
    height: int


@dataclass(frozen=True)
class Duplicates:
    """Groups of copies, in each the largest photograph first; bursts, in each the first one first;
    errors by path.
    """

    copies: list[list[Photo]]
    bursts: list[list[Photo]]
    errors: dict[str, DcclipError]


def duplicates(
    folder: PathLike | Iterable[PathLike],
    *,
    exclude: Sequence[str] = (),
    model: PathLike | Model | None = None,
    device: str = "auto",
    threads: int | None = None,
    progress: ProgressChoice = False,
) -> Duplicates:
    """Find copies and bursts among the images of folders; returns groups of them.

    Copies are resized, compressed again, slightly cropped or watermarked; the largest image comes
    first. The images of a burst were taken within seconds, according to EXIF, and `model` finds
    them similar. It is loaded only if there are such times. `exclude` are globs for files and
    folders.
    """
    from dcclip_cli.inference.images import find_images, skipped_line
    from dcclip_cli.inference.model import open_encoder
    from dcclip_cli.photos.index import distinct, file_state, open_index

    talk = progress_for(progress)
    skipped = Counter[str]()
    images_by_folder = dict[Path, list[Path]]()
    for top in distinct(map(Path, several(folder))):
        if not top.is_dir():
            raise DcclipError("{} is not a folder", "choose a folder of images", top)
        images_by_folder[top] = find_images([str(top)], exclude=exclude, skipped=skipped)
    if skipped:
        talk.say(skipped_line("search", skipped))

    def index(images: Sequence[Path]) -> Iterator[ImageIndex]:
        encoder = open_encoder(model, device, threads, talk)
        timed = set(images)
        for top, below in images_by_folder.items():
            if listing := {
                str(image.relative_to(top)): file_state(image) for image in below if image in timed
            }:
                yield open_index(encoder, top, progress=talk, listing=listing)

    return find_duplicates(chain.from_iterable(images_by_folder.values()), index, talk)


def find_duplicates(
    paths: Iterable[Path],
    index: Callable[[Sequence[Path]], Iterable[ImageIndex]],
    progress: Progress,
) -> Duplicates:
    """Find copies and bursts among photographs. `index` returns indexes with the embeddings of
    some of them.

    Copies are found as by the filter `near-image` of `dcclip collect`; each is similar to one
    photograph of its group: to the largest, or to that of an earlier comparison. Similar
    photographs that were taken at different times within seconds are a burst. Thumbnails and the
    result of the last comparison are in the cache folder. Raises DcclipError without duckdb, and
    if no photograph can be read.
    """
    if package := next((name for name in ("duckdb", "pyarrow") if find_spec(name) is None), None):
        raise DcclipError(
            "the comparison of images needs the package {}",
            "pip install 'dcclip[{}]'",
            package,
            "duplicates",
        )
    store = FeatureStore(cache_folder() / "search" / "thumbnails", progress.say, optional=True)
    photos, keys, taken_s, errors = _read(
        [*{path.resolve(): path for path in paths}.values()], store, progress
    )
    largest = np.arange(len(photos))  # of the group of each photograph
    pairs = _copies(photos, keys, store)
    largest[pairs[:, 1]] = pairs[:, 0]
    # Shots: copies that were taken at one time. Those without a time are of the largest photograph
    # that has one.
    rows = [*zip(largest.tolist(), taken_s.tolist(), strict=True)]
    group_s = {top: time_s for top, time_s in reversed(rows) if time_s}
    shots = dict[tuple[int, float], list[int]]()
    for row, (top, time_s) in enumerate(rows):
        shots.setdefault((top, time_s or group_s.get(top, 0.0)), []).append(row)
    times = sorted((time_s, shot[0]) for (_, time_s), shot in shots.items() if time_s)
    bursts = _bursts(photos, largest, times, lambda rows: store.read("thumb", keys[rows]), index)
    in_burst = {row for burst in bursts for row in burst}
    copies = dict[int, list[int]]()
    for (top, _), shot in shots.items():
        copies.setdefault(shot[0] if shot[0] in in_burst else top, []).extend(shot)
    groups = (sorted(group) for group in copies.values() if len(group) > 1)
    copy_photos, burst_photos = (
        [[photos[row] for row in group] for group in rows] for rows in (groups, bursts)
    )
    return Duplicates(sorted(copy_photos, key=lambda group: group[0].image), burst_photos, errors)


def _read(
    paths: Sequence[Path], store: FeatureStore, progress: Progress
) -> tuple[list[Photo], np.ndarray, np.ndarray, dict[str, DcclipError]]:
    """Those that can be read, the largest first, their keys in the store and times, and the
    others' errors.
    """
    from dcclip_cli.inference.images import read
    from dcclip_cli.photos.index import file_state

    resolved = (str(path.resolve()).encode(errors="surrogateescape") for path in paths)
    keys = digests("", map(bytes.__add__, resolved, map(file_state, paths)))
    errors = dict[str, DcclipError]()

    def shrink(place: int) -> dict[str, Any] | DcclipError:
        try:
            image = read(paths[place])
        except DcclipError as error:
            return error
        return {
            "thumb": thumbnail(DecodedImage(image, "", 1, 0)),
            "size": image.size,
            "taken_s": taken_at_s(image),
        }

    def compute(places: np.ndarray) -> Iterator[tuple[np.ndarray, Values]]:
        task = progress.task(Message("compare"), len(paths), len(paths) - len(places))
        with task as bar, ThreadPoolExecutor(cores()) as pool:
            for batch in (
                places[start : start + _BATCH].tolist() for start in range(0, len(places), _BATCH)
            ):
                results = [*zip(batch, pool.map(shrink, batch), strict=True)]
                errors.update(
                    {
                        str(paths[place]): row
                        for place, row in results
                        if isinstance(row, DcclipError)
                    }
                )
                rows = {place: row for place, row in results if isinstance(row, dict)}
                if rows:
                    yield (
                        np.array([*rows]),
                        {name: np.array([row[name] for row in rows.values()]) for name in _ARRAYS},
                    )
                bar.advance(len(batch))

    is_readable, arrays = store.complete(["size", "taken_s"], keys, compute)
    if not is_readable.any():
        raise DcclipError("no image could be read", "choose a folder with readable images")
    sizes = flat(arrays["size"])
    taken_s = flat(arrays["taken_s"])
    photos = [
        Photo(path, *size)
        for path, size in zip(compress(paths, is_readable), sizes.tolist(), strict=True)
    ]
    order = sorted(
        range(len(photos)),
        key=lambda row: (-photos[row].width * photos[row].height, photos[row].image),
    )
    return [photos[row] for row in order], keys[is_readable][order], taken_s[order], errors


def taken_at_s(image: Image.Image) -> float:
    """When a photograph was taken, in seconds of the camera's clock; 0 if its EXIF does not say
    so.
    """
    with suppress(*DAMAGE):
        exif = image.getexif().get_ifd(_EXIF)
        time, fraction = (str(exif.get(tag, "")).strip("\0 ") for tag in (_TAKEN, _FRACTION))
        seconds = (datetime.strptime(time, "%Y:%m:%d %H:%M:%S") - datetime.min).total_seconds()
        return seconds + (float(f"0.{fraction}") if fraction.isdecimal() else 0.0)
    return 0.0


def _copies(photos: Sequence[Photo], keys: np.ndarray, store: FeatureStore) -> np.ndarray:
    """Rows of photographs, (N, 2): each copy with the photograph that it repeats, which repeats
    none.

    Only photographs that are new since the last comparison, or whose original is gone, are
    compared with the others.
    """
    import duckdb
    import pyarrow as pa

    try:
        top = os.path.commonpath({os.fsencode(photo.image.resolve().parent) for photo in photos})
    except ValueError:  # of two drives
        top = b""
    file = cache_folder() / "search" / "copies" / f"{digests(VERSION, [top])[0].hex()}{SUFFIX}"
    row_of = {key: row for row, key in enumerate(keys.tolist())}
    original = np.full(
        len(photos), -1
    )  # row of the photograph that each repeats, its own if it repeats none
    with suppress(
        OSError, ValueError, LookupError, DcclipError
    ):  # the first comparison, or a damaged file
        for key, first in open_block(file)["pairs"].view("S16").tolist():
            if key in row_of and first in row_of:
                original[row_of[key]] = row_of[first]
    firsts = np.flatnonzero(original == np.arange(len(photos)))
    new = np.flatnonzero(original < 0)
    if len(new):
        compared = np.concatenate([firsts, new])
        thumbs = store.read("thumb", keys[compared])
        columns = {
            "number": np.arange(1, len(compared) + 1),
            "hashes": list(perceptual_hashes(thumbs)),
            "width": [photos[row].width for row in compared],
            "height": [photos[row].height for row in compared],
            "thumb": [thumb.tobytes() for thumb in thumbs],
        }
        with tempfile.TemporaryDirectory() as folder, duckdb.connect() as connection:
            connection.execute("SET temp_directory = $folder", {"folder": folder})
            connection.register("rows", pa.table(columns))
            connection.execute("CREATE TABLE photos AS SELECT * FROM rows")
            connection.execute(
                f"CREATE VIEW new AS SELECT * FROM photos WHERE number > {len(firsts)}"
            )
            find_near(connection, "photos", "new", "photos", HASH_BITS)
            near = connection.execute(
                "SELECT earlier - 1 AS first, later - 1 AS copy FROM near"
            ).fetchnumpy()
        original[new] = new
        original[compared[near["copy"]]] = compared[near["first"]]
        with suppress(OSError):  # then all are compared again
            file.parent.mkdir(parents=True, exist_ok=True)
            write_block(file, {"pairs": np.stack([keys, keys[original]], axis=1).view(np.uint8)})
    copies = np.flatnonzero(original != np.arange(len(photos)))
    return np.stack([original[copies], copies], axis=1)


def _bursts(
    photos: Sequence[Photo],
    largest: np.ndarray,
    times: Sequence[tuple[float, int]],
    thumbnails: Callable[[list[int]], np.ndarray],
    index: Callable[[Sequence[Path]], Iterable[ImageIndex]],
) -> list[list[int]]:
    """Rows of photographs by burst: each is similar to an earlier one that was taken within
    _BURST_S.

    Those with one `largest` photograph are similar, as copies would be.
    """
    is_close = np.diff([time_s for time_s, _ in times]) <= _BURST_S
    times = [*compress(times, np.append(is_close, False) | np.append(False, is_close))]
    vectors = dict[Path, np.ndarray]()
    for part in index([photos[row].image for _, row in times]) if times else ():
        vectors |= zip(map(part.folder.joinpath, part.paths), part.embeddings, strict=True)
    times = [(time_s, row) for time_s, row in times if photos[row].image in vectors]
    if not times:
        return []
    times_s = np.array([time_s for time_s, _ in times])
    rows = [row for _, row in times]
    embeddings = np.stack([vectors[photos[row].image] for row in rows])
    embeddings = embeddings - embeddings.sum(axis=0) / (len(rows) + _MEAN_OF)
    embeddings /= np.maximum(np.linalg.norm(embeddings, axis=1, keepdims=True), 1e-12)
    cells = (
        thumbnails(rows)
        .reshape(len(rows), _CELLS, SIDE // _CELLS, _CELLS, SIDE // _CELLS, 3)
        .mean((2, 4))
    )
    bursts = list[list[int]]()  # of each row
    for place, row in enumerate(rows):
        start = max(place - _COMPARED, int(np.searchsorted(times_s, times_s[place] - _BURST_S)))
        is_near = embeddings[start:place] @ embeddings[place] >= _MIN_COSINE
        is_similar = largest[rows[start:place]] == largest[row]
        near = start + np.flatnonzero(is_near & ~is_similar)
        correlation = np.full(len(near), -1.0)
        for (down, other_down), (right, other_right) in (
            product(_SHIFTS, repeat=2) if len(near) else ()
        ):
            earlier = cells[near, down, right]
            now = cells[place, other_down, other_right]
            earlier = earlier - earlier.mean((1, 2), keepdims=True)
            now = now - now.mean((0, 1))
            norm = np.sqrt((earlier**2).sum((1, 2, 3)) * (now**2).sum()) + 1
            correlation = np.maximum(correlation, (earlier * now).sum((1, 2, 3)) / norm)
        is_similar[near - start] = correlation >= _MIN_CORRELATION
        bursts.append(bursts[start + np.flatnonzero(is_similar)[-1]] if is_similar.any() else [])
        bursts[-1].append(row)
    return [
        burst for row, burst in zip(rows, bursts, strict=True) if burst[0] == row and len(burst) > 1
    ]
