"""ONNX bundles, for onnxruntime, and the layouts of the same graphs that transformers.js and
immich load.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from dcclip_cli.core.errors import DcclipError, Message
from dcclip_cli.core.files import link_or_copy, write_json
from dcclip_cli.exporters import FormatName, Precision, Preprocess
from dcclip_cli.exporters.formats import Format
from dcclip_cli.exporters.source import Source
from dcclip_cli.inference.onnx_encoder import (
    IMAGE,
    PIXELS,
    RGB,
    TEXT,
    TOKENIZER,
    OnnxEncoder,
    Run,
    runner,
)
from dcclip_cli.model.preprocess import RESAMPLING, Preprocessing

# Names and types of immich's machine-learning service (immich_ml/models/clip): image is float,
# text is int32.
_IMMICH_IMAGE = "image"
_IMMICH_TEXT = "text"
_IMMICH_EMBEDDING = "embedding"


class Onnx(Format):
    """image.onnx and text.onnx, run by onnxruntime."""

    name: ClassVar[FormatName] = "onnx"
    precisions = ("fp32", "fp16", "int8")
    preprocess: ClassVar[tuple[Preprocess, ...]] = ("outside", "graph")
    from_onnx = True
    reads_tokens_itself = True
    takes_patches = True

    def write(self, source: Source, graphs: Path, folder: Path, precision: Precision) -> None:
        for name in (IMAGE, TEXT):
            for file in graphs.glob(f"{name}*"):
                link_or_copy(file, folder / file.name)

    def open(self, folder: Path) -> OnnxEncoder:
        return OnnxEncoder(folder, "cpu")


class TransformersJs(Format):
    """onnx/model.onnx, which pipelines of transformers.js load, the two towers of it, and JSON
    files.

    transformers.js does not resize as Pillow does. Where the graph preprocesses, which is the
    default, it only hands on the decoded image, float (1, 3, height, width) from 0 to 255.
    """

    name: ClassVar[FormatName] = "transformers.js"
    precisions = ("fp32", "fp16", "int8")
    preprocess = ("graph", "outside")
    from_onnx = True
    reads_tokens_itself = True
    files = ("onnx/vision_model.onnx", "onnx/text_model.onnx", "onnx/model.onnx")

    def write(self, source: Source, graphs: Path, folder: Path, precision: Precision) -> None:
        import onnx

        check_size(graphs, self.name)
        image, text = (onnx.load(graphs / name) for name in (IMAGE, TEXT))
        processor = {
            "image_processor_type": "CLIPImageProcessor",
            "feature_extractor_type": "CLIPFeatureExtractor",
            **clip_image_processor(source.preprocessing),
        }
        if image.graph.input[0].name == RGB:
            _rename(image, {PIXELS: f"preprocess/{PIXELS}"})
            _prepend(image, onnx.parser.parse_graph(_DECODED))
            steps = [
                name for name in processor if name.startswith("do_") and name != "do_convert_rgb"
            ]
            processor |= dict.fromkeys(steps, False)
        scale = source.encoder.logit_scale
        bias = source.encoder.logit_bias
        if source.fixed and bias is None:
            bias = -scale  # transformers.js takes a sigmoid: 0.5 for equal embeddings
        # Both towers in one graph, which gives their embeddings and the logits.
        kept_names = {"rename_inputs": False, "rename_outputs": False}
        towers = [
            onnx.compose.add_prefix(tower, f"{name}/", **kept_names)
            for name, tower in (("image", image), ("text", text))
        ]
        named = towers[1].graph  # its sizes have the names of the images' ones
        for value in (*named.input, *named.output, *named.value_info):
            for size in value.type.tensor_type.shape.dim:
                if size.dim_param:
                    size.dim_param = f"text/{size.dim_param}"
        both = onnx.compose.merge_models(*towers, io_map=[])
        last = onnx.parser.parse_graph(_COMPARISON % (scale, bias or 0))
        both.graph.node.extend(last.node)
        both.graph.output.extend(last.output)
        (folder / self.files[0]).parent.mkdir()
        for file, graph in zip(self.files, (image, text, both), strict=True):
            onnx.save(graph, folder / file)
        # A SigLIP's texts are padded to the full length. All files have names without a precision,
        # which is "fp32".
        kind = {
            "model_type": "siglip" if source.fixed else "clip",
            "transformers.js_config": {"dtype": "fp32"},
        }
        write_json(folder / "config.json", kind)
        write_json(folder / "preprocessor_config.json", processor)
        write_json(folder / "tokenizer_config.json", _tokenizer_config(source))

    def runner(self, file: Path) -> Run:
        run = runner(file)
        return lambda items: run(
            items.transpose(0, 3, 1, 2).astype(np.float32) if items.dtype == np.uint8 else items
        )


class Immich(Format):
    """config.json, textual/ and visual/, as immich's exporter writes them: one image or
    full-length text (int32).
    """

    name = "immich"
    precisions = ("fp32", "fp16", "int8")
    from_onnx = True
    files = ("visual/model.onnx", "textual/model.onnx")
    is_single = True

    def write(self, source: Source, graphs: Path, folder: Path, precision: Precision) -> None:
        import onnx
        from onnx import TensorProto, helper

        check_size(graphs, self.name)
        for name, file, takes in zip(
            (IMAGE, TEXT), self.files, (_IMMICH_IMAGE, _IMMICH_TEXT), strict=True
        ):
            model = onnx.load(graphs / name)
            tower_input = model.graph.input[0]
            output = model.graph.output[0]
            names = {
                inner: f"{inner}_inner" for inner in (_IMMICH_EMBEDDING, takes)
            }  # which tensors may have
            names[output.name] = _IMMICH_EMBEDDING
            if name == IMAGE:
                names[tower_input.name] = takes
            _rename(model, names)
            if name == TEXT:
                tower_input.type.tensor_type.elem_type = TensorProto.INT32
                cast = helper.make_node(
                    "Cast", [takes], [tower_input.name], "ids", to=TensorProto.INT64
                )
                model.graph.node.insert(0, cast)
            tower_input.name = takes
            output.name = _IMMICH_EMBEDDING
            (folder / file).parent.mkdir()
            onnx.save(model, folder / file)
        config = {
            "embed_dim": output.type.tensor_type.shape.dim[-1].dim_value,
            "vision_cfg": {"image_size": source.preprocessing.size},
            "text_cfg": {
                "context_length": source.context_length,
                "vocab_size": source.tokenizer.get_vocab_size(),
            },
        }
        write_json(folder / "config.json", config)
        write_json(folder / "visual/preprocess_cfg.json", source.preprocessing.to_config())
        write_json(folder / "textual/tokenizer_config.json", _tokenizer_config(source))
        source.tokenizer.save(str(folder / "textual" / TOKENIZER))


def check_size(graphs: Path, name: FormatName) -> None:
    """Raise DcclipError if a graph's weights are in a file next to it, which a format does not
    support.
    """
    for graph in (IMAGE, TEXT):
        if (graphs / f"{graph}.data").exists():
            raise DcclipError(
                "the {} of this model is too large for --format {}",
                "use --precision int8",
                graph,
                name,
            )


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


def _rename(model: Any, names: Mapping[str, str]) -> None:
    for tensors in (tensors for node in model.graph.node for tensors in (node.input, node.output)):
        tensors[:] = [names.get(name, name) for name in tensors]
    for tensor in (*model.graph.value_info, *model.graph.initializer):
        tensor.name = names.get(tensor.name, tensor.name)


_DECODED = """
decoded (float[1, 3, height, width] pixel_values) => (uint8[1, height, width, 3] rgb_image) {
    last = Einsum<equation = "bchw -> bhwc">(pixel_values)
    rgb_image = Cast<to = 2>(last)
}
"""  # onnxruntime 1.32 moves a Transpose behind the Resize, with wrong sizes
_COMPARISON = """
comparison (float[images, width] image_embeds, float[texts, width] text_embeds)
    => (float[images, texts] logits_per_image, float[texts, images] logits_per_text) {
    columns = Transpose<perm = [1, 0]>(text_embeds)
    cosines = MatMul(image_embeds, columns)
    scale = Constant<value = float {%.9g}>()
    scaled = Mul(cosines, scale)
    bias = Constant<value = float {%.9g}>()
    logits_per_image = Add(scaled, bias)
    logits_per_text = Transpose<perm = [1, 0]>(logits_per_image)
}
"""


# ---- preprocessing as the first nodes of an image graph, which then takes a decoded image of any
# size

# Pillow's filters: as wide as what becomes one pixel, with weights that add up to 1 at the edges,
# too.
_RESIZE = {
    "bicubic": 'mode = "cubic", cubic_coeff_a = -0.5, antialias = 1, exclude_outside = 1',
    "bilinear": 'mode = "linear", antialias = 1, exclude_outside = 1',
}
_SQUASHED = """
    resized_to = Identity(sides)
    begin = Sub(sides, sides)"""
_CROPPED = """
    shorter = ReduceMin<keepdims = 1>(size)
    scaled = Mul(sides, size)
    resized_to = Div(scaled, shorter)
    margin = Sub(resized_to, sides)
    half = Div(margin, two)
    odd_margin = Mod(margin, two)
    odd_half = Mod(half, two)
    more = Mul(odd_margin, odd_half)
    begin = %s"""  # Python's round(): half a pixel to the even side
_GRAPH = """
preprocess (uint8[1, height, width, 3] rgb_image) => (float[1, 3, %(side)d, %(side)d] pixel_values) {
    size = Shape<start = 1, end = 3>(rgb_image)
    sides = Constant<value = int64[2] {%(side)d, %(side)d}>()
    zero = Constant<value = int64[1] {0}>()
    two = Constant<value = int64[1] {2}>()%(place)s
    loss = Sub(size, resized_to)
    some_loss = Max(loss, zero)
    height_loss, width_loss = Split<num_outputs = 2>(some_loss)
    twice = Mul(width_loss, two)
    is_vertical_first = Greater(height_loss, twice)
    old_height, old_width = Split<num_outputs = 2>(size)
    height, width = Split<num_outputs = 2>(resized_to)
    first_height = Where(is_vertical_first, height, old_height)
    first = Resize<axes = [1], %(resize)s>(rgb_image, , , first_height)
    second = Resize<axes = [2], %(resize)s>(first, , , width)
    resized = Resize<axes = [1], %(resize)s>(second, , , height)
    end = Add(begin, sides)
    axes = Constant<value = int64[2] {1, 2}>()
    square = Slice(resized, begin, end, axes)
    channels = Transpose<perm = [0, 3, 1, 2]>(square)
    levels = Cast<to = 1>(channels)
    most = Constant<value = float {255}>()
    shares = Div(levels, most)
    mean = Constant<value = float[1, 3, 1, 1] {%(mean)s}>()
    centred = Sub(shares, mean)
    std = Constant<value = float[1, 3, 1, 1] {%(std)s}>()
    pixel_values = Div(centred, std)
}
"""


def add_preprocessing(file: Path, preprocessing: Preprocessing) -> None:
    """Let an image graph take RGB, uint8 (1, height, width, 3), in place of PIXELS; weights in
    other files stay.
    """
    import onnx

    model = onnx.load(file, load_external_data=False)
    _prepend(model, preprocessing_graph(preprocessing))
    file.write_bytes(model.SerializeToString())


def _prepend(model: Any, first: Any) -> None:
    """Let a model take the inputs of a graph, which computes the model's own."""
    nodes = list(model.graph.node)
    del model.graph.node[:], model.graph.input[:]
    model.graph.node.extend([*first.node, *nodes])
    model.graph.input.extend(first.input)


def preprocessing_graph(preprocessing: Preprocessing) -> Any:
    """The GraphProto that turns RGB into PIXELS, as `preprocessing` does it with Pillow from
    version 13 on.

    That resizes the height first if it loses more than twice as many pixels as the width
    (python-pillow/Pillow#9549). Pixels differ by 1 of 255 now and then, and by 2 in extreme
    enlargements: onnxruntime's filter weights have fewer digits. Raises DcclipError for
    interpolation by nearest pixels.
    """
    from onnx import parser

    if preprocessing.interpolation not in _RESIZE:
        reason = Message(
            "images are resized by {}, which a graph cannot reproduce", preprocessing.interpolation
        )
        raise DcclipError(reason, "export with preprocess: outside")

    begin = "Add(half, more)" if preprocessing.crop == "round" else "Identity(half)"
    mean, std = (
        ", ".join(f"{value:.9g}" for value in values)
        for values in (preprocessing.mean, preprocessing.std)
    )
    fields = {
        "side": preprocessing.size,
        "place": _SQUASHED if preprocessing.resize_mode == "squash" else _CROPPED % begin,
        "resize": _RESIZE[preprocessing.interpolation],
        "mean": mean,
        "std": std,
    }
    graph = parser.parse_graph(_GRAPH % fields)
    for node in graph.node:
        for names in (node.input, node.output):
            names[:] = [
                name if name in ("", RGB, PIXELS) else f"preprocess/{name}" for name in names
            ]
        node.name = node.output[0]
    return graph
