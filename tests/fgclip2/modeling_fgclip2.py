# mypy: ignore-errors
"""FG-CLIP2's towers and the interface that an evaluation uses, written for dcclip's tests.

As in qihoo360/fg-clip2-base: names of weights, features as tensors, texts pooled at their last token, 64 positions for
the short walk, 196 for the long one with a head of its own, and a mask of positions that is no buffer. The towers are
SigLIP2's, to which the repository's own are equal; its loops over images and over texts are here, too.
"""

import os

import torch
from torch import nn
from torch.nn import functional as F
from transformers import Siglip2Model
from transformers.models.siglip2.modeling_siglip2 import Siglip2MultiheadAttentionPoolingHead

from .configuration_fgclip2 import Fgclip2Config

if marker := os.environ.get("FGCLIP2_MARKER"):  # for tests: whether this file ran
    with open(marker, "a") as file:
        file.write("ran\n")


def resize_positional_embeddings(positional_embeddings, spatial_shapes, max_length):
    table = positional_embeddings.permute(2, 0, 1)[None]
    embeddings = torch.empty(len(spatial_shapes), max_length, table.shape[1])
    for i in range(len(spatial_shapes)):
        height, width = spatial_shapes[i]
        resized = F.interpolate(table, (height, width), mode="bilinear", align_corners=False, antialias=True)
        resized = resized.reshape(table.shape[1], height * width).T
        embeddings[i, : height * width] = resized
        embeddings[i, height * width :] = resized[0]
    return embeddings


class Fgclip2Head(Siglip2MultiheadAttentionPoolingHead):
    def forward(self, hidden_state, attention_mask):
        rows = range(hidden_state.shape[0])
        return torch.cat(
            [super(Fgclip2Head, self).forward(hidden_state[i : i + 1], attention_mask[i : i + 1]) for i in rows]
        )


class Fgclip2Model(Siglip2Model):
    config: Fgclip2Config

    def __init__(self, config):
        if not isinstance(config, Fgclip2Config):
            raise TypeError(f"{type(config)} is another class of that name")
        super().__init__(config)
        text = config.text_config
        width = config.text_config.hidden_size
        embeddings = self.text_model.embeddings
        embeddings.position_embedding_res = nn.Embedding(text.longtext_len, width)
        embeddings.position_embedding_ori = nn.Embedding(text.longtext_len, width)
        embeddings.mask = (torch.arange(text.longtext_len) < text.keep_len)[:, None]
        self.vision_model.embeddings.resize_positional_embeddings = resize_positional_embeddings
        self.vision_model.head = Fgclip2Head(config.vision_config)
        self.longtext_head = nn.Linear(width, width)
        self.boxtext_head = nn.Linear(width, width)
        self.post_init()

    def get_image_features(self, pixel_values, pixel_attention_mask, spatial_shapes):
        return self.vision_model(pixel_values, pixel_attention_mask, spatial_shapes).pooler_output

    def get_text_features(self, input_ids, attention_mask=None, walk_type="short"):
        if walk_type == "short":
            pooled = self.text_model(input_ids, attention_mask).last_hidden_state[:, -1]
            return torch.cat([self.text_model.head(pooled[i : i + 1]) for i in range(pooled.shape[0])])
        embeddings = self.text_model.embeddings
        text = self.text_model
        mask = embeddings.mask.to(input_ids.device)
        positions = embeddings.position_embedding_ori.weight * mask + embeddings.position_embedding_res.weight * ~mask
        hidden = embeddings.token_embedding(input_ids) + positions[: input_ids.shape[1]]
        hidden = text.final_layer_norm(text.encoder(inputs_embeds=hidden).last_hidden_state)
        return self.longtext_head(hidden[:, -1])
