"""The two towers as modules that torch can trace, and their export as ONNX graphs."""

from collections.abc import Mapping
from pathlib import Path

import onnx
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

from dcclip_cli.core.errors import DcclipError
from dcclip_cli.exporters.source import Source
from dcclip_cli.inference.onnx_encoder import IMAGE, IMAGE_EMBEDS, PIXELS, TEXT, TEXT_EMBEDS, TOKENS
from dcclip_cli.model.families.base import TransformersTowers
from dcclip_cli.model.preprocess import Patches
from dcclip_cli.model.towers import Tokens

OPSET = 18


class ImageGraph(nn.Module):
    """Pixels (B, 3, H, W), or images of `Patches`, to embeddings (B, D)."""

    def __init__(self, source: Source) -> None:
        super().__init__()
        self.towers = source.towers
        self._dims = source.dims
        self.towers.make_traceable()

    def forward(self, pixels: Tensor) -> Tensor:
        return _finished(self.towers.image_embedding(pixels), self._dims)


class TextGraph(nn.Module):
    """Token ids (N, L) to embeddings (N, D). The graph computes the mask: 1 where the ids are not
    padding.
    """

    def __init__(self, source: Source) -> None:
        super().__init__()
        self.towers = source.towers
        self._padding_id = source.padding_id
        self._dims = source.dims

    def forward(self, ids: Tensor) -> Tensor:
        mask = ids  # open_clip's towers read none
        if isinstance(self.towers, TransformersTowers):
            # The original CLIP pads with its end token: masked or not, padding comes after the
            # position that is pooled.
            is_end = self.towers.tokenizer.eos_token_id == self._padding_id
            mask = torch.ones_like(ids) if is_end else (ids != self._padding_id).long()
        return _finished(self.towers.text_embedding(Tokens(ids, mask)), self._dims)


def _finished(embeddings: Tensor, dims: int | None) -> Tensor:
    return F.normalize(embeddings if dims is None else embeddings[:, :dims], dim=-1)


def _examples(source: Source, batch: int, length: int) -> tuple[Tensor, Tensor]:
    """Pixels for an ImageGraph, and token ids padded to `length` for a TextGraph."""
    ids = source.tokenizer.encode("cat").ids[:length]
    texts = torch.tensor([ids + [source.padding_id] * (length - len(ids))] * batch)
    if isinstance(source.preprocessing, Patches):
        return torch.from_numpy(source.preprocessing(Image.new("RGB", (30, 20)))).repeat(
            batch, 1, 1, 1
        ), texts
    return torch.zeros(batch, 3, source.preprocessing.size, source.preprocessing.size), texts


def single_examples(source: Source) -> list[tuple[nn.Module, Tensor]]:
    """Both graphs with example inputs: one image, and one text padded to the full length."""
    pixels, ids = _examples(source, 1, source.context_length)
    images: nn.Module = ImageGraph(source).eval()
    # TorchEncoder has channels-last weights; ExecuTorch 1.5 fails on those of strided
    # convolutions.
    images = images.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
    return [(images, pixels), (TextGraph(source).eval(), ids)]


def write_onnx(source: Source, folder: Path) -> None:
    """Write those of image.onnx and text.onnx, fp32, that `folder` lacks.

    Raises DcclipError for towers that torch cannot export.
    """
    batch = torch.export.Dim("batch")
    length = torch.export.Dim("length", max=source.context_length)
    lengths: Mapping[int, object] = {0: batch} if source.fixed else {0: batch, 1: length}
    # Two of everything, and less than the maximum: torch.export treats a size of one, or of the
    # maximum, as a constant.
    pixels, ids = _examples(source, 2, source.context_length - (not source.fixed))
    rows = {2: torch.export.Dim("rows", min=3)} if isinstance(source.preprocessing, Patches) else {}
    if not (folder / IMAGE).exists():
        write_graph(
            ImageGraph(source).eval(),
            pixels,
            {0: batch, **rows},
            folder / IMAGE,
            PIXELS,
            IMAGE_EMBEDS,
        )
    if not (folder / TEXT).exists():
        write_graph(TextGraph(source).eval(), ids, lengths, folder / TEXT, TOKENS, TEXT_EMBEDS)


def write_graph(
    graph: nn.Module,
    example: Tensor,
    dynamic: Mapping[int, object],
    file: Path,
    takes: str,
    gives: str,
) -> None:
    """Write a tower that turns `takes` into `gives`, weights in a file; `dynamic` names dimensions
    of `example`.
    """
    try:
        with torch.no_grad():
            program = torch.onnx.export(
                graph,
                (example,),
                dynamo=True,
                input_names=[takes],
                output_names=[gives],
                dynamic_shapes=(dynamic,),
                opset_version=OPSET,
                verbose=False,
            )
    except torch.onnx.errors.OnnxExporterError as error:
        reason = str(error.__cause__ or error).strip().splitlines()[0][:200]
        raise DcclipError(
            "torch cannot export the {} tower: {}",
            "try another release of torch, or another model",
            file.stem,
            reason,
        ) from None
    assert program is not None
    program.save(file, external_data=True)
    for value in program.model.graph.initializers.values():
        value.const_value = None  # the optimizer keeps the graph for good
    # Remove the source paths and stack traces that the exporter adds to every node: private, and
    # large.
    model = onnx.load(file, load_external_data=False)  # weights in a file next to it stay there
    for part in (
        model.graph,
        *model.graph.node,
        *model.graph.value_info,
        *model.graph.input,
        *model.graph.output,
    ):
        del part.metadata_props[:]
        part.doc_string = ""
    file.write_bytes(model.SerializeToString())
