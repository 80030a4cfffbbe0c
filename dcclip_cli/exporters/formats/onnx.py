"""The export bundle: two ONNX graphs, a tokenizer, and what one must know to use them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from dcclip_cli.exporters.formats.base import Format
from dcclip_cli.exporters.names import Precision
from dcclip_cli.predict.bundle import IMAGE, TEXT, Bundle

if TYPE_CHECKING:
    from dcclip_cli.exporters.source import Source
    from dcclip_cli.predict.runtime import DualEncoder


class Onnx(Format):
    """image.onnx and text.onnx, run by onnxruntime. The small JSON files are those that transformers.js asks for."""

    name = "onnx"
    precisions = ("fp32", "fp16", "int8")
    from_onnx = True

    def write(self, source: Source, graphs: Path, folder: Path, precision: Precision) -> None:
        for name in (IMAGE, TEXT):
            for file in graphs.glob(f"{name}*"):
                shutil.copyfile(file, folder / file.name)
        for name, content in javascript_files(source).items():
            (folder / name).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")

    def open(self, folder: Path) -> DualEncoder:
        return Bundle(folder, "cpu")


def javascript_files(source: Source) -> dict[str, dict[str, object]]:
    """What transformers.js reads beside the graphs. It knows them as a CLIP's two towers: docs/deploy.md."""
    own = source.preprocessing
    crops = own.resize_mode == "shortest"
    square = {"height": own.size, "width": own.size}
    padding = source.tokenizer.id_to_token(source.padding_id) or ""
    return {
        "config.json": {"model_type": "clip"},
        "preprocessor_config.json": {
            "image_processor_type": "CLIPImageProcessor",
            "feature_extractor_type": "CLIPFeatureExtractor",
            "do_convert_rgb": True,
            "do_resize": True,
            "size": {"shortest_edge": own.size} if crops else square,
            "resample": {"nearest": 0, "bilinear": 2, "bicubic": 3}[own.interpolation],
            "do_center_crop": crops,
            "crop_size": square,
            "do_rescale": True,
            "rescale_factor": 1 / 255,
            "do_normalize": True,
            "image_mean": list(own.mean),
            "image_std": list(own.std),
        },
        "tokenizer_config.json": {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "model_max_length": source.context_length,
            "clean_up_tokenization_spaces": False,
            "pad_token": padding,
        },
    }
