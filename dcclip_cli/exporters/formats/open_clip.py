"""A model directory as open_clip has it."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from dcclip_cli.errors import DcclipError
from dcclip_cli.exporters.formats.base import Format
from dcclip_cli.exporters.names import Precision

if TYPE_CHECKING:
    from dcclip_cli.exporters.source import Source
    from dcclip_cli.predict.runtime import DualEncoder


class OpenClip(Format):
    """A copy of the model directory, its weights in fp32 or fp16."""

    name = "open_clip"
    precisions = ("fp32", "fp16")
    package = "open_clip"
    install = "pip install 'dcclip[train]'"

    def write(self, source: Source, graphs: Path, folder: Path, precision: Precision) -> None:
        import torch
        from safetensors.torch import load_file, save_file

        from dcclip_cli.model.folder import WEIGHTS

        if source.folder is None:
            raise DcclipError(
                f"{source.towers.name} is no open_clip model directory", "export it with --format onnx or transformers"
            )
        shutil.copytree(source.folder, folder, dirs_exist_ok=True)
        if precision == "fp16":
            weights = load_file(folder / WEIGHTS)
            half = {name: value.half() if value.dtype == torch.float32 else value for name, value in weights.items()}
            save_file(half, folder / WEIGHTS)

    def open(self, folder: Path) -> DualEncoder:
        from dcclip_cli.model.folder import load_folder
        from dcclip_cli.predict.torch_runtime import TorchEncoder

        return TorchEncoder(load_folder(folder))
