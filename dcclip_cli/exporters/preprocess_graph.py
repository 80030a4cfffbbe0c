"""Preprocessing as the first nodes of an image graph, which then takes a decoded image of any size."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dcclip_cli.errors import DcclipError, Message
from dcclip_cli.model.preprocess import Preprocessing
from dcclip_cli.predict.onnx_encoder import PIXELS, RGB

# Pillow's filters: as wide as what becomes one pixel, with weights that add up to 1 at the edges, too.
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


def add_preprocessing(graph: Path, out: Path, preprocessing: Preprocessing) -> None:
    """Write an image graph that takes RGB, uint8 (1, height, width, 3), in place of PIXELS.

    Large weights stay in the file next to the graph.
    """
    import onnx

    model = onnx.load(graph, load_external_data=False)
    first, nodes = preprocessing_graph(preprocessing), list(model.graph.node)
    del model.graph.node[:], model.graph.input[:]
    model.graph.node.extend([*first.node, *nodes])
    model.graph.input.extend(first.input)
    out.write_bytes(model.SerializeToString())


def preprocesses(graph: Path) -> bool:
    """Whether an image graph takes RGB."""
    import onnx

    return bool(onnx.load(graph, load_external_data=False).graph.input[0].name == RGB)


def preprocessing_graph(preprocessing: Preprocessing) -> Any:
    """The GraphProto that turns RGB into PIXELS, as `preprocessing` does it with Pillow from version 13 on.

    That resizes the height first if it loses more than twice as many pixels as the width (python-pillow/Pillow#9549).
    Pixels differ by 1 of 255 now and then, and by 2 in extreme enlargements: onnxruntime's filter weights have fewer
    digits. Raises DcclipError for interpolation by nearest pixels.
    """
    from onnx import parser

    if preprocessing.interpolation not in _RESIZE:
        what = Message(
            "images are resized by {}, which a graph does not do in the same way", preprocessing.interpolation
        )
        raise DcclipError(what, "export with preprocess: outside")

    begin = "Add(half, more)" if preprocessing.crop == "round" else "Identity(half)"
    graph = parser.parse_graph(
        _GRAPH
        % {
            "side": preprocessing.size,
            "place": _SQUASHED if preprocessing.resize_mode == "squash" else _CROPPED % begin,
            "resize": _RESIZE[preprocessing.interpolation],
            "mean": _numbers(preprocessing.mean),
            "std": _numbers(preprocessing.std),
        }
    )
    for node in graph.node:
        for names in (node.input, node.output):
            names[:] = [name if name in ("", RGB, PIXELS) else f"preprocess/{name}" for name in names]
        node.name = node.output[0]
    return graph


def _numbers(values: Sequence[float]) -> str:
    return ", ".join(f"{value:.9g}" for value in values)
