"""ONNX bundles, for onnxruntime and transformers.js, and the layout of the same graphs that immich loads."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from dcclip_cli.errors import DcclipError
from dcclip_cli.exporters import FormatName, Precision, Preprocess
from dcclip_cli.exporters.formats import Format
from dcclip_cli.exporters.preprocess_graph import preprocesses
from dcclip_cli.files import link_or_copy, write_json
from dcclip_cli.model.preprocess import RESAMPLING, Preprocessing
from dcclip_cli.predict.onnx_encoder import IMAGE, TEXT, TOKENIZER, OnnxEncoder, Run

if TYPE_CHECKING:
    from dcclip_cli.exporters.source import Source

# Names and types of immich's machine-learning service (immich_ml/models/clip): image is float, text is int32.
_IMMICH_IMAGE, _IMMICH_TEXT, _IMMICH_EMBEDDING = "image", "text", "embedding"


class Onnx(Format):
    """image.onnx and text.onnx, run by onnxruntime, with the small JSON files that transformers.js reads.

    transformers.js preprocesses images itself, so that these files are left out where the graph does.
    """

    name: ClassVar[FormatName] = "onnx"
    precisions = ("fp32", "fp16", "int8")
    preprocess: ClassVar[tuple[Preprocess, ...]] = ("outside", "graph")
    from_onnx = True

    def write(self, source: Source, graphs: Path, folder: Path, precision: Precision) -> None:
        for name in (IMAGE, TEXT):
            for file in graphs.glob(f"{name}*"):
                link_or_copy(file, folder / file.name)
        if preprocesses(folder / IMAGE):
            return
        processor = {
            "image_processor_type": "CLIPImageProcessor",
            "feature_extractor_type": "CLIPFeatureExtractor",
            **clip_image_processor(source.preprocessing),
        }
        write_json(folder / "config.json", {"model_type": "clip"})  # transformers.js runs them as a CLIP's two towers
        write_json(folder / "preprocessor_config.json", processor)
        write_json(folder / "tokenizer_config.json", _tokenizer_config(source))

    def open(self, folder: Path) -> OnnxEncoder:
        return OnnxEncoder(folder, "cpu")


class Immich(Format):
    """config.json, textual/ and visual/, as immich's own exporter writes them; texts are padded to their full length.

    immich runs one image or one text at a time, token ids as int32.
    """

    name = "immich"
    precisions = ("fp32", "fp16", "int8")
    from_onnx = True
    files = ("visual/model.onnx", "textual/model.onnx")
    is_single = True

    def write(self, source: Source, graphs: Path, folder: Path, precision: Precision) -> None:
        for name, target, takes in zip((IMAGE, TEXT), self.files, (_IMMICH_IMAGE, _IMMICH_TEXT), strict=True):
            if (graphs / f"{name}.data").exists():
                raise DcclipError("the {} of this model is too large for --format immich", "use --precision int8", name)
            (folder / target).parent.mkdir()
            width = _rename_inputs(graphs / name, folder / target, takes)
        config = {
            "embed_dim": width,
            "vision_cfg": {"image_size": source.preprocessing.size},
            "text_cfg": {"context_length": source.context_length, "vocab_size": source.tokenizer.get_vocab_size()},
        }
        write_json(folder / "config.json", config)
        write_json(folder / "visual/preprocess_cfg.json", source.preprocessing.to_config())
        write_json(folder / "textual/tokenizer_config.json", _tokenizer_config(source))
        source.tokenizer.save(str(folder / "textual" / TOKENIZER))

    def runner(self, file: Path) -> Run:
        import onnxruntime

        session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
        name = session.get_inputs()[0].name
        dtype = np.int32 if name == _IMMICH_TEXT else np.float32
        return lambda items: np.asarray(session.run(None, {name: items.astype(dtype)})[0])


def clip_image_processor(preprocessing: Preprocessing) -> dict[str, Any]:
    """A preprocessing in the terms of transformers' CLIPImageProcessor."""
    crops = preprocessing.resize_mode == "shortest"
    square = {"height": preprocessing.size, "width": preprocessing.size}
    return {
        "do_convert_rgb": True,
        "do_resize": True,
        "size": {"shortest_edge": preprocessing.size} if crops else square,
        "resample": int(RESAMPLING[preprocessing.interpolation]),
        "do_center_crop": crops,
        "crop_size": square,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(preprocessing.mean),
        "image_std": list(preprocessing.std),
    }


def _tokenizer_config(source: Source) -> dict[str, Any]:
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": source.context_length,
        "clean_up_tokenization_spaces": False,
        "pad_token": source.tokenizer.id_to_token(source.padding_id) or "",
    }


def _rename_inputs(graph: Path, out: Path, takes: str) -> int:
    """Write a graph whose input is called `takes`, its output `embedding`, with int32 token ids. The output's width."""
    import onnx
    from onnx import TensorProto, helper

    model = onnx.load(graph)
    given, gives = model.graph.input[0], model.graph.output[0]
    names = {name: f"{name}_inner" for name in (_IMMICH_EMBEDDING, takes)}  # inner tensors may have these names
    names[gives.name] = _IMMICH_EMBEDDING
    is_text = given.type.tensor_type.elem_type == TensorProto.INT64
    if not is_text:
        names[given.name] = takes
    for tensors in (tensors for node in model.graph.node for tensors in (node.input, node.output)):
        tensors[:] = [names.get(name, name) for name in tensors]
    if is_text:
        given.type.tensor_type.elem_type = TensorProto.INT32
        model.graph.node.insert(0, helper.make_node("Cast", [takes], [given.name], "ids", to=TensorProto.INT64))
    given.name, gives.name = takes, _IMMICH_EMBEDDING
    onnx.save(model, out)
    return int(gives.type.tensor_type.shape.dim[-1].dim_value)
