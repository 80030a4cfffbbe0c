"""UForm's towers (unum-cloud/uform3-*), in a layout that the package uform reads. Shapes: as in towers.py."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor, nn

from dcclip_cli.errors import DcclipError, Message
from dcclip_cli.files import read_json
from dcclip_cli.model.families.base import Family
from dcclip_cli.model.hub_models import COPY_AGAIN, TRANSFORMERS_CONFIG
from dcclip_cli.model.preprocess import Preprocessing, matching_preprocessing
from dcclip_cli.model.tokenizer import check_tokenizer
from dcclip_cli.model.towers import (
    TREATMENT,
    ImageFeatures,
    TextFeatures,
    Tokens,
    check_layers,
    module_outputs,
    on_grid,
)
from dcclip_cli.model.weights import UFORM_WEIGHTS, as_safetensors, find_weights, require_file, weights_digest
from dcclip_cli.progress import Progress


class UFormTowers(Family):
    """A UForm model by the classes and processors of its package, which pad texts to the length of the tower."""

    label, compilable = "UForm", ()
    weights = UFORM_WEIGHTS
    required_files = (
        (TRANSFORMERS_CONFIG,),
        tuple(name.replace("image", "text") for name in UFORM_WEIGHTS),
        ("tokenizer.json",),
    )

    def __init__(
        self, towers: dict[str, nn.Module], images: Any, texts: Any, config: dict[str, Any], name: str
    ) -> None:
        super().__init__()
        self.model, self.name, self.fingerprint = nn.ModuleDict(towers), name, ""
        self._images, self._texts, self._config = images, texts, config

    @classmethod
    def recognizes(cls, config: Mapping[str, Any]) -> bool:
        return "model_type" not in config and config.keys() >= {"text_encoder", "image_encoder"}

    @classmethod
    def load(cls, model: str, folder: Path, progress: Progress, **options: Any) -> Self:
        try:
            from uform.torch_encoders import ImageEncoder, TextEncoder
            from uform.torch_processors import ImageProcessor, TextProcessor
        except ImportError as error:
            raise DcclipError("{} needs the package uform: {}", "pip install uform", model, error) from None
        config_file, tokenizer = require_file(model, TRANSFORMERS_CONFIG), require_file(model, "tokenizer.json")
        config, name = read_json(config_file, COPY_AGAIN), Path(model).name
        towers, parts = dict[str, nn.Module](), [TREATMENT]
        for tower, encoder in (("image_encoder", ImageEncoder), ("text_encoder", TextEncoder)):
            names = [file_name.replace("image_encoder", tower) for file_name in UFORM_WEIGHTS]
            files = find_weights(model, names)
            parts.append(weights_digest(files))
            [file] = as_safetensors(files, name, parts[-1], progress)
            with torch.random.fork_rng(devices=[]):
                weights = {key: value.float() for key, value in load_file(file).items()}
                towers[tower] = encoder.from_pretrained(config, weights)
        texts = TextProcessor(str(config_file), str(tokenizer))
        loaded = cls(towers, ImageProcessor(str(config_file)), texts, config, name)
        where = Message("teacher {} cannot be loaded: its tokenizer", model)
        check_tokenizer(loaded.tokenize, texts._tokenizer.get_vocab_size(), loaded.vocabulary_rows, where)
        parts += [json.dumps(config, sort_keys=True), tokenizer.read_text("utf-8")]
        loaded.fingerprint = hashlib.sha256(json.dumps(parts).encode()).hexdigest()
        return loaded

    def library_preprocess(self, image: Image.Image) -> np.ndarray:
        return self._images(image)["images"][0].numpy()

    def match_preprocessing(self) -> Preprocessing:
        encoder = self._config["image_encoder"]
        settings = {"size": encoder["image_size"], "mean": encoder["normalization_means"]}
        settings["std"] = encoder["normalization_deviations"]
        return matching_preprocessing(self.name, self.library_preprocess, settings)

    def tokenize(self, texts: list[str]) -> Tokens:
        encoded = self._texts(texts)
        return Tokens(encoded["input_ids"], encoded["attention_mask"].long())

    @property
    def _table(self) -> nn.Embedding:
        return self.model["text_encoder"].word_embeddings

    def token_embedding(self) -> tuple[Tensor, dict[str, int]]:
        return self._table.weight.detach(), self._texts._tokenizer.get_vocab()

    def image_features(self, pixels: Tensor, layers: Sequence[int] = ()) -> ImageFeatures:
        tower = self.model["image_encoder"]
        check_layers(self.name, layers, len(tower.blocks))
        with module_outputs([tower.blocks[layer] for layer in layers]) as outputs:
            hidden, embedding = tower(pixels, return_features=True)
        maps = {layer: on_grid(output) for layer, output in zip(layers, outputs(), strict=True)}
        return ImageFeatures(embedding, on_grid(hidden), maps)

    def text_features(self, tokens: Tokens) -> TextFeatures:
        hidden, embedding = self.model["text_encoder"](tokens.ids, tokens.mask, return_features=True)
        return TextFeatures(embedding, hidden, tokens.mask)
