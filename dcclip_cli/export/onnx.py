"""The two towers as ONNX graphs: any number of images, any number of texts of any length, embeddings of length 1."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from dcclip_cli.errors import DcclipError
from dcclip_cli.predict.bundle import IMAGE, IMAGE_EMBEDS, PIXELS, TEXT, TEXT_EMBEDS, TOKENS

if TYPE_CHECKING:
    from torch import Tensor, nn

    from dcclip_cli.model.towers import OpenClipTowers

OPSET = 18


def write_onnx(towers: OpenClipTowers, folder: Path) -> None:
    """Write image.onnx and text.onnx, fp32. Raises DcclipError for a text tower that takes texts of one length only."""
    import torch
    from open_clip.transformer import TextTransformer

    text = getattr(towers.model, "text", None)
    if not isinstance(text, TextTransformer) or text.cls_emb is not None:
        raise DcclipError(
            f"{towers.name} has a {type(text or towers.model).__name__} text tower, which can't be exported yet",
            "export a model that dcclip trained",
        )
    assert towers.preprocessing is not None  # a model directory says it in its configuration
    image_graph, text_graph = _graphs(towers)
    size = towers.preprocessing.size
    batch, length = torch.export.Dim("batch"), torch.export.Dim("length", max=text.context_length)
    # Two of everything: torch.export takes a size of one for a constant.
    _write(image_graph, torch.zeros(2, 3, size, size), {0: batch}, folder / IMAGE, PIXELS, IMAGE_EMBEDS)
    ids = torch.full((2, text.context_length - 1), text.eos_id)
    _write(text_graph, ids, {0: batch, 1: length}, folder / TEXT, TOKENS, TEXT_EMBEDS)


def _graphs(towers: OpenClipTowers) -> tuple[nn.Module, nn.Module]:
    import torch
    from torch.nn import functional as F

    from dcclip_cli.model.towers import Tokens

    class ImageGraph(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.towers = towers

        def forward(self, pixels: Tensor) -> Tensor:
            return F.normalize(self.towers.image_features(pixels).embedding, dim=-1)

    class TextGraph(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.towers = towers

        def forward(self, ids: Tensor) -> Tensor:
            # Pooled at the end token under a causal mask: what comes after it, padding, is never looked at.
            return F.normalize(self.towers.text_features(Tokens(ids, ids)).embedding, dim=-1)

    return ImageGraph().eval(), TextGraph().eval()


def _write(graph: nn.Module, example: Tensor, dynamic: dict[int, object], file: Path, takes: str, gives: str) -> None:
    import torch

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
            external_data=False,
            verbose=False,
        )
    _forget_where_it_was_made(file)


def _forget_where_it_was_made(file: Path) -> None:
    """Take out the source paths and stack traces that the exporter notes at every node: private, and no small part."""
    import onnx

    model = onnx.load(file)
    for part in (model.graph, *model.graph.node, *model.graph.value_info, *model.graph.input, *model.graph.output):
        del part.metadata_props[:]
        part.doc_string = ""
    onnx.save(model, file)
