"""Teacher cache: a teacher's features of every augmented image and caption, computed once and shared by all runs.

Storing them and replaying the augmentations pays for the teacher once ("dataset reinforcement", MobileCLIP,
arXiv 2311.17049). The features are in feature stores in the user's cache folder.
"""

from __future__ import annotations

import hashlib
import re
import struct
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property, partial
from itertools import chain

import numpy as np
import torch
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset

from dcclip_cli.blocks import Ragged, Values
from dcclip_cli.data.collator import Batch, Collator
from dcclip_cli.data.pixels import VERSION, normalized, stacked, training_preprocess
from dcclip_cli.errors import DcclipError
from dcclip_cli.files import cache_folder
from dcclip_cli.machine import loading_processes
from dcclip_cli.model.precision import finite
from dcclip_cli.model.towers import ImageFeatures, TextFeatures, Towers
from dcclip_cli.progress import Progress
from dcclip_cli.signals import begin_worker
from dcclip_cli.store import FeatureStore, MissingRows, digests
from dcclip_cli.train.distributed import process_count, process_index
from dcclip_cli.train.feature_shapes import Grid, no_images
from dcclip_cli.train.losses.base import Loss, Outputs, Widths
from dcclip_cli.train.losses.features import FeatureMapLoss, TokenFeaturesLoss, to_grid

FOLDER = "teacher-cache"
BATCH_SIZE = 64  # of the teacher: in bf16, results depend on what is computed together
_HINT = "check the teacher's weights, or set its precision to fp32; the cache is in fp16: or set teacher_cache to false"


@dataclass(frozen=True)
class _Images(Dataset[np.ndarray | DcclipError]):
    """Every augmented image as the teacher takes it; row = sample * num_augmentations + augmentation."""

    collator: Collator
    teacher: Towers

    def __len__(self) -> int:
        return self.collator.dataset.num_images * self.collator.num_augmentations

    def __getitem__(self, row: int) -> np.ndarray | DcclipError:
        try:
            sample = divmod(row, self.collator.num_augmentations)
            return self.collator.pixels(*sample, training_preprocess(self.teacher))[0]
        except DcclipError as error:
            return error  # torch would lose the hint of an error raised in a worker


def _stacked(images: list[np.ndarray | DcclipError]) -> torch.Tensor | DcclipError:
    broken = [image for image in images if isinstance(image, DcclipError)]
    return broken[0] if broken else stacked(images)  # type: ignore[arg-type]


class TeacherCache:
    """A teacher's features of a stage's data: unit-length embeddings, feature maps and token features, in fp16.

    Feature maps, averaged to the student's `grids` by its layer, and token features are stored only where one of
    `losses` needs them. An image's row depends on its bytes, its number in the dataset and the augmentation, a
    caption's on its text: other data, or another run, finds all rows that it shares.
    """

    def __init__(
        self,
        teacher: Towers,
        widths: Widths,
        collator: Collator,
        losses: Sequence[Loss],
        grids: Mapping[int, Grid],
        device: str,
        progress: Progress,
    ) -> None:
        self.widths, self._collator, self._device, self._progress = widths, collator, device, progress
        self._grids = _map_sizes(losses, grids)
        self._maps = {layer: f"image_map {layer} {grid.height}x{grid.width}" for layer, grid in self._grids.items()}
        self._image_names = ["image_embedding", *self._maps.values()]
        self._tokens = any(isinstance(loss, TokenFeaturesLoss) for loss in losses)
        self._text_names = ["text_embedding", "text_tokens"] if self._tokens else ["text_embedding"]
        self._scale = torch.tensor(teacher.logit_scale)
        # A name for people, and a hash of what all rows of the teacher depend on.
        name = re.sub(r"[^\w.-]+", "-", teacher.name)
        self.folder = cache_folder() / FOLDER / f"{name}-{_short(f'{teacher.fingerprint} {BATCH_SIZE}')}"
        # The random numbers of an augmentation come from the seed and from the sample's number in the dataset.
        augmentation = f"{collator.augment.model_dump_json()} {collator.seed} {VERSION}"
        self._images = FeatureStore(self.folder / f"images-{_short(augmentation)}", self._progress.say)
        self._texts = FeatureStore(self.folder / "texts", self._progress.say)
        self.rows, self.found = 0, 0  # of the data, and those that were there before `fill`

    def fill(self, teacher: Towers, reload: Callable[[], Towers]) -> None:
        """Compute the rows that are missing; processes that train together, or other runs, share the work.

        `reload` loads the teacher again, which is not kept, where rows are damaged or deleted later.
        """
        self._reload = reload
        captions, text_keys = self._captions
        teacher.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        image_keys = self._keys_of_images(range(len(_Images(self._collator, teacher))))
        self.rows, self.found = len(image_keys) + len(text_keys), 0
        for what, store, keys, names, compute in (
            ("images", self._images, image_keys, self._image_names, partial(self._compute_images, teacher)),
            ("captions", self._texts, text_keys, self._text_names, partial(self._compute_texts, teacher, captions)),
        ):
            store.refresh()
            missing = int(store.missing(keys, names).sum())
            self.found += len(keys) - missing
            if missing:
                task = self._progress.task(f"teacher: {what}", len(keys), len(keys) - missing)
                with task as shown, teacher.as_teacher():
                    store.fill(keys, names, compute, BATCH_SIZE, shown.advance, process_index() / process_count())

    def features(self, batch: Batch) -> Outputs:
        """The teacher's outputs for a batch. Rows that were damaged or deleted meanwhile are computed again."""
        for _ in range(len(self._image_names) + len(self._text_names)):
            with suppress(MissingRows):  # reading one array after the other finds what is damaged in each
                return self._read(batch)
            self.fill(self._reload(), self._reload)
        return self._read(batch)

    def seconds(self, images: int, captions: int) -> float:
        """The time that the teacher takes for that many, by what it took to fill the store."""
        each_image = self._images.seconds_per_row("image_embedding")
        return each_image * images + self._texts.seconds_per_row("text_embedding") * captions

    @property
    def seconds_once(self) -> float:
        """The time that computing all rows of the data took, whichever run did it."""
        captions = len(self._captions[0])
        return self.seconds(self.rows - captions, captions)

    @property
    def size(self) -> int:
        """Bytes of all rows that are stored, also of other data."""
        return self._images.size + self._texts.size

    def _read(self, batch: Batch) -> Outputs:
        device = batch.pixels.device
        rows = batch.sample_index * self._collator.num_augmentations + batch.augmentation_index
        texts = {name: self._text(given.captions, device) for name, given in batch.texts.items()}
        image_index = {name: given.image_index for name, given in batch.texts.items()}
        return Outputs(self._image(rows.tolist(), device), texts, image_index, self._scale.to(device))

    def _image(self, rows: Sequence[int], device: torch.device) -> ImageFeatures:
        if not rows:
            return no_images(self.widths, [layer for layer in self._maps if layer != -1], device)
        keys = self._keys_of_images(rows)
        embedding = _tensor(self._images.read("image_embedding", keys), device)
        maps = {layer: _tensor(self._images.read(name, keys), device) for layer, name in self._maps.items()}
        return ImageFeatures(embedding, maps.pop(-1, embedding[:, :, None, None]), maps)

    def _text(self, captions: list[str], device: torch.device) -> TextFeatures:
        keys = _keys_of_texts(captions)
        embedding = _tensor(self._texts.read("text_embedding", keys), device)
        if not self._tokens:
            mask = torch.ones(len(keys), 1, dtype=torch.long, device=device)
            return TextFeatures(embedding, embedding[:, None], mask)
        tokens = self._texts.read_arrays(["text_tokens"], keys)["text_tokens"]
        assert isinstance(tokens, Ragged)
        mask = torch.from_numpy(tokens.mask).to(device).long()
        return TextFeatures(embedding, _tensor(tokens.padded(), device), mask)

    # ---- keys

    def _keys_of_images(self, rows: Sequence[int]) -> np.ndarray:
        places = (divmod(row, self._collator.num_augmentations) for row in rows)
        return digests("image", (self._digests[sample] + struct.pack("<QQ", sample, which) for sample, which in places))

    @cached_property
    def _digests(self) -> list[bytes]:
        return [self._collator.dataset.image_digest(index) for index in range(self._collator.dataset.num_images)]

    @cached_property
    def _captions(self) -> tuple[list[str], np.ndarray]:
        """Every different caption in order, and its key."""
        languages = self._collator.captions.languages
        every = (several for language in languages for several in self._collator.dataset.captions(language))
        captions = sorted(set(chain.from_iterable(every)))
        return captions, _keys_of_texts(captions)

    # ---- the teacher

    def _compute_images(self, teacher: Towers, batches: list[np.ndarray]) -> Iterator[Values]:
        layers = tuple(layer for layer in self._maps if layer != -1)
        workers = loading_processes(1)
        loader = DataLoader(
            _Images(self._collator, teacher),
            batch_sampler=[batch.tolist() for batch in batches],
            num_workers=workers,
            multiprocessing_context="fork" if workers else None,
            collate_fn=_stacked,
            worker_init_fn=begin_worker,
        )
        for pixels in loader:
            if isinstance(pixels, DcclipError):
                raise pixels
            moved = normalized(pixels.to(self._device), teacher.preprocessing)
            moved = moved.contiguous(memory_format=torch.channels_last)
            features = teacher.image_features(moved, layers)
            values = {"image_embedding": F.normalize(features.embedding.float(), dim=-1)}
            for layer, grid in self._grids.items():
                values[self._maps[layer]] = to_grid(features.layer(layer).float(), grid.height, grid.width)
            yield {name: _half(value, teacher, "images") for name, value in values.items()}

    def _compute_texts(self, teacher: Towers, captions: list[str], batches: list[np.ndarray]) -> Iterator[Values]:
        for batch in batches:
            tokens = teacher.tokenize([captions[row] for row in batch]).to(self._device)
            features = teacher.text_features_by_length(tokens)
            values: dict[str, np.ndarray | Ragged] = {
                "text_embedding": _half(F.normalize(features.embedding.float(), dim=-1), teacher, "texts")
            }
            if self._tokens:
                real = features.tokens.float()[features.mask.bool()]
                values["text_tokens"] = Ragged(_half(real, teacher, "tokens"), features.mask.sum(1).cpu().numpy())
            yield values


def _half(values: torch.Tensor, teacher: Towers, inputs: str) -> np.ndarray:
    with np.errstate(over="ignore"):  # a feature map beyond fp16's 65,504
        half = values.cpu().numpy().astype(np.float16)
    return finite(half, teacher.name, inputs, _HINT)


def _short(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def _keys_of_texts(texts: Sequence[str]) -> np.ndarray:
    return digests("text", (text.encode() for text in texts))


def _map_sizes(losses: Sequence[Loss], grids: Mapping[int, Grid]) -> dict[int, Grid]:
    """The teacher's layers whose maps are stored, with the finest grid on which a student's layer needs each."""
    sizes: dict[int, Grid] = {}
    for loss in losses:
        if isinstance(loss, FeatureMapLoss):
            for student, teacher in zip(loss.student_layers, loss.teacher_layers, strict=True):
                grid, before = grids[student], sizes.get(teacher, Grid(1, 1))
                sizes[teacher] = Grid(max(grid.height, before.height), max(grid.width, before.width))
    return sizes


def _tensor(values: np.ndarray, device: torch.device) -> torch.Tensor:
    return torch.from_numpy(values).to(device).float()
