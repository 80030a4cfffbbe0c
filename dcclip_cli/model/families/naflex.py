"""Towers whose images keep their proportions (NaFlex): SigLIP2, EmbeddingGemma 2, and families
like these.

Shapes: B images, N texts, P patches at most, D values of a patch, h x w the patches of an image, C
channels.
"""

from collections.abc import Sequence
from functools import partial
from operator import attrgetter
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from dcclip_cli.core.errors import DcclipError, Message
from dcclip_cli.core.files import read_json
from dcclip_cli.model.families.base import TransformersTowers
from dcclip_cli.model.hub_models import CHECK_NAME
from dcclip_cli.model.preprocess import RESAMPLING, Patches, Preprocessing, matching_preprocessing
from dcclip_cli.model.towers import (
    ImageFeatures,
    TextFeatures,
    Tokens,
    check_layers,
    module_outputs,
)
from dcclip_cli.model.weights import require_file


class NaflexTowers(TransformersTowers):
    """Images are resized to at most P patches, by default the image processor's number.

    An image gets the first of the `budgets` that is as large as itself, else the last, P. It is
    (1, 1 + P, D): a row that begins with h and w, its h w patches, zeros. A batch is computed with
    the budget that its largest image needs. Maps are resized to the square grid that the position
    table was made for.
    """

    @classmethod
    def blank(cls, _folder: Path) -> None:  # without weights they take no image
        return None

    def __init__(
        self,
        model: Any,
        image_processor: Any,
        tokenizer: Any,
        name: str,
        budgets: Sequence[int] = (),
    ) -> None:
        super().__init__(model, image_processor, tokenizer, name)
        names = {int(number): name for name, number in RESAMPLING.items()}
        self._patches = Patches(
            mean=tuple(image_processor.image_mean),
            std=tuple(image_processor.image_std),
            interpolation=names[int(image_processor.resample)],
            patch_size=image_processor.patch_size,
            max_num_patches=tuple(budgets) or (image_processor.max_num_patches,),
        )

    def match_preprocessing(self) -> Preprocessing:
        message = Message(
            "{} keeps the aspect ratio of images (NaFlex): not supported by this command", self.name
        )
        raise DcclipError(message, "use a model with a fixed, square input size")

    def match_patches(self) -> Preprocessing:
        """What `preprocess` does, without transformers. Raises DcclipError if its image processor
        does otherwise.
        """
        return matching_preprocessing(self.name, self.library_preprocess, self._patches.to_config())

    @property
    def preprocessing_record(self) -> dict[str, Any]:
        budgets = [*self._patches.max_num_patches]
        return {"as_in": self.name, "max_num_patches": budgets if len(budgets) > 1 else budgets[0]}

    def library_preprocess(self, image: Image.Image) -> np.ndarray:
        budget = self._patches.budget(image)
        inputs = self.image_processor(images=image, max_num_patches=budget, return_tensors="np")
        height, width = map(int, inputs["spatial_shapes"][0])
        return self._patches.packed(inputs["pixel_values"][0][: height * width], height, width)

    compilable = ()
    _image_modules = attrgetter(
        "vision_model.encoder.layers", "vision_model.post_layernorm"
    )  # the last gives the map

    def image_features(self, pixels: Tensor, layers: Sequence[int] = ()) -> ImageFeatures:
        blocks, end = self._image_modules(self.model)
        check_layers(self.name, layers, len(blocks))
        shapes = pixels[:, 0, 0, :2].long()  # (B, 2)
        with module_outputs([end, *(blocks[layer] for layer in layers)]) as outputs:
            embedding = self.image_embedding(self._patches.shortened(pixels))
        last, *maps = (self._maps(hidden, shapes) for hidden in outputs())
        return ImageFeatures(embedding, last, dict(zip(layers, maps, strict=True)))

    def rows_by_size(self, pixels: Tensor) -> Sequence[Any]:
        limits = torch.bucketize(
            pixels[:, 0, 0, :2].prod(1), torch.tensor(self._patches.max_num_patches)
        )
        return [(limits == limit).nonzero().flatten() for limit in limits.unique()]

    def image_embedding(self, pixels: Tensor) -> Tensor:
        shapes = pixels[:, 0, 0, :2].long()
        patches = pixels[:, 0, 1:]
        mask = torch.arange(patches.shape[1], device=pixels.device) < shapes.prod(1)[:, None]
        inputs = {
            "pixel_values": patches,
            "pixel_attention_mask": mask.int(),
            "spatial_shapes": shapes,
        }
        return pooled(self.model.get_image_features(**inputs))

    def make_traceable(self) -> None:
        vision = self.model.vision_model
        vision.embeddings.resize_positional_embeddings = _resized_positions
        vision.head.forward = partial(_pool, vision.head)

    def _maps(self, hidden: Tensor, shapes: Tensor, side: int = 0) -> Tensor:
        """(B, C, s, s) of patch tokens (B, P, C); the side s is by default that of the position
        table.
        """
        side = side or int(self.model.config.vision_config.num_patches**0.5)
        maps = []
        for tokens, (height, width) in zip(hidden.float(), shapes.tolist(), strict=True):
            grid = tokens[: height * width].T.unflatten(1, (height, width))[None]
            maps.append(
                nn.functional.interpolate(grid, (side, side), mode="bilinear", antialias=True)
            )
        return torch.cat(maps)


class Siglip2Towers(NaflexTowers):
    label = "SigLIP2"
    model_types = ("siglip2",)
    attention = "bidirectional"
    pooling = "last"
    fixed_length = True


class EmbeddingGemma2Towers(NaflexTowers):
    """One network embeds texts, behind a `prompt`, and images: an embedding is the mean over all
    tokens.

    A token stands for k x k patches of an image; feature maps are grids of these tokens.
    """

    label = "EmbeddingGemma 2"
    model_types = ("embedding_gemma2",)
    attention = "bidirectional"
    pooling = "mean"
    fp16 = False
    allowed_modules = ()  # its modules.json has more, which are computed here
    _image_modules = attrgetter("language_model.layers", "language_model.embedding_projection")
    match_patches = NaflexTowers.match_preprocessing  # exports do not resize images so

    def __init__(
        self, model: Any, image_processor: Any, tokenizer: Any, name: str, prompt: str
    ) -> None:
        self._k = image_processor.pooling_kernel_size
        self._prompt = prompt
        self.identity = (prompt,)
        super().__init__(
            model, image_processor, tokenizer, name, [image_processor.max_soft_tokens * self._k**2]
        )
        tokenizer.padding_side = "right"
        self.context_length += len(tokenizer(prompt, add_special_tokens=False)["input_ids"])

    @classmethod
    def library_config(cls, folder: Path) -> Any:
        config = super().library_config(folder)
        config.audio_config = None  # no tower for sound
        return config

    @classmethod
    def from_network(cls, network: Any, model: str, *options: Any) -> Self:
        prompts = read_json(require_file(model, "config_sentence_transformers.json"), CHECK_NAME)[
            "prompts"
        ]
        return super().from_network(network, model, prompts["query"])

    def library_preprocess(self, image: Image.Image) -> np.ndarray:
        inputs = self.image_processor(images=image, return_tensors="np")
        width, height = (inputs["image_position_ids"][0].max(0) + 1).tolist()
        return self._patches.packed(inputs["pixel_values"][0][: height * width], height, width)

    def image_embedding(self, pixels: Tensor) -> Tensor:
        shapes = pixels[:, 0, 0, :2].long()
        patches = pixels[:, 0, 1:]
        count = shapes.prod(1, keepdim=True)
        width = shapes[:, 1:]
        places = torch.arange(patches.shape[1], device=pixels.device)
        positions = torch.stack([places % width, places // width], -1).where(
            (places < count)[..., None], -1
        )
        tokenizer = self.tokenizer
        longest = patches.shape[1] // self._k**2  # to which the others are padded, in each batch
        numbers = [longest, *(count[:, 0] // self._k**2).tolist()]
        texts = [
            f"{tokenizer.boi_token}{tokenizer.image_token * n}{tokenizer.eoi_token}"
            for n in numbers
        ]
        encoded = tokenizer(texts, padding=True, return_tensors="pt").to(pixels.device)
        tokens = Tokens(encoded["input_ids"][1:], encoded["attention_mask"][1:])
        return self._mean(tokens, pixel_values=patches, image_position_ids=positions)[0]

    def _maps(self, hidden: Tensor, shapes: Tensor, side: int = 0) -> Tensor:
        tokenizer = self.tokenizer
        side = int(self.image_processor.max_soft_tokens**0.5)
        before = tokenizer(tokenizer.boi_token + tokenizer.image_token)["input_ids"].index(
            tokenizer.image_token_id
        )
        return super()._maps(hidden[:, before:], shapes // self._k, side)

    def tokenize(self, texts: list[str]) -> Tokens:
        return super().tokenize([self._prompt + text for text in texts])

    def text_features(self, tokens: Tokens) -> TextFeatures:
        return TextFeatures(*self._mean(tokens), tokens.mask, self.pooling)

    def _mean(self, tokens: Tokens, **images: Tensor) -> tuple[Tensor, Tensor]:
        """(N, D), the mean over the last hidden states (N, L, D), and these."""
        hidden = self.model(
            input_ids=tokens.ids, attention_mask=tokens.mask, **images
        ).last_hidden_state
        mask = tokens.mask[..., None]
        return (hidden * mask).sum(1) / mask.sum(1), hidden


# Replacements for code of the libraries that torch cannot trace: loops over images, and checks.


def _pool(head: Any, hidden: Tensor, mask: Tensor) -> Tensor:
    """(B, C) of patch tokens (B, P, C) by an attention pooling head."""
    probe = head.probe.repeat(hidden.shape[0], 1, 1)
    pooled = head.attention(probe, hidden, hidden, key_padding_mask=mask == 0)[0]
    return (pooled + head.mlp(head.layernorm(pooled)))[:, 0]


def _resized_positions(table: Tensor, shapes: Tensor, max_length: int) -> Tensor:
    """(B, P, C) of a square table (s, s, C), resized bilinearly with antialiasing to each of
    `shapes` (B, 2).
    """
    sizes = shapes[:, None].float()
    places = torch.arange(max_length, device=shapes.device)[:, None]
    rows = (places / sizes[..., 1:]).floor()
    places = torch.cat([rows, places - rows * sizes[..., 1:]], -1).minimum(sizes - 1)  # (B, P, 2)
    scale = table.shape[0] / sizes
    centres = (places + 0.5) * scale - 0.5
    distances = (
        torch.arange(table.shape[0], device=shapes.device) - centres[..., None]
    ).abs()  # (B, P, 2, s)
    weights = (1 - distances / scale.clamp(min=1)[..., None]).clamp(min=0)
    rows, columns = (weights / weights.sum(-1, keepdim=True)).unbind(2)
    return (rows[..., None] * columns[..., None, :]).flatten(-2) @ table.flatten(0, 1)


def pooled(output: Any) -> Tensor:
    """What `get_image_features` and `get_text_features` return: a tensor until transformers 4."""
    return output if isinstance(output, Tensor) else output.pooler_output
