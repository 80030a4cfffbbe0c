"""Which round numbers stand along a histogram's axes, and how are they written?"""

from __future__ import annotations

import math
from collections.abc import Iterable

from dcclip_cli.curation.report.scales import Scale


def round_values(scale: Scale, first: int, last: int) -> Iterable[float]:
    """Five to eight round values between the edges of two bins."""
    low, high = scale.edge(first), scale.edge(last)
    if scale.octave:
        octaves = math.log2(high / low)
        every = math.ceil(octaves / 7)
        return [2.0**power for power in range(math.ceil(math.log2(low) - 1e-9), math.floor(math.log2(high)) + 1, every)]
    rough = (high - low) / 6
    unit = 10.0 ** math.floor(math.log10(rough))
    step = next(unit * factor for factor in (1, 2, 5, 10) if unit * factor >= rough)
    step = max(step, 1.0) if scale.whole else step
    return [step * number for number in range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1)]


def round_counts(most: int) -> list[int]:
    """One or two round numbers below the highest bar's."""
    unit = 10 ** math.floor(math.log10(most))
    step = next((factor * unit for factor in (5, 2, 1) if factor * unit <= most), unit)
    return [step, step // 2] if step >= 2 and step % 2 == 0 else [step]


def readable(value: float, scale: Scale) -> str:
    """A value as a person writes it: 1.5, 12,000, 64 K (bytes)."""
    if scale.unit == "bytes":
        for size, letter in ((1 << 20, " M"), (1 << 10, " K")):
            if value >= size:
                return f"{value / size:.3g}{letter}"
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"
