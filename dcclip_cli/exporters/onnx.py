"""The two towers as ONNX graphs: any number of images, any number of texts of any length, embeddings of length 1."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from dcclip_cli.errors import DcclipError
from dcclip_cli.predict.bundle import IMAGE, IMAGE_EMBEDS, PIXELS, TEXT, TEXT_EMBEDS, TOKENS

if TYPE_CHECKING:
    from torch import Tensor, nn

    from dcclip_cli.exporters.source import Source

OPSET = 18
LARGEST_FILE = 1_800_000_000  # bytes; a protobuf holds 2 GiB, weights beyond that lie in a file beside it


def write_onnx(source: Source, folder: Path) -> None:
    """Write image.onnx and text.onnx, fp32. Raises DcclipError for towers that the exporter can't follow."""
    import torch

    from dcclip_cli.exporters.graphs import ImageGraph, TextGraph, example_ids, example_pixels

    batch, length = torch.export.Dim("batch"), torch.export.Dim("length", max=source.context_length)
    lengths: Mapping[int, object] = {0: batch} if source.fixed else {0: batch, 1: length}
    # Two of everything: torch.export takes a size of one for a constant.
    images, texts = ImageGraph(source).eval(), TextGraph(source).eval()
    write_graph(images, example_pixels(source), {0: batch}, folder / IMAGE, PIXELS, IMAGE_EMBEDS)
    write_graph(texts, example_ids(source), lengths, folder / TEXT, TOKENS, TEXT_EMBEDS)


def write_graph(
    graph: nn.Module, example: Tensor, dynamic: Mapping[int, object], file: Path, takes: str, gives: str
) -> None:
    """Write one tower as a graph that turns `takes` into `gives`; `dynamic` names the example's open dimensions."""
    import torch

    size = sum(weight.numel() * weight.element_size() for weight in graph.parameters())
    try:
        with torch.no_grad():
            torch.onnx.export(
                graph,
                (example,),
                file,
                dynamo=True,
                input_names=[takes],
                output_names=[gives],
                dynamic_shapes=(dynamic,),
                opset_version=OPSET,
                external_data=size > LARGEST_FILE,
                verbose=False,
            )
    except torch.onnx.errors.OnnxExporterError as error:
        reason = str(error.__cause__ or error).strip().splitlines()[0][:200]
        raise DcclipError(
            f"torch can't export the {file.stem} tower: {reason}", "try another release of torch, or another model"
        ) from None
    _forget_where_it_was_made(file)


def _forget_where_it_was_made(file: Path) -> None:
    """Take out the source paths and stack traces that the exporter notes at every node: private, and no small part."""
    import onnx

    model = onnx.load(file, load_external_data=False)  # weights beside it stay where they are
    for part in (model.graph, *model.graph.node, *model.graph.value_info, *model.graph.input, *model.graph.output):
        del part.metadata_props[:]
        part.doc_string = ""
    file.write_bytes(model.SerializeToString())
