"""The layout in which immich, the photo library, looks for a model of one's own."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from dcclip_cli.errors import DcclipError
from dcclip_cli.exporters.formats.base import Format
from dcclip_cli.exporters.formats.onnx import javascript_files
from dcclip_cli.exporters.names import Precision
from dcclip_cli.predict.bundle import IMAGE, TEXT, TOKENIZER, DescribedEncoder, read_description

if TYPE_CHECKING:
    from dcclip_cli.exporters.source import Source
    from dcclip_cli.predict.runtime import DualEncoder

VISUAL, TEXTUAL = "visual/model.onnx", "textual/model.onnx"
# Names and types of immich's machine-learning service (immich_ml/models/clip): image is float, text is int32.
_IMAGE, _TEXT, _EMBEDDING = "image", "text", "embedding"


class Immich(Format):
    """config.json, textual/ and visual/, as immich's own exporter leaves them; it pads texts to their full length."""

    name = "immich"
    precisions = ("fp32", "fp16", "int8")
    from_onnx = True

    def write(self, source: Source, graphs: Path, folder: Path, precision: Precision) -> None:
        for part in ("visual", "textual"):
            (folder / part).mkdir()
        for name, target, takes in ((IMAGE, VISUAL, _IMAGE), (TEXT, TEXTUAL, _TEXT)):
            if (graphs / f"{name}.data").exists():
                raise DcclipError(f"the {name} of this model is too large for --format immich", "say --precision int8")
            _rename(graphs / name, folder / target, takes)
        config = {
            "embed_dim": _width(folder / TEXTUAL),
            "vision_cfg": {"image_size": source.preprocessing.size},
            "text_cfg": {"context_length": source.context_length, "vocab_size": source.tokenizer.get_vocab_size()},
        }
        _write(folder / "config.json", config)
        _write(folder / "visual/preprocess_cfg.json", source.preprocessing.to_config())
        _write(folder / "textual/tokenizer_config.json", javascript_files(source)["tokenizer_config.json"])
        source.tokenizer.save(str(folder / "textual" / TOKENIZER))

    def open(self, folder: Path) -> DualEncoder:
        return ImmichEncoder(folder)


class ImmichEncoder(DescribedEncoder):
    """The layout run as immich runs it: one image or text at a time, texts padded to their full length, int32."""

    def __init__(self, folder: Path) -> None:
        import onnxruntime

        about = read_description(folder, "immich", (VISUAL, TEXTUAL)) | {"fixed_length": True}
        super().__init__(folder, about, (VISUAL, TEXTUAL))
        self._image, self._text = (
            onnxruntime.InferenceSession(str(folder / name), providers=["CPUExecutionProvider"])
            for name in (VISUAL, TEXTUAL)
        )

    def run_image(self, pixels: np.ndarray) -> np.ndarray:
        return np.concatenate([self._image.run(None, {_IMAGE: one[np.newaxis]})[0] for one in pixels])

    def run_text(self, ids: np.ndarray) -> np.ndarray:
        return np.concatenate([self._text.run(None, {_TEXT: one[np.newaxis].astype(np.int32)})[0] for one in ids])


def _rename(graph: Path, out: Path, takes: str) -> None:
    """Write a graph whose input is called `takes`, its output `embedding`; token ids come as int32."""
    import onnx
    from onnx import TensorProto, helper

    model = onnx.load(graph)
    given, gives = model.graph.input[0], model.graph.output[0]
    old = given.name
    taken = {name for node in model.graph.node for name in (*node.input, *node.output)}
    for node in model.graph.node:  # an inner tensor may have the name already
        for names in (node.input, node.output):
            for index, name in enumerate(names):
                if name == gives.name:
                    names[index] = _EMBEDDING
                elif name in (_EMBEDDING, takes):
                    names[index] = _free(f"{name}_inner", taken)
    if given.type.tensor_type.elem_type == TensorProto.INT64:
        given.type.tensor_type.elem_type = TensorProto.INT32
        model.graph.node.insert(0, helper.make_node("Cast", [takes], [old], "ids", to=TensorProto.INT64))
    else:
        for node in model.graph.node:
            for index, name in enumerate(node.input):
                if name == old:
                    node.input[index] = takes
    given.name, gives.name = takes, _EMBEDDING
    onnx.save(model, out)


def _free(name: str, taken: set[str]) -> str:
    while name in taken:
        name += "_"
    return name


def _width(graph: Path) -> int:
    import onnxruntime

    return int(onnxruntime.InferenceSession(str(graph)).get_outputs()[0].shape[-1])


def _write(file: Path, content: Any) -> None:
    file.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
