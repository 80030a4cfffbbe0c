"""EmbeddingGemma 2: one network for texts and images, k x k patches a token. Shapes: as in naflex.py."""

from operator import attrgetter
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from dcclip_cli.files import read_json
from dcclip_cli.model.families.naflex import NaflexTowers
from dcclip_cli.model.hub_models import CHECK_NAME
from dcclip_cli.model.towers import TextFeatures, Tokens
from dcclip_cli.model.weights import require_file


class EmbeddingGemma2Towers(NaflexTowers):
    """The mean over all tokens of a text behind a `prompt`, or of an image, of which feature maps have the tokens."""

    label, model_types = "EmbeddingGemma 2", ("embedding_gemma2",)
    fp16 = False
    allowed_modules = ()  # its modules.json has more, which are computed here
    _image_modules = attrgetter("language_model.layers", "language_model.embedding_projection")
    match_patches = NaflexTowers.match_preprocessing  # exports do not resize images so

    def __init__(self, model: Any, image_processor: Any, tokenizer: Any, name: str, prompt: str) -> None:
        self._k, self._prompt, self.identity = image_processor.pooling_kernel_size, prompt, (prompt,)
        super().__init__(model, image_processor, tokenizer, name, [image_processor.max_soft_tokens * self._k**2])
        tokenizer.padding_side = "right"
        self.context_length += len(tokenizer(prompt, add_special_tokens=False)["input_ids"])

    @classmethod
    def library_config(cls, folder: Path) -> Any:
        config = super().library_config(folder)
        config.audio_config = None  # no tower for sound
        return config

    @classmethod
    def from_network(cls, network: Any, model: str, *options: Any) -> Self:
        prompts = read_json(require_file(model, "config_sentence_transformers.json"), CHECK_NAME)["prompts"]
        return super().from_network(network, model, prompts["query"])

    def library_preprocess(self, image: Image.Image) -> np.ndarray:
        inputs = self.image_processor(images=image, return_tensors="np")
        width, height = (inputs["image_position_ids"][0].max(0) + 1).tolist()
        return self._patches.packed(inputs["pixel_values"][0][: height * width], height, width)

    def image_embedding(self, pixels: Tensor) -> Tensor:
        shapes, patches = pixels[:, 0, 0, :2].long(), pixels[:, 0, 1:]
        count, width = shapes.prod(1, keepdim=True), shapes[:, 1:]
        places = torch.arange(patches.shape[1], device=pixels.device)
        positions = torch.stack([places % width, places // width], -1).where((places < count)[..., None], -1)
        tokenizer = self.tokenizer
        numbers = [patches.shape[1] // self._k**2, *(count[:, 0] // self._k**2).tolist()]
        texts = [f"{tokenizer.boi_token}{tokenizer.image_token * n}{tokenizer.eoi_token}" for n in numbers]
        # Padded to the first, the longest, which is the same for each batch.
        encoded = tokenizer(texts, padding=True, return_tensors="pt").to(pixels.device)
        tokens = Tokens(encoded["input_ids"][1:], encoded["attention_mask"][1:])
        return self._mean(tokens, pixel_values=patches, image_position_ids=positions)[0]

    def _maps(self, hidden: Tensor, shapes: Tensor, side: int = 0) -> Tensor:
        tokenizer, side = self.tokenizer, int(self.image_processor.max_soft_tokens**0.5)
        before = tokenizer(tokenizer.boi_token + tokenizer.image_token)["input_ids"].index(tokenizer.image_token_id)
        return super()._maps(hidden[:, before:], shapes // self._k, side)

    def tokenize(self, texts: list[str]) -> Tokens:
        return super().tokenize([self._prompt + text for text in texts])

    def text_features(self, tokens: Tokens) -> TextFeatures:
        return TextFeatures(*self._mean(tokens), tokens.mask)

    def _mean(self, tokens: Tokens, **images: Tensor) -> tuple[Tensor, Tensor]:
        """(N, D), the mean over the last hidden states (N, L, D), and these."""
        hidden = self.model(input_ids=tokens.ids, attention_mask=tokens.mask, **images).last_hidden_state
        mask = tokens.mask[..., None]
        return (hidden * mask).sum(1) / mask.sum(1), hidden
