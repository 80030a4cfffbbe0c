"""Duplicate images: equal pixels, or the same image compressed, resized, cropped or watermarked.

Candidates are found by perceptual hashes like imagehash's `phash`: signs of the 64 lowest cosine frequencies about
their median. A slight crop shifts every frequency, so an image has three of them: of the whole, and cropped by 2.5 and
3.5 % on each side. A fourth hash, of the middle, is unaffected by a watermark in a corner. All four are computed from
one thumbnail by small matrix products. Hashes cannot distinguish clock faces, or hearts of different colours, so the
thumbnails of candidates are aligned, by a small shift and stretch, and compared in colour.
"""

from __future__ import annotations

import tempfile
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
from PIL import Image
from pydantic import Field

from dcclip_cli.curation.dedup import GlobalFilter
from dcclip_cli.curation.filters.image import DecodedImage
from dcclip_cli.files import read_at
from dcclip_cli.machine import cores

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection

SIDE = 32
_CROPS = (0.0, 0.025, 0.035, 0.12)  # cut off on each side for the four hashes, as a part of the side
_FREQUENCIES = 8
_EDGE = 2  # cells along each side that are not compared: a crop of 4 % may have removed them, or a frame
_MARGIN = 5  # cells along each side where logos and marks are
_LUMA = np.array([0.299, 0.587, 0.114], np.float32)
_CHROMA = np.array([[-0.169, 0.5], [-0.331, -0.419], [0.5, -0.081]], np.float32)  # JPEG's Cb and Cr

# Chosen on 400 photographs and illustrations of 256 px, altered in 18 ways, against 12,000 emoji images of 64 px.
MAX_MEAN, MAX_WORST, MAX_DETAIL = 5.0, 36.0, 0.22
MAX_MIDDLE = 45.0  # marks across the middle are faint (at most 41), other symbols on the same shape are not (46 to 98)
FAINT = 12.0  # if no cell of the middle, and few others, differ by more, the loss of detail is not considered
# Mean difference of coarse thumbnails from which images are not aligned and compared: four in five of the candidates.
# Of 720 images cropped by 4 % on each side or framed, the largest is 24.
_FAR = 40.0
_COLOUR = 1.5  # weight of colour differences, whose range is half that of brightness

_REACH = 2.0  # maximum shift of an edge for alignment, in cells of the thumbnail: about 6 % of the image
_STEPS = 3


def thumbnail(decoded: DecodedImage) -> np.ndarray:
    """The whole image, on white, resized to SIDE x SIDE, uint8 (SIDE, SIDE, 3)."""
    return np.asarray(decoded.resized(SIDE, Image.Resampling.BICUBIC), np.uint8)


def perceptual_hashes(thumbs: np.ndarray) -> np.ndarray:
    """Four hashes of each thumbnail, uint64 (images, 4): of the whole, of two slight crops, of the middle."""
    luma = (thumbs @ _LUMA)[:, None]  # (images, 1, SIDE, SIDE): the same products for each, however many there are
    matrices = _frequency_matrices()  # (hashes, frequencies, SIDE)
    coefficients = (matrices @ luma @ matrices.transpose(0, 2, 1)).reshape(len(thumbs), len(_CROPS), 64)
    bits = coefficients > np.median(coefficients, axis=2, keepdims=True)
    # Column by column, so that each band of 16 bits has high and low frequencies.
    bits = bits.reshape(len(thumbs), len(_CROPS), 1, 16, 4).swapaxes(3, 4).reshape(len(thumbs), len(_CROPS), 64)
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

    the mean difference of brightness or colour, 0 to 255; the 98th percentile of that difference; the root of the
    energy of the difference in detail relative to the energy of all detail, 0 for equal images and about 1.4 for
    unrelated ones; and the largest difference away from the margins. Colour is compared coarsely, since JPEG distorts
    it in small images.
    """
    first, second = (_blur(batch.astype(np.float32)) for batch in (thumbs, other_thumbs))
    second = _warp(second, _fit(first @ _LUMA, second @ _LUMA))
    first, second = _inner(first), _inner(second)
    luma, other_luma = (first @ _LUMA)[..., None], (second @ _LUMA)[..., None]
    apart = np.abs(luma - other_luma)[..., 0]
    colour = np.abs(_blur((first - second) @ _CHROMA, times=4)).max(-1)
    apart = np.maximum(apart, _COLOUR * colour)
    middle = apart[:, _MARGIN - _EDGE : _EDGE - _MARGIN, _MARGIN - _EDGE : _EDGE - _MARGIN].max((1, 2))
    apart = apart.reshape(len(thumbs), -1)  # (pairs, cells)
    worst = np.partition(apart, int(apart.shape[1] * 0.98), axis=1)[:, int(apart.shape[1] * 0.98)]
    detail, other_detail = luma - _blur(luma, times=4), other_luma - _blur(other_luma, times=4)
    energy = ((detail**2).mean((1, 2, 3)) + (other_detail**2).mean((1, 2, 3))) / 2
    lost = ((detail - other_detail) ** 2).mean((1, 2, 3))
    return np.stack([apart.mean(1), worst, np.sqrt(lost / np.maximum(energy, 4.0)), middle], axis=1)


def similar(thumbs: np.ndarray, other_thumbs: np.ndarray) -> np.ndarray:
    """Whether thumbnails uint8 (pairs, SIDE, SIDE, 3) show the same image, bool (pairs,)."""
    close = np.asarray(np.abs(_coarse(thumbs) - _coarse(other_thumbs)).mean((1, 2, 3)) <= _FAR)
    if close.any():  # brightness alone first: a fraction of the work
        first, second = (_blur((batch[close] @ _LUMA)[..., None]) for batch in (thumbs, other_thumbs))
        second = _warp(second, _fit(first[..., 0], second[..., 0]))
        close[close] = np.abs(_inner(first - second)).mean((1, 2, 3)) <= MAX_MEAN + 0.01  # rounded otherwise
    if close.any():
        mean, worst, detail, middle = differences(thumbs[close], other_thumbs[close]).T
        near = (mean <= MAX_MEAN) & (worst <= MAX_WORST) & (middle <= MAX_MIDDLE)
        close[close] = near & ((detail <= MAX_DETAIL) | (np.maximum(worst, middle) <= FAINT))
    return close


def _coarse(thumbs: np.ndarray) -> np.ndarray:
    """Means of 4 x 4 cells, without those along the sides, float32 (pairs, 6, 6, 3)."""
    rows = thumbs.reshape(-1, 8, 4, 3 * SIDE)[:, 1:-1].sum(2, dtype=np.uint16).reshape(-1, 6, 8, 4, 3)[:, :, 1:-1]
    return np.asarray(rows.sum(3, dtype=np.float32) / 16)


def _inner(cells: np.ndarray) -> np.ndarray:
    return cells[:, _EDGE:-_EDGE, _EDGE:-_EDGE]


def _blur(thumbs: np.ndarray, times: int = 1) -> np.ndarray:
    for axis in (1, 2) * times:
        cells = np.moveaxis(thumbs, axis, 0)
        before, after = np.concatenate([cells[:1], cells[:-1]]), np.concatenate([cells[1:], cells[-1:]])
        thumbs = np.moveaxis((before + 2 * cells + after) / 4, 0, axis)
    return thumbs


def _fit(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Shift and stretch along x and y that align `second` with `first`, (pairs, 4), by robust Gauss-Newton steps."""
    along = (np.arange(SIDE, dtype=np.float32) - (SIDE - 1) / 2) / (SIDE / 2)
    fit = np.zeros((len(first), 4), np.float32)
    for _ in range(_STEPS):
        moved = _warp(second[..., None], fit)[..., 0]
        down, right = np.gradient(moved, axis=(1, 2))
        slopes = _inner(np.stack([right, right * along, down, down * along[:, None]], axis=-1))
        slopes = slopes.reshape(len(first), -1, 4)
        residual = _inner(first - moved).reshape(len(first), -1, 1)
        weighted = slopes / (1 + np.abs(residual) / 20)  # so that a watermark on one of them has little influence
        normal = weighted.transpose(0, 2, 1) @ slopes
        normal += np.eye(4, dtype=np.float32) * (1 + 1e-3 * np.trace(normal, axis1=1, axis2=2)[:, None, None])
        step = np.linalg.solve(normal, weighted.transpose(0, 2, 1) @ residual)[..., 0]
        fit = np.clip(fit + step, -_REACH, _REACH)
    return fit


def _warp(thumbs: np.ndarray, fit: np.ndarray) -> np.ndarray:
    """Thumbnails float32 (pairs, SIDE, SIDE, channels), resampled at shifted and stretched positions."""
    across, down = _resampling(fit[:, 0], fit[:, 1]), _resampling(fit[:, 2], fit[:, 3])
    pairs, channels = len(thumbs), thumbs.shape[3]
    rows = (down @ thumbs.reshape(pairs, SIDE, -1)).reshape(pairs, SIDE, SIDE, channels)
    return np.asarray(across[:, None] @ rows)


def _resampling(shift: np.ndarray, stretch: np.ndarray) -> np.ndarray:
    """Weights of linear interpolation, (pairs, SIDE, SIDE): row i contains the weights for cell i."""
    along = (np.arange(SIDE, dtype=np.float32) - (SIDE - 1) / 2) / (SIDE / 2)
    places = np.clip(np.arange(SIDE, dtype=np.float32) + shift[:, None] + stretch[:, None] * along, 0, SIDE - 1)
    return np.clip(1 - np.abs(places[:, :, None] - np.arange(SIDE, dtype=np.float32)), 0, None)


_MOST_CAPTIONS = 16  # per language after merging pairs


class SameImage(GlobalFilter):
    """Merges pairs whose images have identical pixels into the first of them, whatever their file format."""

    kind: Literal["same-image"] = "same-image"

    def apply(self, connection: DuckDBPyConnection) -> None:
        """`image-merged` if at least one caption was moved to the first pair, else `image-duplicate`."""
        connection.execute(_SAME)
        connection.execute(_MOVED, {"most": _MOST_CAPTIONS})
        connection.execute("INSERT INTO captions FROM moved; " + _LEFT_BEHIND + _DROP_SAME)


_SAME = """
CREATE OR REPLACE TABLE same AS
    SELECT live_pairs.number, first FROM live_pairs
    JOIN (SELECT pixel_hash, min(number) AS first FROM live_pairs GROUP BY pixel_hash HAVING count(*) > 1)
        USING (pixel_hash)
    WHERE number > first
"""

# Captions that the first pair lacks, the earliest of equal ones, appended to its own.
_MOVED = """
CREATE OR REPLACE TABLE moved AS
    WITH taken AS (
        SELECT number AS first, language, count(*) AS had, max(place) AS last FROM captions
        SEMI JOIN same ON same.first = captions.number GROUP BY ALL
    ),
    fresh AS (
        SELECT same.first, language, text, text_hash, bands, sketch, origin, origin_place
        FROM live_captions JOIN same USING (number)
        ANTI JOIN (SELECT number AS first, language, text FROM live_captions) AS own USING (first, language, text)
        QUALIFY row_number() OVER (PARTITION BY same.first, language, text ORDER BY number, place) = 1
    )
    SELECT first AS number, language, coalesce(last, -1)::INTEGER + place::INTEGER AS place,
        text, text_hash, bands, sketch, origin, origin_place
    FROM (
        SELECT *, row_number() OVER (PARTITION BY first, language ORDER BY origin, origin_place) AS place FROM fresh
    ) LEFT JOIN taken USING (first, language)
    WHERE coalesce(had, 0) + place <= $most
"""

# Captions that were not moved, of pairs that gave others.
_LEFT_BEHIND = """
INSERT INTO caption_drops
    SELECT number, language, place, CASE WHEN had IS NULL THEN 'caption-many' ELSE 'caption-repeated' END,
        CASE WHEN had IS NULL THEN 'the pair with the same image has enough'
        ELSE 'the pair with the same image has it already' END
    FROM live_captions JOIN same USING (number)
    SEMI JOIN (SELECT origin AS number FROM moved) AS givers USING (number)
    ANTI JOIN (SELECT origin AS number, language, origin_place AS place FROM moved) AS gone
        USING (number, language, place)
    LEFT JOIN (SELECT DISTINCT number AS first, language, text, true AS had FROM captions) AS own
        USING (first, language, text);
"""

_DROP_SAME = """
INSERT INTO pair_drops
    SELECT same.number, CASE WHEN giver IS NULL THEN 'image-duplicate' ELSE 'image-merged' END,
        CASE WHEN one.file_hash = other.file_hash THEN 'the same image as ' ELSE 'the same pixels as ' END || one.key
    FROM same
    JOIN pairs AS one ON one.number = first
    JOIN pairs AS other ON other.number = same.number
    LEFT JOIN (SELECT DISTINCT origin AS giver FROM moved) ON giver = same.number
"""


class NearImage(GlobalFilter):
    """Drops near duplicates of an earlier image: recompressed, resized, slightly cropped or watermarked copies.

    Images with similar hashes are compared by colour thumbnails, so that different clock faces and hearts of different
    colours are kept. Small or faint differences (a wink, a coat of arms on a flag) count as watermarks.
    """

    kind: Literal["near-image"] = "near-image"
    bits: int = Field(
        12, ge=0, le=16, description="Maximum hash difference, in bits out of 64, at which images are compared"
    )

    def apply(self, connection: DuckDBPyConnection) -> None:
        """`image-near-duplicate`; every dropped image is similar to one that is kept."""
        find_near(connection, "live_pairs", "live_pairs", "thumbs", self.bits)
        connection.execute("""
            INSERT INTO pair_drops
                SELECT later, 'image-near-duplicate', 'shows the same as ' || key
                FROM near JOIN pairs ON pairs.number = earlier
        """)


_BAND_BITS = 16
_BAND_STARTS = range(0, 64 - _BAND_BITS + 1, 8)  # overlapping: one cropped drawing in a hundred needs it
_COMFORTABLE = 2_000_000  # images for which bands of 16 bits are selective enough; one bit is added with each doubling
_CROWD = 1000  # maximum images of a band that later ones are compared with; only huge clusters reach it
_TRIED = 16  # maximum nearest, and maximum earliest, candidates of an image that are compared in colour
_MAX_STRETCH = 1.2  # maximum ratio between the aspect ratios of near duplicates
_BATCH, _BATCHES = 512, 4  # comparisons of a thread: about 60 MB of arrays; batches that are compared at a time

# Part 0: the image as it is, and slightly cropped (crops are not compared with crops); part 1: its middle.
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


def find_near(connection: DuckDBPyConnection, earlier: str, later: str, thumbs: str, bits: int) -> None:
    """Fill the table `near` (earlier, later: numbers) with near duplicates, each with the first image that it repeats.

    `earlier` and `later` are tables with number, hashes, width and height; `thumbs` contains the thumbnails of both. If
    they are the same table, the image with the smaller number is the earlier one, and an image that is a duplicate is
    not compared with later ones, so every duplicate is similar to an image that is none. Numbers below 0 are never
    duplicates.
    """
    connection.execute(_KEYS.format(side="earlier", table=earlier))
    connection.execute(_KEYS.format(side="later", table=later))
    connection.execute("CREATE OR REPLACE TABLE near_candidates (earlier BIGINT, later BIGINT, bits TINYINT)")
    [(number,)] = connection.execute(f"SELECT count(*) FROM {later}").fetchall()
    width = _BAND_BITS + max(0, (number // _COMFORTABLE).bit_length())
    for start in _BAND_STARTS:
        shift, mask, stretch = min(start, 64 - width), (1 << width) - 1, float(np.log(_MAX_STRETCH))
        connection.execute(_BAND.format(shift=shift, mask=mask, crowd=_CROWD, stretch=stretch, bits=bits))
    connection.execute(_CHOSEN.format(tried=_TRIED))
    [(largest,)] = connection.execute("SELECT coalesce(max(later), 0) FROM near_chosen").fetchall()
    duplicate = np.zeros(largest + 1, bool)  # by number
    [(folder,)] = connection.execute("SELECT current_setting('temp_directory')").fetchall()
    Path(folder).mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=folder) as file, ThreadPoolExecutor(cores()) as pool:
        numbers = [np.zeros(0, np.int64)]  # of the thumbnails to compare, which are in the file instead of memory
        for batch in connection.sql(_WANTED.format(thumbs=thumbs)).to_arrow_reader(_BATCH):
            numbers.append(batch["number"].to_numpy().copy())  # else it keeps all of the batch
            file.write(b"".join(batch["thumb"].to_pylist()))
        file.flush()
        all_numbers = np.concatenate(numbers)
        order, size = np.argsort(all_numbers), 3 * SIDE**2

        def show_the_same(pairs: list[tuple[int, int]]) -> list[bool]:
            places = order[np.searchsorted(all_numbers, np.array(pairs), sorter=order)].T.tolist()
            # Not mapped: all of it would count as memory of the process.
            columns = (b"".join(read_at(file.fileno(), size, size * at) for at in column) for column in places)
            return similar(*(np.frombuffer(data, np.uint8).reshape(-1, SIDE, SIDE, 3) for data in columns)).tolist()

        # Every earlier image is decided before the later one is, whose first similar image counts.
        rows = connection.cursor().execute("SELECT earlier, later FROM near_chosen ORDER BY later, abs(earlier)")
        while batch := rows.fetchmany(_BATCH * _BATCHES):
            compared = [pair for pair in batch if not (duplicate[pair[1]] or (pair[0] > 0 and duplicate[pair[0]]))]
            parts = pool.map(show_the_same, [compared[at : at + _BATCH] for at in range(0, len(compared), _BATCH)])
            original_of: dict[int, int] = {}
            for (original, copy), same in zip(compared, chain.from_iterable(parts), strict=True):
                if same and not duplicate[copy] and not (original > 0 and duplicate[original]):
                    duplicate[copy], original_of[copy] = True, original
            if original_of:
                values = {"earlier": list(original_of.values()), "later": list(original_of)}
                connection.execute("INSERT INTO near SELECT unnest($earlier), unnest($later)", values)
