"""Zero-shot classification of images in Chinese, as tasks of mteb.

mteb compares an image with one text for each class. CLIP's zero-shot classifier has several, one
for each template, and takes the mean of their embeddings: these tasks do that inside the model
that they give to mteb.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from datasets import List, Value
from mteb.abstasks.zeroshot_classification import AbsTaskZeroShotClassification
from mteb.models.abs_encoder import AbsEncoder
from sklearn.metrics import roc_auc_score

from dcclip_cli.eval.dataset import Classes, DataSet, ImageTransform
from dcclip_cli.eval.metrics import average_precision_11
from dcclip_cli.inference.zero_shot import class_means, fill, softmax_of
from dcclip_mteb.data import DcclipData, image_rows
from dcclip_mteb.model import DcclipEncoder

if TYPE_CHECKING:
    from datasets import Dataset
    from mteb.models.models_protocols import EncoderProtocol

_SCALE = 100.0  # mteb's


class ZeroShotZh(DcclipData, AbsTaskZeroShotClassification):
    """A data set of classes: `accuracy` is top-1, `recall` the mean over the classes.

    Sets of one truth for each class have 11-point mAP as `map11`, Hateful Memes has `roc_auc`.
    """

    input_column_name = "image"
    label_column_name = "label"

    def load_data(self, num_proc: int | None = None, **more: Any) -> None:
        if self.data_loaded:
            return
        self._opened = self.open()
        self.dataset = {self._opened.split: _rows(self._opened)}
        self.data_loaded = True

    @property
    def _classes(self) -> Classes:
        [truth] = self._opened.truth.values()
        assert isinstance(truth, Classes)
        return truth

    def get_candidate_labels(self) -> list[str]:
        """For each class its name in every template."""
        return [
            text for name in self._classes.names for text in fill(self._classes.templates, name)
        ]

    def _evaluate_subset(self, model: EncoderProtocol, data_split: Dataset, **more: Any) -> Any:
        ensemble = TemplateEnsemble(model, len(self._classes.templates), self._opened.transform)
        return super()._evaluate_subset(ensemble, data_split, **more)

    def _calculate_scores(self, labels: Any, probs: Any) -> dict[str, float | None]:
        if self.metadata.main_score == "map11":
            return {"map11": _map11(np.asarray(probs, np.float64), np.asarray(list(labels), bool))}
        scores: dict[str, float | None] = dict(super()._calculate_scores(labels, probs))
        if self.metadata.main_score == "roc_auc":
            scores["roc_auc"] = float(roc_auc_score(list(labels), np.asarray(probs)[:, 1]))
        return scores


class TemplateEnsemble(AbsEncoder):
    """A model that embeds a class as the mean over its templates, and images as its data set
    requires.
    """

    def __init__(self, model: EncoderProtocol, templates: int, transform: ImageTransform) -> None:
        self.model, self._templates, self._transform = model, templates, transform
        self.mteb_model_meta = model.mteb_model_meta

    def encode(self, inputs: Any, **more: Any) -> np.ndarray:
        if "image" in inputs.dataset.column_names:
            return self._images(inputs, **more)
        found = _array(self.model.encode(inputs, **more))
        units = found / np.linalg.norm(found, axis=1, keepdims=True)
        return class_means(units, [self._templates] * (len(units) // self._templates))

    def similarity(self, embeddings1: Any, embeddings2: Any) -> np.ndarray:
        """(N, C) probabilities of classes for images, as mteb's, in double precision: in single,
        many are equal.
        """
        return softmax_of(_SCALE * _array(embeddings1) @ _array(embeddings2).T)

    def _images(self, inputs: Any, **more: Any) -> np.ndarray:
        if self._transform == ImageTransform():
            return _array(self.model.encode(inputs, **more))
        if isinstance(self.model, DcclipEncoder):  # which knows its input size: resized once
            return self.model.encode(inputs, transform=self._transform, **more)
        changed = inputs.dataset.map(
            lambda row: {"image": self._transform(row["image"].convert("RGB"), {})}
        )
        loader = type(inputs)(changed, batch_size=inputs.batch_size, collate_fn=inputs.collate_fn)
        return _array(self.model.encode(loader, **more))


def _rows(found: DataSet) -> Dataset:
    [truth] = found.truth.values()
    assert isinstance(truth, Classes)
    if truth.labels.ndim == 1:
        labels, feature = truth.labels.tolist(), Value("int64")
    else:
        labels, feature = truth.labels.astype(np.int64).tolist(), List(Value("int64"))
    return image_rows(found.images, range(len(found.images)), label=(labels, feature))


def _map11(probabilities: np.ndarray, truth: np.ndarray) -> float:
    """The mean of Pascal VOC 2007's 11-point average precision over the classes; mteb has no such
    metric.
    """
    classes = range(truth.shape[1])
    return float(
        np.mean([average_precision_11(probabilities[:, one], truth[:, one]) for one in classes])
    )


def _array(embeddings: Any) -> np.ndarray:
    """Embeddings as float32; mteb's models return arrays or torch's tensors on any device."""
    if hasattr(embeddings, "detach"):
        embeddings = embeddings.detach().float().cpu().numpy()
    return np.asarray(embeddings, np.float32)
