"""Teachers: loaded when needed, their shapes, their features of a batch, and their space for
narrower students.
"""

from __future__ import annotations

import gc
import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from functools import cached_property, lru_cache
from pathlib import Path

import torch
from PIL import Image
from pydantic import TypeAdapter
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor
from torch.nn import functional as F

from dcclip_cli.core.errors import DcclipError
from dcclip_cli.core.files import cache_folder, read_cached, write_json
from dcclip_cli.core.machine import cpu_name
from dcclip_cli.core.progress import Progress
from dcclip_cli.core.versions import versions
from dcclip_cli.data.batch import Batch, copy_to
from dcclip_cli.data.collator import Collator
from dcclip_cli.data.pixels import normalized
from dcclip_cli.data.samplers import Sample
from dcclip_cli.model.precision import Choice, check_logits, choose_precision, finite
from dcclip_cli.model.teachers import Teacher
from dcclip_cli.model.towers import (
    TREATMENT,
    ImageFeatures,
    TextFeatures,
    TextLayout,
    Tokens,
    Towers,
    evaluating,
)
from dcclip_cli.train.losses.base import Outputs, Widths

TEACHERS = "teachers"  # in the cache folder
# of a model directory whose model is narrower than its teacher
SPACE = "teacher_space.safetensors"
_SPACE_ROWS = (
    2048  # images or texts, at least, from whose embeddings principal components are computed
)


@dataclass(frozen=True)
class Grid:
    """The size of a feature map, in cells."""

    height: int
    width: int


def widths(towers: Towers, layers: Sequence[int] = ()) -> Widths:
    """The towers' widths, with those of further image layers."""
    image, text = _probe(towers, layers)
    other_maps = {layer: image.layer(layer).shape[1] for layer in layers}
    return Widths(image.embedding.shape[-1], image.map.shape[1], text.tokens.shape[-1], other_maps)


def map_grids(towers: Towers, layers: Sequence[int] = ()) -> dict[int, Grid]:
    """Height and width of the maps of the image tower's last layer, -1, and of further ones."""
    image, _ = _probe(towers, layers)
    return {layer: Grid(*image.layer(layer).shape[-2:]) for layer in (-1, *layers)}


def no_images(widths: Widths, layers: Sequence[int], device: torch.device) -> ImageFeatures:
    """The image features of a batch without images."""
    maps = {
        layer: torch.zeros(0, widths.layer(layer), 1, 1, device=device) for layer in (-1, *layers)
    }
    return ImageFeatures(torch.zeros(0, widths.embedding, device=device), maps[-1], maps)


def no_texts(widths: Widths, device: torch.device) -> TextFeatures:
    """The text features of a batch without texts."""
    tokens = torch.zeros(0, 1, widths.text_tokens, device=device)
    return TextFeatures(
        torch.zeros(0, widths.embedding, device=device), tokens, tokens[:, :, 0].long()
    )


def _probe(towers: Towers, layers: Sequence[int]) -> tuple[ImageFeatures, TextFeatures]:
    device = next(towers.parameters()).device
    return (_blank_features if device.type == "meta" else _features)(towers, tuple(layers))


def _features(towers: Towers, layers: tuple[int, ...]) -> tuple[ImageFeatures, TextFeatures]:
    device = next(towers.parameters()).device
    pixels = torch.from_numpy(towers.preprocess(Image.new("RGB", (64, 64), "white"))[None]).to(
        device
    )
    with evaluating(towers):
        return towers.image_features(pixels, layers), towers.text_features(
            towers.tokenize(["猫 cat"]).to(device)
        )


# Those of towers without weights take no memory, and a pass takes a second of bookkeeping.
_blank_features = lru_cache(maxsize=32)(_features)


@dataclass(frozen=True)
class TeacherFacts:
    """What training needs to know of a teacher besides its features; `widths` with the layers that
    losses use.
    """

    name: str
    fingerprint: str
    logit_scale: float
    parameters: int
    widths: Widths
    precision: Choice
    text_layout: TextLayout


class LazyTeacher:
    """A teacher on a device. Its facts are kept in the cache folder, so that it need not be loaded
    for them.

    They are used as long as its files have the same sizes and times, or names in the hub's cache.
    """

    def __init__(
        self, options: Teacher, device: str, progress: Progress, layers: Sequence[int] = ()
    ) -> None:
        self.options = options
        self.device = device
        self._progress = progress
        self._layers = tuple(layers)
        self._towers: Towers | None = None

    @property
    def towers(self) -> Towers:
        """The teacher, loaded if it is not. Raises DcclipError if it cannot be loaded, or is
        another by now.
        """
        if self._towers is None:
            self._towers = self.options.load(self.device, self._progress)
            facts = vars(self).get("facts")
            if facts and facts.fingerprint != self._towers.fingerprint:
                if self._record:
                    self._record.unlink(missing_ok=True)
                raise DcclipError(
                    "teacher {} changed while it was in use",
                    "run the command again",
                    self.options.model,
                )
        return self._towers

    @property
    def known_facts(self) -> TeacherFacts | None:
        """Its facts if they are on record, for which it is not loaded."""
        return (
            read_cached(self._record, _FACTS.validate_python, self._progress.say)
            if self._record
            else None
        )

    @cached_property
    def facts(self) -> TeacherFacts:
        if (facts := self.known_facts) is not None:
            return facts
        towers = self.towers
        check_logits(towers.logit_scale, towers.logit_bias, towers.name)
        size = towers.parameters_count()
        shape = widths(towers, self._layers)
        measured = (
            towers.name,
            towers.fingerprint,
            towers.logit_scale,
            size,
            shape,
            towers.precision,
        )
        facts = TeacherFacts(*measured, towers.text_layout)
        if self._record:
            with suppress(OSError):  # a folder that cannot be written
                write_json(self._record, asdict(facts))
        return facts

    def free(self) -> None:
        """Give its memory back; it is loaded again if it is needed again."""
        if self._towers is None:
            return
        self._towers = None
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    @cached_property
    def _record(self) -> Path | None:
        """The file for its facts; None where nothing tells whether the teacher is still the same."""
        if (state := self.options.source.fingerprint()) is None:
            return None
        kind = torch.device(self.device).type
        device = torch.cuda.get_device_name() if kind == "cuda" else cpu_name()
        precision = choose_precision(self.options.precision, self.device).precision
        identity = [
            TREATMENT,
            self.options.model_dump(),
            state,
            kind,
            device,
            precision,
            self._layers,
            versions(),
        ]
        name = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:32]
        return cache_folder() / TEACHERS / f"{name}.json"


_FACTS = TypeAdapter(TeacherFacts)


class TeacherFeatures(ABC):
    """Where a teacher's features of a batch come from: something stored, or a teacher that runs in
    each step.
    """

    widths: Widths

    @abstractmethod
    def features(self, batch: Batch) -> Outputs:
        """The teacher's outputs for a batch, without gradients."""

    def check(self) -> None:
        """Raise NotFiniteError if embeddings of the last batch, of a teacher that runs in each
        step, are not finite.
        """
        return


class OnlineTeacher(TeacherFeatures):
    """Runs the teacher on every batch, whose `teacher_pixels[number]` are this teacher's.

    On a GPU its embeddings are checked when the step that learns from them is not finite: no step
    waits for that.
    """

    def __init__(self, teacher: Towers, number: int, layers: Sequence[int], widths: Widths) -> None:
        self.widths = widths
        self._teacher = teacher
        self._number = number
        self._layers = tuple(layers)
        self._scale = torch.tensor(teacher.logit_scale)
        self._last: dict[str, list[Tensor]] = {}

    def features(self, batch: Batch) -> Outputs:
        pixels = normalized(batch.teacher_pixels[self._number], self._teacher.preprocessing)

        def move(tokens: Tokens) -> Tokens:
            if pixels.device.type != "cuda":
                return tokens.to(pixels.device)
            return tokens.sorted().map(lambda tensor: copy_to(tensor.pin_memory(), pixels.device))

        with self._teacher.as_teacher():
            if len(pixels):
                image = self._teacher.compiled.get("image", self._teacher.image_features)(
                    pixels, self._layers
                )
            else:
                image = no_images(self.widths, self._layers, pixels.device)
            texts = {
                name: self._teacher.text_features_by_length(
                    move(self._teacher.tokenize(texts.captions))
                )
                for name, texts in batch.texts.items()
            }
        self._last = {
            "images": [image.embedding],
            "texts": [text.embedding for text in texts.values()],
        }
        if pixels.device.type == "cpu":
            self.check()
        self._scale = self._scale.to(pixels.device)
        image_index = {name: texts.image_index for name, texts in batch.texts.items()}
        return Outputs(image, texts, image_index, self._scale)

    def check(self) -> None:
        for inputs, embeddings in self._last.items():
            for embedding in embeddings:
                finite(embedding.float().cpu().numpy(), self._teacher.name, inputs)


@dataclass(frozen=True)
class NarrowSpace:
    """The principal components (D, d) of a teacher's embeddings, orthonormal columns, and the
    teacher's fingerprint.

    A model directory has them, so that stage 2 goes on in the space of stage 1.
    """

    teacher: str
    components: Tensor

    def to_bytes(self) -> bytes:
        """The content of `SPACE`."""
        return save({"components": self.components.contiguous()}, {"teacher": self.teacher})

    @classmethod
    def read(cls, folder: Path) -> NarrowSpace | None:
        """The space in a model directory, if it has one."""
        if not (folder / SPACE).is_file():
            return None
        with safe_open(folder / SPACE, "pt") as file:
            return cls(file.metadata()["teacher"], file.get_tensor("components"))


@dataclass
class NarrowTeacher(TeacherFeatures):
    """A teacher's features with embeddings in a narrower space."""

    teacher: TeacherFeatures
    space: NarrowSpace

    def __post_init__(self) -> None:
        self._components = self.space.components
        self.widths = replace(self.teacher.widths, embedding=self._components.shape[1])

    def features(self, batch: Batch) -> Outputs:
        """The teacher's outputs for a batch, with (B, d) embeddings."""
        outputs = self.teacher.features(batch)
        self._components = components = self._components.to(outputs.image.embedding.device)
        texts = {
            name: replace(features, embedding=features.embedding.float() @ components)
            for name, features in outputs.texts.items()
        }
        image = replace(outputs.image, embedding=outputs.image.embedding.float() @ components)
        return replace(outputs, image=image, texts=texts)

    def check(self) -> None:
        self.teacher.check()


def principal_components(embeddings: Sequence[Tensor], count: int) -> Tensor:
    """The (D, count) directions in which unit-length embeddings are longest, the longest first;
    count at most D.

    `embeddings` are (N, D) for each kind, images and texts: kinds weigh the same, whatever their
    numbers. The mean is not subtracted, since cosines are to be kept, not distances.
    """
    moments = []
    for rows in (F.normalize(rows.double(), dim=-1) for rows in embeddings if len(rows)):
        moments.append(rows.T @ rows / len(rows))
    directions = torch.linalg.eigh(torch.stack(moments).sum(0)).eigenvectors.flip(1)[:, :count]
    largest = directions.gather(0, directions.abs().argmax(0, keepdim=True))
    return (directions * largest.sign()).float()


def narrow_space(
    fingerprint: str,
    teacher: TeacherFeatures,
    collator: Collator,
    batches: Iterable[list[Sample]],
    width: int,
    device: str,
) -> NarrowSpace:
    """The space of `width` dimensions in which a teacher's embeddings of the first of these
    batches are longest.
    """
    images = list[Tensor]()
    texts = list[Tensor]()
    for samples in batches:
        outputs = teacher.features(collator.batch(samples).to(device))
        teacher.check()
        images.append(outputs.image.embedding.float().cpu())
        texts.extend(features.embedding.float().cpu() for features in outputs.texts.values())
        if max(sum(map(len, images)), sum(map(len, texts))) >= _SPACE_ROWS:
            break
    embeddings = [torch.cat(kind) for kind in (images, texts) if kind]
    return NarrowSpace(fingerprint, principal_components(embeddings, width))
