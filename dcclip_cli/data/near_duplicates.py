"""Duplicate images: equal pixels, or the same image compressed, resized, cropped or watermarked.

Candidates are found by perceptual hashes like imagehash's `phash`: signs of the 64 lowest cosine
frequencies about their median. A slight crop shifts every frequency, so an image has three of
them: of the whole, and cropped by 2.5 and 3.5 % on each side. A fourth hash, of the middle, is
unaffected by a watermark in a corner. All four are computed from one thumbnail by small matrix
products. Hashes cannot distinguish clock faces, or hearts of different colours, so the thumbnails
of candidates are aligned, by a small shift and stretch, and compared in colour.
"""

from __future__ import annotations

import tempfile
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from dcclip_cli.core.files import read_at
from dcclip_cli.core.machine import cores
from dcclip_cli.data.decoded import DecodedImage

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection

SIDE = 32
HASH_BITS = 12  # maximum difference of hashes, of 64 bits, at which images are compared
_CROPS = (
    0.0,
    0.025,
    0.035,
    0.12,
)  # cut off on each side for the four hashes, as a part of the side
_FREQUENCIES = 8
# cells along each side that are not compared: a crop of 4 % may have removed them, or a frame
_EDGE = 2
_MARGIN = 5  # cells along each side where logos and marks are
_LUMA = np.array([0.299, 0.587, 0.114], np.float32)
# JPEG's Cb and Cr
_CHROMA = np.array([[-0.169, 0.5], [-0.331, -0.419], [0.5, -0.081]], np.float32)

# Chosen on 400 photographs and illustrations of 256 px, altered in 18 ways, against 12,000 emoji
# images of 64 px.
MAX_MEAN = 5.0
MAX_WORST = 36.0
MAX_DETAIL = 0.22
# marks across the middle are faint (at most 41), other symbols on the same shape are not (46 to
# 98)
MAX_MIDDLE = 45.0
# if no cell of the middle, and few others, differ by more, the loss of detail is not considered
FAINT = 12.0
# Mean difference of coarse thumbnails from which images are not aligned and compared: four in five
# of the candidates. Of 720 images cropped by 4 % on each side or framed, the largest is 24.
_FAR = 40.0
_COLOUR = 1.5  # weight of colour differences, whose range is half that of brightness

_REACH = (
    # maximum shift of an edge for alignment, in cells of the thumbnail: about 6 % of the image
    2.0
)
_STEPS = 3


def thumbnail(decoded: DecodedImage) -> np.ndarray:
    """The whole image, on white, resized to SIDE x SIDE, uint8 (SIDE, SIDE, 3)."""
    return np.asarray(decoded.resized(SIDE, Image.Resampling.BICUBIC), np.uint8)


def perceptual_hashes(thumbs: np.ndarray) -> np.ndarray:
    """Four hashes of each thumbnail, uint64 (images, 4): of the whole, of two slight crops, of the
    middle.
    """
    luma = (thumbs @ _LUMA)[
        :, None
    ]  # (images, 1, SIDE, SIDE): the same products for each, however many there are
    matrices = _frequency_matrices()  # (hashes, frequencies, SIDE)
    coefficients = (matrices @ luma @ matrices.transpose(0, 2, 1)).reshape(
        len(thumbs), len(_CROPS), 64
    )
    bits = coefficients > np.median(coefficients, axis=2, keepdims=True)
    # Column by column, so that each band of 16 bits has high and low frequencies.
    bits = (
        bits.reshape(len(thumbs), len(_CROPS), 1, 16, 4)
        .swapaxes(3, 4)
        .reshape(len(thumbs), len(_CROPS), 64)
    )
    return np.packbits(bits, axis=2, bitorder="little").view("<u8")[..., 0]


@cache
def _frequency_matrices() -> np.ndarray:
    cells = np.arange(SIDE)
    cosines = np.cos(np.pi * (2 * cells + 1) * np.arange(_FREQUENCIES)[:, None] / (2 * SIDE))
    matrices = []
    for crop in _CROPS:
        edges = SIDE * (crop + (1 - 2 * crop) * np.arange(SIDE + 1) / SIDE)
        overlap = np.minimum(edges[1:, None], cells + 1) - np.maximum(edges[:-1, None], cells)
        share = np.clip(overlap, 0, None)
        matrices.append((cosines @ (share / share.sum(1, keepdims=True))).astype(np.float32))
    return np.stack(matrices)


def differences(thumbs: np.ndarray, other_thumbs: np.ndarray) -> np.ndarray:
    """Differences of thumbnails uint8 (pairs, SIDE, SIDE, 3) after alignment, (pairs, 4):

    the mean difference of brightness or colour, 0 to 255; the 98th percentile of that difference;
    the root of the energy of the difference in detail relative to the energy of all detail, 0 for
    equal images and about 1.4 for unrelated ones; and the largest difference away from the
    margins. Colour is compared coarsely, since JPEG distorts it in small images.
    """
    first, second = (_blur(batch.astype(np.float32)) for batch in (thumbs, other_thumbs))
    second = _warp(second, _fit(first @ _LUMA, second @ _LUMA))
    first = _inner(first)
    second = _inner(second)
    luma = (first @ _LUMA)[..., None]
    other_luma = (second @ _LUMA)[..., None]
    apart = np.abs(luma - other_luma)[..., 0]
    colour = np.abs(_blur((first - second) @ _CHROMA, times=4)).max(-1)
    apart = np.maximum(apart, _COLOUR * colour)
    middle = apart[:, _MARGIN - _EDGE : _EDGE - _MARGIN, _MARGIN - _EDGE : _EDGE - _MARGIN].max(
        (1, 2)
    )
    apart = apart.reshape(len(thumbs), -1)  # (pairs, cells)
    worst = np.partition(apart, int(apart.shape[1] * 0.98), axis=1)[:, int(apart.shape[1] * 0.98)]
    detail = luma - _blur(luma, times=4)
    other_detail = other_luma - _blur(other_luma, times=4)
    energy = ((detail**2).mean((1, 2, 3)) + (other_detail**2).mean((1, 2, 3))) / 2
    lost = ((detail - other_detail) ** 2).mean((1, 2, 3))
    return np.stack([apart.mean(1), worst, np.sqrt(lost / np.maximum(energy, 4.0)), middle], axis=1)


def similar(thumbs: np.ndarray, other_thumbs: np.ndarray) -> np.ndarray:
    """Whether thumbnails uint8 (pairs, SIDE, SIDE, 3) show the same image, bool (pairs,)."""
    close = np.asarray(np.abs(_coarse(thumbs) - _coarse(other_thumbs)).mean((1, 2, 3)) <= _FAR)
    if close.any():  # brightness alone first: a fraction of the work
        first, second = (
            _blur((batch[close] @ _LUMA)[..., None]) for batch in (thumbs, other_thumbs)
        )
        second = _warp(second, _fit(first[..., 0], second[..., 0]))
        close[close] = (
            np.abs(_inner(first - second)).mean((1, 2, 3)) <= MAX_MEAN + 0.01
        )  # rounded otherwise
    if close.any():
        mean, worst, detail, middle = differences(thumbs[close], other_thumbs[close]).T
        near = (mean <= MAX_MEAN) & (worst <= MAX_WORST) & (middle <= MAX_MIDDLE)
        close[close] = near & ((detail <= MAX_DETAIL) | (np.maximum(worst, middle) <= FAINT))
    return close


def _coarse(thumbs: np.ndarray) -> np.ndarray:
    """Means of 4 x 4 cells, without those along the sides, float32 (pairs, 6, 6, 3)."""
    rows = (
        thumbs.reshape(-1, 8, 4, 3 * SIDE)[:, 1:-1]
        .sum(2, dtype=np.uint16)
        .reshape(-1, 6, 8, 4, 3)[:, :, 1:-1]
    )
    return np.asarray(rows.sum(3, dtype=np.float32) / 16)


def _inner(cells: np.ndarray) -> np.ndarray:
    return cells[:, _EDGE:-_EDGE, _EDGE:-_EDGE]


def _blur(thumbs: np.ndarray, times: int = 1) -> np.ndarray:
    for axis in (1, 2) * times:
        cells = np.moveaxis(thumbs, axis, 0)
        before = np.concatenate([cells[:1], cells[:-1]])
        after = np.concatenate([cells[1:], cells[-1:]])
        thumbs = np.moveaxis((before + 2 * cells + after) / 4, 0, axis)
    return thumbs


def _fit(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Shift and stretch along x and y that align `second` with `first`, (pairs, 4), by robust
    Gauss-Newton steps.
    """
    along = (np.arange(SIDE, dtype=np.float32) - (SIDE - 1) / 2) / (SIDE / 2)
    fit = np.zeros((len(first), 4), np.float32)
    for _ in range(_STEPS):
        moved = _warp(second[..., None], fit)[..., 0]
        down, right = np.gradient(moved, axis=(1, 2))
        slopes = _inner(np.stack([right, right * along, down, down * along[:, None]], axis=-1))
        slopes = slopes.reshape(len(first), -1, 4)
        residual = _inner(first - moved).reshape(len(first), -1, 1)
        weighted = slopes / (
            1 + np.abs(residual) / 20
        )  # so that a watermark on one of them has little influence
        normal = weighted.transpose(0, 2, 1) @ slopes
        normal += np.eye(4, dtype=np.float32) * (
            1 + 1e-3 * np.trace(normal, axis1=1, axis2=2)[:, None, None]
        )
        step = np.linalg.solve(normal, weighted.transpose(0, 2, 1) @ residual)[..., 0]
        fit = np.clip(fit + step, -_REACH, _REACH)
    return fit


def _warp(thumbs: np.ndarray, fit: np.ndarray) -> np.ndarray:
    """Thumbnails float32 (pairs, SIDE, SIDE, channels), resampled at shifted and stretched
    positions.
    """
    across = _resampling(fit[:, 0], fit[:, 1])
    down = _resampling(fit[:, 2], fit[:, 3])
    pairs = len(thumbs)
    channels = thumbs.shape[3]
    rows = (down @ thumbs.reshape(pairs, SIDE, -1)).reshape(pairs, SIDE, SIDE, channels)
    return np.asarray(across[:, None] @ rows)


def _resampling(shift: np.ndarray, stretch: np.ndarray) -> np.ndarray:
    """Weights of linear interpolation, (pairs, SIDE, SIDE): row i contains the weights for cell i."""
    along = (np.arange(SIDE, dtype=np.float32) - (SIDE - 1) / 2) / (SIDE / 2)
    places = np.clip(
        np.arange(SIDE, dtype=np.float32) + shift[:, None] + stretch[:, None] * along, 0, SIDE - 1
    )
    return np.clip(1 - np.abs(places[:, :, None] - np.arange(SIDE, dtype=np.float32)), 0, None)


_BAND_BITS = 16
_BAND_STARTS = range(
    0, 64 - _BAND_BITS + 1, 8
)  # overlapping: one cropped drawing in a hundred needs it
# images for which bands of 16 bits are selective enough; one bit is added with each doubling
_COMFORTABLE = 2_000_000
_CROWD = (
    1000  # maximum images of a band that later ones are compared with; only huge clusters reach it
)
_TRIED = (
    16  # maximum nearest, and maximum earliest, candidates of an image that are compared in colour
)
_MAX_STRETCH = 1.2  # maximum ratio between the aspect ratios of near duplicates
# comparisons of a thread: about 60 MB of arrays; batches that are compared at a time
_BATCH = 512
_BATCHES = 4

# Part 0: the image as it is, and slightly cropped (crops are not compared with crops); part 1: its
# middle.
_KEYS = """
CREATE OR REPLACE TABLE near_keys_{side} AS
    SELECT number, kind = 4 AS part, kind = 1 AS whole, ln(width / height) AS aspect, hashes[kind] AS hash
    FROM (SELECT number, hashes, width, height, unnest([1, 2, 3, 4]) AS kind FROM {table})
"""

_BAND = """
INSERT INTO near_candidates
    SELECT earlier.number, later.number, min(bit_count(xor(earlier.hash, later.hash)))
    FROM (
        SELECT *, (hash >> {shift}) & {mask} AS band FROM near_keys_earlier
        QUALIFY row_number() OVER (PARTITION BY part, band ORDER BY number, whole DESC, hash) <= {crowd}
    ) AS earlier
    JOIN (SELECT *, (hash >> {shift}) & {mask} AS band FROM near_keys_later) AS later USING (part, band)
    WHERE earlier.number < later.number AND (part OR earlier.whole OR later.whole)
        AND abs(earlier.aspect - later.aspect) <= {stretch}
        AND bit_count(xor(earlier.hash, later.hash)) <= {bits}
    GROUP BY ALL
"""

_CHOSEN = """
CREATE OR REPLACE TABLE near_chosen AS
    SELECT earlier, later FROM (SELECT earlier, later, min(bits) AS bits FROM near_candidates GROUP BY earlier, later)
    QUALIFY row_number() OVER (PARTITION BY later ORDER BY bits, earlier) <= {tried}
        OR row_number() OVER (PARTITION BY later ORDER BY earlier) <= {tried};
CREATE OR REPLACE TABLE near (earlier BIGINT, later BIGINT);
"""

_WANTED = """
SELECT number, thumb FROM {thumbs} SEMI JOIN (SELECT unnest([earlier, later]) AS number FROM near_chosen) USING (number)
"""


def find_near(
    connection: DuckDBPyConnection, earlier: str, later: str, thumbs: str, bits: int
) -> None:
    """Fill the table `near` (earlier, later: numbers) with near duplicates, each with the first
    image that it repeats.

    `earlier` and `later` are tables with number, hashes, width and height; `thumbs` contains the
    thumbnails of both. If they are the same table, the image with the smaller number is the
    earlier one, and an image that is a duplicate is not compared with later ones, so every
    duplicate is similar to an image that is none. Numbers below 0 are never duplicates.
    """
    connection.execute(_KEYS.format(side="earlier", table=earlier))
    connection.execute(_KEYS.format(side="later", table=later))
    connection.execute(
        "CREATE OR REPLACE TABLE near_candidates (earlier BIGINT, later BIGINT, bits TINYINT)"
    )
    [(number,)] = connection.execute(f"SELECT count(*) FROM {later}").fetchall()
    width = _BAND_BITS + max(0, (number // _COMFORTABLE).bit_length())
    for start in _BAND_STARTS:
        shift = min(start, 64 - width)
        mask = (1 << width) - 1
        stretch = float(np.log(_MAX_STRETCH))
        connection.execute(
            _BAND.format(shift=shift, mask=mask, crowd=_CROWD, stretch=stretch, bits=bits)
        )
    connection.execute(_CHOSEN.format(tried=_TRIED))
    [(largest,)] = connection.execute("SELECT coalesce(max(later), 0) FROM near_chosen").fetchall()
    duplicate = np.zeros(largest + 1, bool)  # by number
    [(folder,)] = connection.execute("SELECT current_setting('temp_directory')").fetchall()
    Path(folder).mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=folder) as file, ThreadPoolExecutor(cores()) as pool:
        numbers = [
            np.zeros(0, np.int64)
        ]  # of the thumbnails to compare, which are in the file instead of memory
        for batch in connection.sql(_WANTED.format(thumbs=thumbs)).to_arrow_reader(_BATCH):
            numbers.append(batch["number"].to_numpy().copy())  # else it keeps all of the batch
            file.write(b"".join(batch["thumb"].to_pylist()))
        file.flush()
        all_numbers = np.concatenate(numbers)
        order = np.argsort(all_numbers)
        size = 3 * SIDE**2

        def show_the_same(pairs: list[tuple[int, int]]) -> list[bool]:
            places = order[np.searchsorted(all_numbers, np.array(pairs), sorter=order)].T.tolist()
            # Not mapped: all of it would count as memory of the process.
            columns = (
                b"".join(read_at(file.fileno(), size, size * at) for at in column)
                for column in places
            )
            return similar(
                *(np.frombuffer(data, np.uint8).reshape(-1, SIDE, SIDE, 3) for data in columns)
            ).tolist()

        # Every earlier image is decided before the later one is, whose first similar image counts.
        rows = connection.cursor().execute(
            "SELECT earlier, later FROM near_chosen ORDER BY later, abs(earlier)"
        )
        while batch := rows.fetchmany(_BATCH * _BATCHES):
            compared = [
                pair
                for pair in batch
                if not (duplicate[pair[1]] or (pair[0] > 0 and duplicate[pair[0]]))
            ]
            parts = pool.map(
                show_the_same,
                [compared[at : at + _BATCH] for at in range(0, len(compared), _BATCH)],
            )
            original_of: dict[int, int] = {}
            for (original, copy), same in zip(compared, chain.from_iterable(parts), strict=True):
                if same and not duplicate[copy] and not (original > 0 and duplicate[original]):
                    duplicate[copy] = True
                    original_of[copy] = original
            if original_of:
                values = {"earlier": list(original_of.values()), "later": list(original_of)}
                connection.execute(
                    "INSERT INTO near SELECT unnest($earlier), unnest($later)", values
                )
