"""LiteRT (TensorFlow Lite) models, for Android and microcomputers."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from dcclip_cli.exporters.formats.base import Format
from dcclip_cli.exporters.names import Precision
from dcclip_cli.predict.bundle import DescribedEncoder, read_description

if TYPE_CHECKING:
    from dcclip_cli.exporters.source import Source
    from dcclip_cli.predict.runtime import DualEncoder

FILES = ("image.tflite", "text.tflite")


class LiteRt(Format):
    """image.tflite takes one picture, text.tflite one text padded to the full length (int64).

    In int8 all weights are rounded, the embedding table too, and activations in ranges found while it runs. Fixed
    ranges reach into the normalisation at the end: the quick start's student lost 0.007 of cosine for 0.03 ms.
    """

    name = "litert"
    precisions = ("fp32", "int8")
    package = "litert_torch"
    install = "pip install litert-torch (in an environment of its own: 2.1 GB)"

    def write(self, source: Source, graphs: Path, folder: Path, precision: Precision) -> None:
        import litert_torch

        from dcclip_cli.exporters.graphs import example_inputs

        for file, (graph, example) in zip(FILES, example_inputs(source, batch=1), strict=True):
            litert_torch.convert(graph, (example,)).export(str(folder / file))
            if precision == "int8":
                _round(folder / file)

    def open(self, folder: Path) -> DualEncoder:
        return LiteRtEncoder(folder)


def _round(file: Path) -> None:
    from ai_edge_quantizer import quantizer, recipe

    rounding = quantizer.Quantizer(str(file))
    rounding.load_quantization_recipe(recipe.dynamic_wi8_afp32())
    rounding.quantize().export_model(str(file), overwrite=True)


class LiteRtEncoder(DescribedEncoder):
    """The two models, one picture or text at a time."""

    def __init__(self, folder: Path) -> None:
        from ai_edge_litert.interpreter import Interpreter

        about = read_description(folder, "litert", FILES) | {"fixed_length": True}
        super().__init__(folder, about, FILES)
        self._runners = [Interpreter(str(folder / file)).get_signature_runner() for file in FILES]

    def run_image(self, pixels: np.ndarray) -> np.ndarray:
        return _one_by_one(self._runners[0], pixels)

    def run_text(self, ids: np.ndarray) -> np.ndarray:
        return _one_by_one(self._runners[1], ids)


def _one_by_one(runner: object, items: np.ndarray) -> np.ndarray:
    [(name, detail)] = runner.get_input_details().items()  # type: ignore[attr-defined]
    rows = []
    for item in items:
        [row] = runner(**{name: item[np.newaxis].astype(detail["dtype"])}).values()  # type: ignore[operator]
        rows.append(np.array(row))
    return np.concatenate(rows)
