"""Scorer for any image classifier of transformers: NSFW, watermarks, aesthetics."""

from __future__ import annotations

import functools
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from dcclip_cli.curation.scores.base import Score, ScorerOptions, drop_pairs
from dcclip_cli.curation.scores.dual_encoder import NO_DEVICE_HINT
from dcclip_cli.errors import DcclipError
from dcclip_cli.model.precision import torch_device
from dcclip_cli.model.preprocess import flatten

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection
    from PIL import Image

    from dcclip_cli.curation.scores.base import Scores
    from dcclip_cli.data.pair import Pair


class Classifier(ScorerOptions):
    """Drops images to which an image-classification model of transformers gives a rejected label.

    The score of a label is its probability: by softmax, or by sigmoid if the model is multi-label. A regression model
    with one label, such as an aesthetic predictor, gives its number; with `below`, low numbers are rejected.
    """

    kind: Literal["classifier"] = "classifier"
    model: str = Field(description="Hub name, or a directory written by save_pretrained; safetensors weights only")
    reject: tuple[str, ...] = Field(
        min_length=1, description="Labels to reject, spelled as in the model; each is compared with the threshold"
    )
    threshold: float = Field(0.5, description="Score at which a pair is dropped")
    below: bool = Field(False, description="Drop pairs whose score is below the threshold instead")

    def check(self) -> None:
        _check(self.model)

    def open(self) -> Score:
        classifier = _load(self.model, self.device)
        unknown = [label for label in self.reject if label not in classifier.labels]
        if unknown:
            raise DcclipError(
                f"classifier {self.model} has no label {' or '.join(unknown)}",
                f"its labels: {', '.join(classifier.labels[:20])}",
            )
        columns = {self._stored(label): classifier.labels.index(label) for label in self.reject}

        def score(batch: Sequence[tuple[Pair, Image.Image]]) -> list[Scores]:
            rows = classifier.scores([image for _, image in batch], self.batch_size)
            return [{name: row[column] for name, column in columns.items()} for row in rows]

        return score

    def apply(self, connection: DuckDBPyConnection) -> None:
        """Reason: `classifier-LABEL`, the label in lower case."""
        for label in self.reject:
            stored = self._stored(label)
            drop_pairs(connection, stored, stored, self.threshold, self.below)

    def _stored(self, label: str) -> str:
        word = re.sub(r"\W+", "-", label.lower()).strip("-")
        return f"{self.stored}-{word}"


class _Loaded:
    """A loaded classifier: its labels, and (B, C) scores of images."""

    def __init__(self, model: Any, image_processor: Any, device: str) -> None:
        config = model.config
        self.labels = [str(config.id2label[index]) for index in range(config.num_labels)]
        self._model, self._image_processor, self._device = model.eval().to(device), image_processor, device
        exclusive = len(self.labels) > 1 and config.problem_type != "multi_label_classification"
        self._form = "number" if config.problem_type == "regression" else "softmax" if exclusive else "sigmoid"

    def scores(self, images: Sequence[Image.Image], batch_size: int) -> list[list[float]]:
        """One row for each image, one number for each label."""
        starts = range(0, len(images), batch_size)
        return [row for start in starts for row in self._batch(images[start : start + batch_size])]

    def _batch(self, images: Sequence[Image.Image]) -> list[list[float]]:
        import torch

        inputs = self._image_processor(images=[flatten(image) for image in images], return_tensors="pt")
        with torch.inference_mode():
            logits = self._model(pixel_values=inputs["pixel_values"].to(self._device)).logits.double().cpu()
        if self._form == "softmax":
            logits = logits.softmax(dim=1)
        elif self._form == "sigmoid":
            logits = logits.sigmoid()
        return list(logits.tolist())


def _check(model: str) -> None:
    if Path(model).is_absolute() and not (Path(model) / "config.json").is_file():
        raise DcclipError(f"{model} has no config.json", "name a directory written by transformers' save_pretrained")


@functools.lru_cache(maxsize=4)
def _load(model: str, device: str) -> _Loaded:
    """Raises DcclipError if the model is absent, pickled, or not an image classifier. Loaded once in each process."""
    import transformers

    _check(model)
    transformers.utils.logging.disable_progress_bar()  # "Loading weights"
    try:
        loaded = transformers.AutoModelForImageClassification.from_pretrained(
            model, use_safetensors=True, dtype="float32"
        )
        image_processor = transformers.AutoImageProcessor.from_pretrained(model, backend="pil")
    except (OSError, ValueError, KeyError) as error:
        reason = str(error).strip().splitlines()[0][:300]
        raise DcclipError(
            f"classifier {model} cannot be loaded: {reason}",
            "name an image-classification model of the hub, or a directory that starts with ./ or /",
        ) from None
    return _Loaded(loaded, image_processor, torch_device(device, NO_DEVICE_HINT))
