"""Copies among the photographs of folders: for `dcclip search --duplicates`."""

import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from dcclip_cli.curation.dedup.near_duplicates import NearImage, find_near, perceptual_hashes, thumbnail
from dcclip_cli.curation.filters.image import DecodedImage
from dcclip_cli.errors import DcclipError, Message
from dcclip_cli.files import cache_folder
from dcclip_cli.machine import cores
from dcclip_cli.progress import Progress
from dcclip_cli.store import FeatureStore, digests

_BATCH = 128  # photographs whose thumbnails are stored at a time


@dataclass(frozen=True)
class Photo:
    """A photograph and its size in pixels."""

    image: Path
    width: int
    height: int


@dataclass(frozen=True)
class Duplicates:
    """Groups of copies, in each the largest photograph first, and by path the errors of those that cannot be read."""

    groups: list[list[Photo]]
    errors: dict[str, DcclipError]


def find_copies(folders: Iterable[Path], progress: Progress, exclude: Sequence[str] = ()) -> Duplicates:
    """Find the photographs that are copies of another one: resized, compressed again, slightly cropped or watermarked.

    They are compared as by the filter `near-image` of `dcclip collect`; each copy is similar to the first photograph of
    its group. Thumbnails are in the cache folder. Raises DcclipError as `find_images` does.
    """
    import duckdb
    import pyarrow as pa

    from dcclip_cli.inference.images import find_images, skipped_line

    skipped = Counter[str]()
    names = find_images(map(str, folders), exclude=exclude, skipped=skipped)
    if skipped:
        progress.say(skipped_line("search", skipped))
    photos, thumbs, errors = _thumbnails([*{path.resolve(): path for path in names}.values()], progress)
    order = sorted(range(len(photos)), key=lambda row: (-photos[row].width * photos[row].height, photos[row].image))
    photos, thumbs = [photos[row] for row in order], thumbs[order]
    columns = {
        "number": np.arange(1, len(photos) + 1),
        "hashes": list(perceptual_hashes(thumbs)),
        "width": [photo.width for photo in photos],
        "height": [photo.height for photo in photos],
        "thumb": [thumb.tobytes() for thumb in thumbs],
    }
    with tempfile.TemporaryDirectory() as folder, duckdb.connect() as connection:
        connection.execute("SET temp_directory = $folder", {"folder": folder})
        connection.register("rows", pa.table(columns))
        connection.execute("CREATE TABLE photos AS SELECT * FROM rows")
        find_near(connection, "photos", "photos", "photos", NearImage().bits)
        pairs = connection.execute("SELECT earlier, later FROM near ORDER BY earlier, later").fetchall()
    groups: dict[int, list[Photo]] = {}
    for first, copy in pairs:
        groups.setdefault(first, [photos[first - 1]]).append(photos[copy - 1])
    return Duplicates(sorted(groups.values(), key=lambda group: group[0].image), errors)


def _thumbnails(paths: Sequence[Path], progress: Progress) -> tuple[list[Photo], np.ndarray, dict[str, DcclipError]]:
    """Those that can be read, their thumbnails, and the others' errors; thumbnails are stored as they are computed."""
    from dcclip_cli.inference.images import read
    from dcclip_cli.inference.index import file_state

    store = FeatureStore(cache_folder() / "search" / "thumbnails", progress.say, optional=True)
    resolved = (str(path.resolve()).encode(errors="surrogateescape") for path in paths)
    keys, errors = digests("", map(bytes.__add__, resolved, map(file_state, paths))), dict[str, DcclipError]()

    def shrink(place: int) -> tuple[np.ndarray, tuple[int, int]] | DcclipError:
        try:
            image = read(paths[place])
        except DcclipError as error:
            return error
        return thumbnail(DecodedImage(image, "", 1, 0)), image.size

    def compute(places: np.ndarray) -> Iterator[tuple[np.ndarray, dict[str, np.ndarray]]]:
        task = progress.task(Message("compare"), len(paths), len(paths) - len(places))
        with task as bar, ThreadPoolExecutor(cores()) as pool:
            for batch in (places[start : start + _BATCH] for start in range(0, len(places), _BATCH)):
                shrunk = dict(zip(batch.tolist(), pool.map(shrink, batch.tolist()), strict=True))
                errors.update({str(paths[at]): row for at, row in shrunk.items() if isinstance(row, DcclipError)})
                rows = {at: row for at, row in shrunk.items() if isinstance(row, tuple)}
                if rows:
                    thumbs, sizes = zip(*rows.values(), strict=True)
                    yield keys[list(rows)], {"thumb": np.stack(thumbs), "size": np.array(sizes, np.int32)}
                bar.advance(len(batch))

    store.write(compute(np.flatnonzero(store.missing(keys, ["thumb", "size"]))))
    rows = np.flatnonzero(~store.missing(keys, ["thumb", "size"]))
    if not len(rows):
        raise DcclipError("no image could be read", "choose a folder with readable images")
    sizes = store.read("size", keys[rows]).tolist()
    return (
        [Photo(paths[row], *size) for row, size in zip(rows.tolist(), sizes, strict=True)],
        store.read("thumb", keys[rows]),
        errors,
    )
