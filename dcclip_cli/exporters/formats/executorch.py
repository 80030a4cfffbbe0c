"""ExecuTorch programs, for phones: PyTorch's own runtime on Android and iOS, here with XNNPACK kernels."""

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

FILES = ("image.pte", "text.pte")


class ExecuTorch(Format):
    """image.pte takes one picture, text.pte one text padded to the full length (int64)."""

    name = "executorch"
    precisions = ("fp32",)
    package = "executorch"
    install = "pip install executorch (in an environment of its own: 1.6 GB)"

    def write(self, source: Source, graphs: Path, folder: Path, precision: Precision) -> None:
        import torch
        from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
        from executorch.exir import to_edge_transform_and_lower

        from dcclip_cli.exporters.graphs import example_inputs

        for file, (graph, example) in zip(FILES, example_inputs(source, batch=1), strict=True):
            with torch.no_grad():
                program = torch.export.export(graph, (example,))
            lowered = to_edge_transform_and_lower(program, partitioner=[XnnpackPartitioner()]).to_executorch()
            (folder / file).write_bytes(lowered.buffer)

    def open(self, folder: Path) -> DualEncoder:
        return ExecuTorchEncoder(folder)


class ExecuTorchEncoder(DescribedEncoder):
    """The two programs, one picture or text at a time."""

    def __init__(self, folder: Path) -> None:
        from executorch.runtime import Runtime

        about = read_description(folder, "executorch", FILES) | {"fixed_length": True}
        super().__init__(folder, about, FILES)
        runtime = Runtime.get()
        self._programs = [runtime.load_program(str(folder / file)) for file in FILES]
        self._image, self._text = (program.load_method("forward") for program in self._programs)

    def run_image(self, pixels: np.ndarray) -> np.ndarray:
        return _one_by_one(self._image, pixels)

    def run_text(self, ids: np.ndarray) -> np.ndarray:
        return _one_by_one(self._text, ids)


def _one_by_one(method: object, items: np.ndarray) -> np.ndarray:
    import torch

    rows = [method.execute([torch.from_numpy(item[np.newaxis].copy())])[0].clone() for item in items]  # type: ignore[attr-defined]
    return np.concatenate([row.numpy() for row in rows])
