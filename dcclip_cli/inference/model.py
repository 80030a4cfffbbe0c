"""Predictions for image files, and the Python API of a loaded model."""

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, TypedDict, Unpack, overload

import numpy as np
from PIL import Image

from dcclip_cli.core.errors import DcclipError, Message
from dcclip_cli.core.machine import keep_freed_memory
from dcclip_cli.core.progress import Progress
from dcclip_cli.inference.encoder import Encoder, load_encoder, shortened
from dcclip_cli.inference.images import PathLike, embed, read
from dcclip_cli.inference.zero_shot import Labels, text_embeddings, unknown_of
from dcclip_cli.model.reference import ModelSource, resolve

ImageInput = (
    str | os.PathLike[str] | bytes | Image.Image
)  # a path, the bytes of a file, or a Pillow image
ImageInputs = list[ImageInput] | tuple[ImageInput, ...]


class PredictOptions(TypedDict, total=False):
    templates: Sequence[str] | None
    multi_label: bool
    top_k: int | None


@dataclass(frozen=True)
class Prediction:
    """An image's best labels with their probabilities, the best first, or why it cannot be read
    and what to do.

    `fits` is False if the image most likely shows none of the labels; models that cannot tell say
    True.
    """

    image: Path
    labels: tuple[tuple[str, float], ...] = ()
    error: DcclipError | None = None
    fits: bool = True


def predict(
    encoder: Encoder,
    labels: Labels,
    images: Iterable[Path],
    top_k: int | None = 5,
    threshold: float | Sequence[float] = 0.0,
) -> Iterator[Prediction]:
    """One Prediction per image, in order, batch by batch, with labels from `threshold` on, one for
    all or for each.
    """
    for path, result in embed(encoder, images, read):
        if isinstance(result, DcclipError):
            yield Prediction(path, error=result)
        else:
            [row] = labels.probabilities(result[np.newaxis])
            yield Prediction(
                path, best(labels.names, row, top_k, threshold), fits=labels.fit(result)
            )


def best(
    names: Sequence[str],
    probabilities: np.ndarray,
    top_k: int | None,
    threshold: float | Sequence[float] = 0.0,
) -> tuple[tuple[str, float], ...]:
    """The `top_k` most probable names (all if None) that reach `threshold`, one for all or each,
    the best first.
    """
    reached = probabilities >= np.asarray(threshold)
    order = [index for index in np.argsort(-probabilities, kind="stable") if reached[index]][:top_k]
    return tuple((names[index], float(probabilities[index])) for index in order)


class Model:
    """A loaded model of any kind: model directory, bundle, run, `hf:`, `open_clip:`, `hf-hub:`.

    `parameters` is the number of weights in both towers, `logit_scale` the factor of the cosines
    before the softmax, `preprocessing` that of images, in the terms of open_clip's
    `preprocess_cfg`. Every method raises DcclipError for an image that cannot be read. A pickled
    model is its reference: the process that unpickles it loads it again.
    """

    def __init__(self, encoder: Encoder, reload: "Callable[[], Model] | None" = None) -> None:
        self._encoder = encoder
        self._reload = reload
        self._labels: tuple[Any, Labels] | None = (
            None  # of the last call, with the arguments they were made from
        )
        self.name = encoder.name
        self.parameters = encoder.parameters
        self.logit_scale = encoder.logit_scale
        self.preprocessing: Mapping[str, Any] = encoder.preprocessing

    def __reduce__(self) -> str | tuple[Any, ...]:
        return (self._reload, ()) if self._reload else super().__reduce__()

    @overload
    def predict(
        self, images: ImageInput, labels: Sequence[str], **options: Unpack[PredictOptions]
    ) -> dict[str, float]: ...

    @overload
    def predict(
        self, images: ImageInputs, labels: Sequence[str], **options: Unpack[PredictOptions]
    ) -> list[dict[str, float]]: ...

    def predict(
        self,
        images: ImageInput | ImageInputs,
        labels: Sequence[str],
        *,
        templates: Sequence[str] | None = None,
        multi_label: bool = False,
        top_k: int | None = None,
    ) -> dict[str, float] | list[dict[str, float]]:
        """Label -> probability, the most probable first; for a list of images, a list of these.

        Labels compete with each other, or with `multi_label` each is judged by itself. `templates`
        (for example "a photo of a {}", "一张{}的照片") replace the model's own; an empty list means the
        bare labels.
        """
        is_one = isinstance(images, str | bytes | os.PathLike | Image.Image)
        names = list(dict.fromkeys([labels] if isinstance(labels, str) else labels))
        key = (tuple(names), None if templates is None else tuple(templates), multi_label)
        stored = self._labels  # another thread may replace them
        if stored is None or stored[0] != key:
            stored = self._labels = key, Labels(self._encoder, names, templates, multi_label)
        classes = stored[1]
        rows = classes.probabilities(self.embed_images([images] if is_one else images))  # type: ignore[list-item,arg-type]
        predictions = [dict(best(classes.names, row, top_k)) for row in rows]
        return predictions[0] if is_one else predictions

    def embed_images(self, images: Sequence[ImageInput]) -> np.ndarray:
        """(N, D) embeddings of length 1, float32."""
        vectors = []
        for _, embedding in embed(self._encoder, images, _read):
            if isinstance(embedding, DcclipError):
                raise embedding
            vectors.append(embedding)
        return np.stack(vectors) if vectors else np.empty((0, 0), np.float32)

    def embed_texts(self, texts: Sequence[str]) -> np.ndarray:
        """(N, D) embeddings of length 1, float32, of the texts themselves, without templates."""
        return text_embeddings(self._encoder, [texts] if isinstance(texts, str) else texts)

    def unknown(self, texts: Sequence[str]) -> list[str]:
        """The texts without a word that the model knows, and the words that it ignores in others:
        red in "a red car".

        Empty for a model without `known` in its dcclip.json.
        """
        return unknown_of(self._encoder, [texts] if isinstance(texts, str) else texts)


def load(
    reference: str | os.PathLike[str] | None = None,
    *,
    device: str = "auto",
    threads: int | None = None,
) -> Model:
    """Load a model: `load("runs/quickstart").predict("img.jpg", ["猫", "dog"])`.

    `reference` is what `--model` takes: a model directory, an export bundle, a run, `hf:ORG/NAME`,
    `open_clip:ARCH/TAG`, `hf-hub:ORG/NAME`; by default $DCCLIP_MODEL, else the starter model.
    `device` is auto, cpu, cuda or mps. `threads` are CPU threads per tower: by default one for a
    bundle, and torch's own choice otherwise. Raises DcclipError.
    """
    source = resolve(None if reference is None else os.fspath(reference))
    if source.path.is_dir():  # a process that unpickles the model may be in another folder
        source = replace(source, location=os.path.abspath(source.location))
    return Model(
        load_encoder(source, device, threads=threads), partial(_reloaded, source, device, threads)
    )


@lru_cache(1)  # a pool of processes sends the model with each task
def _reloaded(source: ModelSource, device: str, threads: int | None) -> Model:
    return Model(
        load_encoder(source, device, threads=threads), partial(_reloaded, source, device, threads)
    )


def _read(image: ImageInput) -> Image.Image:
    if isinstance(image, Image.Image):
        return image
    return read(image if isinstance(image, bytes) else Path(image))


def open_encoder(
    model: PathLike | Model | None,
    device: str,
    threads: int | None,
    talk: Progress,
    dims: int | None = None,
) -> Encoder:
    """The model that `--model` means, which is said, or a loaded one, with the first `dims`
    numbers of embeddings.
    """
    keep_freed_memory()
    if isinstance(model, Model):
        return shortened(model._encoder, dims, talk)
    reference = resolve(None if model is None else os.fspath(model))
    talk.say(Message("model: {}", reference.description))
    return shortened(load_encoder(reference, device, threads=threads, progress=talk), dims, talk)
