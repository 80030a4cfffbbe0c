"""Format for sentence-transformers: a folder that SentenceTransformer loads for images and texts, without dcclip."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from dcclip_cli.exporters import Precision
from dcclip_cli.exporters.formats.pytorch import Transformers
from dcclip_cli.files import read_json, write_json
from dcclip_cli.predict.onnx_encoder import Description, ExportedEncoder, read_description

if TYPE_CHECKING:
    from collections.abc import Sequence

    from PIL import Image

    from dcclip_cli.exporters.source import Source


class SentenceTransformers(Transformers):
    """The files of `transformers`, with sentence-transformers' own modules around them.

    Its Transformer module finds both towers of the model, and its Normalize gives embeddings of length 1.
    """

    name = "sentence-transformers"
    precisions = ("fp32",)
    package = "sentence_transformers"
    install = "pip install 'sentence-transformers>=5.4'"

    def write(self, source: Source, graphs: Path, folder: Path, precision: Precision) -> None:
        from sentence_transformers import SentenceTransformer
        from sentence_transformers.sentence_transformer.modules import Normalize, Transformer

        super().write(source, graphs, folder, precision)
        if source.fixed:  # such towers were trained on padding that no mask hides
            file = folder / "tokenizer_config.json"
            write_json(file, {**read_json(file, ""), "model_input_names": ["input_ids"]})
        padding: Any = {"text": {"padding": "max_length"}} if source.fixed else None
        modules = [Transformer(str(folder), processing_kwargs=padding), Normalize()]
        model = SentenceTransformer(modules=modules, similarity_fn_name="cosine", device="cpu")
        model.save(str(folder), create_model_card=False)

    def open(self, folder: Path) -> _SentenceEncoder:
        about, record = read_description(folder, self.name, ())
        record.check()
        return _SentenceEncoder(folder, about)


class _SentenceEncoder(ExportedEncoder):
    """A SentenceTransformer as an Encoder: it tokenizes texts and embeds texts and pixels by itself.

    Pillow resizes images as its configuration says; it would use torchvision, which rounds some pixels otherwise.
    """

    def __init__(self, folder: Path, about: Description) -> None:
        from sentence_transformers import SentenceTransformer
        from transformers import AutoImageProcessor

        self._model = SentenceTransformer(str(folder), device="cpu", local_files_only=True)
        self._processor = AutoImageProcessor.from_pretrained(folder, backend="pil", local_files_only=True)
        super().__init__(folder, about, (), self._embed_pixels, self._embed_texts)

    def preprocess(self, image: Image.Image) -> np.ndarray:
        return np.asarray(self._processor(image, return_tensors="np")["pixel_values"][0])

    def encode_texts(self, texts: Sequence[str]) -> np.ndarray:
        return self._checked(self._embed_texts(list(texts)), "texts")

    def _embed_texts(self, texts: Any) -> np.ndarray:
        return np.asarray(self._model.encode(texts, show_progress_bar=False))

    def _embed_pixels(self, pixels: np.ndarray) -> np.ndarray:
        import torch

        with torch.inference_mode():
            found = self._model({"pixel_values": torch.from_numpy(pixels), "modality": "image"})
        return found["sentence_embedding"].numpy()
