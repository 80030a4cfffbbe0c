"""The check that what a model gives is finite."""

from __future__ import annotations

import numpy as np

from dcclip_cli.errors import DcclipError

_HINT = "its weights are damaged, or it overflowed: get the model again, or compute in fp32"


class NotFiniteError(DcclipError):
    """A model gives NaN or infinity, which every ranking, mean and index built on it would hide."""


def finite(values: np.ndarray, model: str, inputs: str, hint: str = _HINT) -> np.ndarray:
    """`values` (N, ...) as they are, those that `model` gives for N `inputs` ("images", "texts").

    Raises NotFiniteError where a number is NaN or infinite.
    """
    numbers = np.isfinite(values)
    if not numbers.all():
        bad = int((~numbers.all(axis=tuple(range(1, values.ndim)))).sum())
        raise NotFiniteError(
            f"{model} gives embeddings that are not finite (NaN or infinite) for {bad} of {len(values)} {inputs}", hint
        )
    return values
