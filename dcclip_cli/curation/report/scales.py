"""How is each measured quantity cut into bins? Fixed for all slices, so that histograms add up."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class Scale:
    """Bins of equal width, or with `octave` of equal ratio: so many bins from a value to twice that value.

    Of `whole` numbers each has its own bin. Bin 0 also takes what lies below `start`, the last bin what lies above.
    `reasons` are the drops that this quantity decides, which a person
    who moves a threshold wants to see apart from the others.
    """

    title: str
    unit: str
    start: float
    bins: int
    width: float = 0.0
    octave: int = 0
    whole: bool = False
    reasons: tuple[str, ...] = ()

    def bin(self, value: float) -> int:
        """The number of the bin that holds a value."""
        if self.octave:
            number = math.floor(math.log2(value / self.start) * self.octave + 1e-9) if value > self.start else 0
        else:
            number = math.floor((value - self.start) / self.width + 1e-9)
        return min(max(number, 0), self.bins - 1)

    def edge(self, number: float) -> float:
        """The value at which a bin begins; also for a fraction of a bin."""
        if self.octave:
            return float(self.start * 2 ** (number / self.octave))
        return self.start + number * self.width

    def name(self, number: int) -> str:
        """A bin's name in JSON: the value at which it begins, to three decimals."""
        return f"{self.edge(number):.3f}".rstrip("0").rstrip(".")

    def number(self, name: str) -> int:
        """The number of the bin with this name."""
        return round(self.position(float(name)))

    def position(self, value: float) -> float:
        """Where a value stands, in bins; the inverse of `edge`."""
        if self.octave:
            return math.log2(max(value, self.start) / self.start) * self.octave
        return (value - self.start) / self.width


SCALES = {
    "short_side": Scale("Shorter side", "pixels", 4, 48, octave=4, reasons=("image-small",)),
    "long_side": Scale("Longer side", "pixels", 4, 48, octave=4, reasons=("image-large",)),
    "aspect": Scale("Longer side / shorter side", "", 1, 150, width=0.1, reasons=("image-aspect",)),
    "bytes": Scale("File size", "bytes", 64, 80, octave=4, reasons=("image-bytes",)),
    "zh": Scale(
        "Chinese captions", "characters", 0, 257, width=1, whole=True, reasons=("caption-short", "caption-long")
    ),
    "en": Scale("English captions", "words", 0, 257, width=1, whole=True, reasons=("caption-short", "caption-long")),
}


def scale_of(name: str) -> Scale:
    """The scale of a histogram; a score's is called `score:SCORER` or `score:SCORER:LANGUAGE`.

    Cosines and probabilities lie within 1, but a regression may give more.
    """
    if name in SCALES:
        return SCALES[name]
    scorer, language = split(name)
    title = scorer[:1].upper() + scorer[1:] + {"zh": ", Chinese", "en": ", English"}.get(language, "")
    return Scale(title, "", -20, 8001, width=0.005, reasons=(scorer, f"{scorer}-low", f"{scorer}-reject"))


def split(name: str) -> tuple[str, str]:
    """The scorer and the language, "" if none, in the name of a score's histogram."""
    scorer = name.removeprefix("score:")
    stem, colon, language = scorer.rpartition(":")
    return (stem, language) if colon and language in ("zh", "en") else (scorer, "")
