"""CoreML packages, for iOS and macOS. They can be made on Linux, but run on Apple's systems alone."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from dcclip_cli.export.formats.base import Format
from dcclip_cli.export.names import Precision

if TYPE_CHECKING:
    from dcclip_cli.export.source import Source


class CoreMl(Format):
    """image.mlpackage takes one picture, text.mlpackage one text padded to the full length (int32)."""

    name = "coreml"
    precisions = ("fp32", "fp16")
    package = "coremltools"
    install = "pip install coremltools"

    def write(self, source: Source, graphs: Path, folder: Path, precision: Precision) -> None:
        import coremltools
        import torch

        from dcclip_cli.export.graphs import example_inputs

        compute = coremltools.precision.FLOAT16 if precision == "fp16" else coremltools.precision.FLOAT32
        for tower, (graph, example) in zip(("image", "text"), example_inputs(source, batch=1), strict=True):
            example = example.int() if tower == "text" else example
            with torch.no_grad():  # traced: coremltools 9 doesn't know all that torch.export of torch 2.13 writes
                traced = torch.jit.trace(graph, example, strict=False, check_trace=False)
            name, kind = ("input_ids", np.int32) if tower == "text" else ("pixel_values", np.float32)
            model = coremltools.convert(
                traced,
                inputs=[coremltools.TensorType(name=name, shape=tuple(example.shape), dtype=kind)],
                outputs=[coremltools.TensorType(name=f"{tower}_embeds")],
                minimum_deployment_target=coremltools.target.iOS17,
                compute_precision=compute,
            )
            model.save(str(folder / f"{tower}.mlpackage"))

    def open(self, folder: Path) -> None:
        return None
