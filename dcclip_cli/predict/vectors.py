"""Small embeddings: int8 and binary rows, their cosines with a query, and the file types that they are written as."""

from __future__ import annotations

from typing import Literal, get_args

import numpy as np

VectorType = Literal["fp32", "fp16", "int8", "binary"]
VECTOR_TYPES: tuple[VectorType, ...] = get_args(VectorType)
_STEPS = 127  # of int8 on each side of 0
_ROWS = 65_536  # converted to fp32 at a time
_RESCORED = 10  # binary rows that are compared in full, for each one that is wanted


def cut(vectors: np.ndarray, dims: int) -> np.ndarray:
    """The first `dims` numbers of each embedding, divided by their length; not finite where that is 0."""
    short = vectors[:, :dims]
    with np.errstate(all="ignore"):
        shortened: np.ndarray = short / np.linalg.norm(short, axis=1, keepdims=True)
    return shortened


def compressed(vectors: np.ndarray, kind: VectorType) -> np.ndarray:
    """(N, D) embeddings of length 1 as fp32, fp16 or int8 (N, D), or binary (N, D / 8 rounded up) uint8.

    int8: each row is divided by its largest absolute number and multiplied by 127, so that only its direction is left.
    binary: one bit for each number, 1 where it is positive, the first one in the highest bit of the first byte.
    """
    if kind == "int8":
        largest = np.abs(vectors).max(axis=1, keepdims=True)
        return np.rint(vectors * (_STEPS / np.maximum(largest, 1e-12))).astype(np.int8)
    if kind == "binary":
        return np.packbits(vectors > 0, axis=1)
    return vectors.astype({"fp32": np.float32, "fp16": np.float16}[kind])


def restored(rows: np.ndarray, kind: VectorType, width: int) -> np.ndarray:
    """The directions of compressed rows as embeddings (N, width) of length 1, float32."""
    if kind == "binary":
        rows = np.unpackbits(rows, axis=1, count=width).astype(np.float32) * 2 - 1
    found = rows.astype(np.float32)
    found /= np.maximum(np.linalg.norm(found, axis=1, keepdims=True), 1e-12)
    return found


def nearest(rows: np.ndarray, kind: VectorType, query: np.ndarray, top_k: int) -> tuple[np.ndarray, np.ndarray]:
    """The places of the `top_k` compressed rows nearest to `query` (D,), the nearest first, and their cosines.

    Of binary rows, those with the fewest bits that differ from the query's are compared with the query itself.
    """
    places = np.arange(len(rows))
    if kind == "binary":
        places = _lowest(_different_bits(rows, compressed(query[None], "binary")), _RESCORED * top_k)
        rows = rows[places]
    parts = (rows[first : first + _ROWS] for first in range(0, len(rows), _ROWS))
    found = [(part if kind == "fp32" else restored(part, kind, len(query))) @ query for part in parts]
    scores = np.concatenate(found)
    best = _lowest(-scores, top_k)
    best = best[np.argsort(-scores[best], kind="stable")]
    return places[best], scores[best]


def _different_bits(rows: np.ndarray, query: np.ndarray) -> np.ndarray:
    return np.bitwise_count(rows ^ query).sum(axis=1, dtype=np.int32)


def _lowest(values: np.ndarray, count: int) -> np.ndarray:
    """The places of the `count` lowest values, in their order."""
    if count >= len(values):
        return np.arange(len(values))
    return np.sort(np.argpartition(values, count - 1)[:count])
