"""image.onnx and text.onnx in the precision asked for, a little less of it each time that parity is not held."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from dcclip_cli.exporters.names import Precision
from dcclip_cli.exporters.onnx import write_onnx
from dcclip_cli.exporters.parity import Parity
from dcclip_cli.exporters.quantize import FP16_KEEPS, LADDER, Int8Tower, write_fp16
from dcclip_cli.exporters.rounding import largest_pair_sum
from dcclip_cli.exporters.samples import batches, calibration_pictures, calibration_texts
from dcclip_cli.exporters.source import Source, prepare
from dcclip_cli.predict.bundle import IMAGE, TEXT

_GRAPHS = {"image": IMAGE, "text": TEXT}


class GraphsInPrecision:
    """`write` leaves both graphs in `folder`; `loosen` lets one of the towers keep more of itself in fp32.

    `folder` may be filled with more than the graphs; fp32 graphs are made once, when first needed.
    """

    def __init__(
        self, source: Source, folder: Path, precision: Precision, calibration: Path | None, images: int
    ) -> None:
        self.folder = folder / "graphs"
        self.folder.mkdir()
        self._exact = folder / "fp32"
        self._source, self._precision, self._calibration, self._images = source, precision, calibration, images
        self._rung = {"image": 0, "text": 0}
        self._written: dict[str, int] = {}
        self._pair_sums = {"image": 0, "text": 0}

    @property
    def said(self) -> str:
        """Which attempt this is, for the user; empty for the first."""
        if not any(self._rung.values()):
            return ""
        return "".join(f"{tower} kept {self._kept_share(tower)}, " for tower in _GRAPHS if self._rung[tower])

    @property
    def largest_pair_sum(self) -> int | None:
        """Of both int8 graphs (rounding.py); None in other precisions, and before the graphs are written."""
        return max(self._pair_sums.values()) if self._precision == "int8" and self._written else None

    def kept(self) -> dict[str, Any]:
        """What stayed fp32, for the report."""
        return {"kept_fp32": {tower: self._kept_share(tower) for tower in _GRAPHS if self._rung[tower]}}

    def write(self) -> Path:
        """The folder with both graphs."""
        for tower, name in _GRAPHS.items():
            if self._written.get(tower) == self._rung[tower]:
                continue
            if self._precision == "fp32":
                for file in self._fp32.glob(f"{name}*"):
                    shutil.copyfile(file, self.folder / file.name)
            elif self._precision == "fp16":
                write_fp16(self._fp32 / name, self.folder / name, FP16_KEEPS[self._rung[tower]])
            else:
                self._int8[tower].write(self.folder / name, LADDER[self._rung[tower]])
                self._pair_sums[tower] = largest_pair_sum(self.folder / name)
            self._written[tower] = self._rung[tower]
        return self.folder

    def loosen(self, parity: Parity | None) -> bool:
        """Take the next step for the tower that costs more agreement, or for both where their answers are not finite.

        Whether there was one left.
        """
        steps: Sequence[Any] = {"fp32": (None,), "fp16": FP16_KEEPS, "int8": LADDER}[self._precision]
        if not self._written:
            return False
        if parity is None:
            left = [tower for tower in _GRAPHS if self._rung[tower] + 1 < len(steps)]
            self._rung |= {tower: self._rung[tower] + 1 for tower in left}
            return bool(left)
        losses = {
            "image": (1 - parity.image_agreement, 1 - parity.image_centred_cosine),
            "text": (1 - parity.text_agreement, 1 - parity.text_centred_cosine),
        }
        for tower in sorted(losses, key=lambda tower: losses[tower], reverse=True):
            if self._rung[tower] + 1 < len(steps):
                self._rung[tower] += 1
                return True
        return False

    def _kept_share(self, tower: str) -> str:
        if self._precision == "fp16":
            return ", ".join(FP16_KEEPS[self._rung[tower]])
        step = LADDER[self._rung[tower]]
        return f"{step.activations:.0%} of its activations and {step.weights:.0%} of its weights in fp32"

    @cached_property
    def _fp32(self) -> Path:
        self._exact.mkdir()
        write_onnx(self._source, self._exact)
        return self._exact

    @cached_property
    def _int8(self) -> dict[str, Int8Tower]:
        assert self._calibration is not None
        source = self._source
        pictures = calibration_pictures(self._calibration, self._images)
        texts = calibration_texts(self._calibration, self._images)
        tokenizer = prepare(source.tokenizer, source.context_length, source.padding_id, source.fixed)
        ids = [np.asarray([tokenizer.encode(text).ids], np.int64) for text in texts]  # one by one: no padding
        return {
            "image": Int8Tower(self._fp32 / IMAGE, batches(pictures, source.preprocessing)),
            "text": Int8Tower(self._fp32 / TEXT, ids),
        }
