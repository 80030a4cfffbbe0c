"""OpenVINO's intermediate representation, for Intel's processors, graphics and neural units."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from dcclip_cli.exporters.formats.base import Format
from dcclip_cli.exporters.names import Precision
from dcclip_cli.predict.bundle import IMAGE, TEXT, DescribedEncoder, read_description

if TYPE_CHECKING:
    from dcclip_cli.exporters.source import Source
    from dcclip_cli.predict.runtime import DualEncoder

FILES = ("image.xml", "image.bin", "text.xml", "text.bin")


class OpenVino(Format):
    """image.xml and text.xml with their weights, made from the ONNX graphs, int8 ones included."""

    name = "openvino"
    precisions = ("fp32", "fp16", "int8")
    package = "openvino"
    install = "pip install openvino"
    from_onnx = True

    def write(self, source: Source, graphs: Path, folder: Path, precision: Precision) -> None:
        import openvino

        for name in (IMAGE, TEXT):
            model = openvino.convert_model(graphs / name)
            openvino.save_model(model, folder / f"{Path(name).stem}.xml", compress_to_fp16=precision == "fp16")

    def open(self, folder: Path) -> DualEncoder:
        return OpenVinoEncoder(folder)


class OpenVinoEncoder(DescribedEncoder):
    """The two graphs on the CPU, any batch and text length, on one thread."""

    def __init__(self, folder: Path) -> None:
        import openvino

        super().__init__(folder, read_description(folder, "openvino", FILES), FILES)
        core = openvino.Core()
        exact = {"INFERENCE_NUM_THREADS": 1, "INFERENCE_PRECISION_HINT": "f32"}
        self._image, self._text = (
            core.compile_model(folder / f"{tower}.xml", "CPU", exact) for tower in ("image", "text")
        )

    def run_image(self, pixels: np.ndarray) -> np.ndarray:
        return np.array(self._image([pixels])[0])

    def run_text(self, ids: np.ndarray) -> np.ndarray:
        return np.array(self._text([ids])[0])
