"""The two towers as modules that an exporter can follow: pixels or token ids in, embeddings of length 1 out."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dcclip_cli.exporters.source import Source
from dcclip_cli.model.towers import OpenClipTowers, Tokens, TransformersTowers


class ImageGraph(nn.Module):
    """Pixels (B, 3, H, W) to embeddings (B, D)."""

    def __init__(self, source: Source) -> None:
        super().__init__()
        self.towers = source.towers

    def forward(self, pixels: Tensor) -> Tensor:
        if isinstance(self.towers, OpenClipTowers):
            return F.normalize(self.towers.model.visual(pixels), dim=-1)
        return F.normalize(self.towers.image_features(pixels).embedding, dim=-1)


class TextGraph(nn.Module):
    """Token ids (N, L) to embeddings (N, D). The mask is found in the graph: it is where the ids are not padding."""

    def __init__(self, source: Source) -> None:
        super().__init__()
        self.towers, self._padding_id, self._fixed = source.towers, source.padding_id, source.fixed
        # The original CLIP pads with its end token: hidden or not, padding comes after the place that is pooled.
        end = getattr(getattr(source.towers, "tokenizer", None), "eos_token_id", None)
        self._has_mask = isinstance(source.towers, TransformersTowers) and end != source.padding_id

    def forward(self, ids: Tensor) -> Tensor:
        if isinstance(self.towers, OpenClipTowers):
            return F.normalize(open_clip_text(self.towers.model, ids, self._fixed), dim=-1)
        mask = (ids != self._padding_id).long() if self._has_mask else torch.ones_like(ids)
        return F.normalize(self.towers.text_features(Tokens(ids, mask)).embedding, dim=-1)


def open_clip_text(model: Any, ids: Tensor, fixed: bool) -> Tensor:
    """(N, D). The causal mask is cut to the texts' length, which open_clip 3.3 leaves out."""
    from open_clip.transformer import text_global_pool

    if fixed:
        return model.encode_text(ids)
    text = getattr(model, "text", model)  # the older class keeps the text tower's parts itself
    pool = text.pool_type if text is not model else model.text_pool_type
    end = text.eos_id if text is not model else model.text_eos_id
    length = ids.shape[1]
    hidden = text.token_embedding(ids) + text.positional_embedding[:length]
    hidden = text.ln_final(text.transformer(hidden, attn_mask=text.attn_mask[:length, :length]))
    pooled = text_global_pool(hidden, ids, pool_type=pool, eos_token_id=end)
    if isinstance(text.text_projection, nn.Linear):
        return text.text_projection(pooled)
    return pooled if text.text_projection is None else pooled @ text.text_projection


def example_pixels(source: Source, batch: int = 2) -> Tensor:
    """Input of the right shape for an ImageGraph."""
    return torch.zeros(batch, 3, source.preprocessing.size, source.preprocessing.size)


def example_ids(source: Source, batch: int = 2, length: int | None = None) -> Tensor:
    """Token ids of some text, padded to `length`; default: one less than the longest, or as long as they have to be."""
    length = length or (source.context_length if source.fixed else source.context_length - 1)
    ids = source.tokenizer.encode("cat").ids[:length]
    return torch.tensor([ids + [source.padding_id] * (length - len(ids))] * batch)


def example_inputs(source: Source, batch: int) -> list[tuple[nn.Module, Tensor]]:
    """Both graphs, each with an example: pictures, and texts padded to the full length."""
    ids = example_ids(source, batch, source.context_length)
    images: nn.Module = ImageGraph(source).eval()
    # torch runs weights with the channels last; ExecuTorch 1.5 fails on those of strided convolutions.
    images = images.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
    return [(images, example_pixels(source, batch)), (TextGraph(source).eval(), ids)]
