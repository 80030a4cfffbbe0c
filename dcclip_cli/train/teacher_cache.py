"""Teacher cache: a teacher's features of every augmented image and caption, computed once and
shared by all runs.

Storing them and replaying the augmentations pays for the teacher once ("dataset reinforcement",
MobileCLIP, arXiv 2311.17049). The features are in feature stores in the user's cache folder. They
are computed ahead of training, for the rows of some steps at a time, and read in the loader's
workers.
"""

import hashlib
import re
import struct
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain, compress, islice
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from dcclip_cli.core.errors import DcclipError, Message, joined
from dcclip_cli.core.files import cache_folder, remove
from dcclip_cli.core.progress import Progress, Silent
from dcclip_cli.core.store import (
    FeatureStore,
    MissingRows,
    Ragged,
    Values,
    digests,
    open_block,
    write_block,
)
from dcclip_cli.data.batch import Batch, StoredFeatures, StoredTexts, copy_to
from dcclip_cli.data.collator import Choice, Collator
from dcclip_cli.data.options import Augment
from dcclip_cli.data.pair import PairDataset
from dcclip_cli.data.pixels import VERSION, normalized, stacked, training_preprocess
from dcclip_cli.data.samplers import MixedBatchSampler, Sample
from dcclip_cli.model.precision import finite
from dcclip_cli.model.towers import ImageFeatures, TextFeatures, Towers
from dcclip_cli.train.distributed import process_count, process_index
from dcclip_cli.train.loading import load_batches
from dcclip_cli.train.losses.base import Loss, Outputs
from dcclip_cli.train.losses.features import FeatureMapLoss, TokenFeaturesLoss, to_grid
from dcclip_cli.train.teacher import (
    Grid,
    LazyTeacher,
    OnlineTeacher,
    TeacherFacts,
    TeacherFeatures,
    no_images,
)

FOLDER = "teacher-cache"
IMAGE = "image_embedding"
TEXT = "text_embedding"
TOKENS = "text_states"
_MASK = "mask"  # of the tokens that are no padding
_INPUTS = {TEXT: "texts", TOKENS: "tokens"}
# images, and captions, of a batch
BATCH_SIZE = 64
_TEXTS = 512
# On a CPU, the bits of a row depend on the shape of what is computed together, not on the other
# rows. Of images, the same bits were measured for each multiple of 16; captions are computed in
# parts of one size and one length.
_IMAGES_MULTIPLE = 16
_PART_SIZE = 8
# samples that the caches are completed for at a time; processes that read images start once for
# these
_ROWS = 131_072
# A feature map beyond fp16's 65,504 becomes infinite.
_HINT = Message(
    "check the teacher's weights; or set its precision to fp32, or teacher_cache (fp16) to false"
)


def folder_of(teacher: TeacherFacts, device: str) -> Path:
    """The folder of a teacher's features: a name for people, and a hash of what all of them depend
    on.
    """
    name = re.sub(r"[^\w.-]+", "-", teacher.name)
    identity = f"{teacher.fingerprint} {BATCH_SIZE} {_PART_SIZE} {torch.device(device).type}"
    return cache_folder() / FOLDER / f"{name}-{_short(identity)}"


def stores_of(
    folder: Path, augment: Augment, seed: int, warn: Callable[[str], None] | None = None
) -> tuple[FeatureStore, FeatureStore]:
    """The stores, in a teacher's folder, of its features of images with an augmentation, and of
    texts.
    """
    # The random numbers of an augmentation come from the seed and from the sample's number in the
    # dataset.
    augmentation = f"{augment.model_dump_json()} {seed} {VERSION}"
    return FeatureStore(folder / f"images-{_short(augmentation)}", warn), FeatureStore(
        folder / "texts", warn
    )


def image_keys(dataset: PairDataset, samples: Iterable[Sample]) -> np.ndarray:
    """The keys of augmented images, (sample, augmentation) each.

    They depend on the sample's number as well, because the augmentation's random numbers do.
    """
    return digests(
        "image",
        (
            dataset.image_digest(index) + struct.pack("<QQ", index, which)
            for index, which in samples
        ),
    )


def text_keys(texts: Iterable[str]) -> np.ndarray:
    return digests("text", (text.encode() for text in texts))


@dataclass(frozen=True)
class FeatureReader:
    """Reads what a teacher's stores have of a batch, in the loader's workers.

    `image_arrays` and `text_arrays` are the names of the arrays that losses need.
    """

    dataset: PairDataset
    images: FeatureStore
    texts: FeatureStore
    image_arrays: tuple[str, ...]
    text_arrays: tuple[str, ...]
    record: Path

    def __call__(self, batch: Batch) -> StoredFeatures:
        """The features of a batch, which `TeacherCache.complete` computed. Raises DcclipError if
        they are gone.
        """
        with suppress(MissingRows):
            return self._read(batch)
        self.images.refresh()  # what was computed since
        self.texts.refresh()
        try:
            return self._read(batch)
        except MissingRows:
            remove(self.record)  # so that the next run looks for each row
            problem = Message(
                "cached teacher features were deleted from {} or {}, or images have changed",
                *(self.images.folder, self.texts.folder),
            )
            raise DcclipError(
                problem, "run the same command again: it computes the missing features"
            ) from None

    def _read(self, batch: Batch) -> StoredFeatures:
        images = dict[str, tuple[Tensor, ...]]()
        texts = {}
        if self.image_arrays:
            samples = zip(
                batch.sample_index.tolist(), batch.augmentation_index.tolist(), strict=True
            )
            images = _read(self.images, self.image_arrays, image_keys(self.dataset, samples))
        for name, entry in batch.texts.items():
            arrays = _read(self.texts, self.text_arrays, text_keys(entry.captions))
            texts[name] = StoredTexts(arrays[TEXT][0], *arrays.get(TOKENS, ()))
        return StoredFeatures({name: parts[0] for name, parts in images.items()}, texts)


def _read(
    store: FeatureStore, names: Sequence[str], keys: np.ndarray
) -> dict[str, tuple[Tensor, ...]]:
    """Arrays of some rows as tensors; of ragged ones also which entries each row has (0: padding),
    and how many.
    """
    tensors: dict[str, tuple[Tensor, ...]] = {}
    for name, values in store.read_arrays(names, keys).items() if len(keys) else ():
        if not isinstance(values, Ragged):
            tensors[name] = (torch.from_numpy(values),)
            continue
        lengths = torch.from_numpy(values.lengths)
        firsts = lengths.cumsum(0) - lengths
        columns = torch.arange(int(values.lengths.max(initial=0)))
        rows = (firsts[:, None] + columns) * (columns < lengths[:, None])
        tensors[name] = torch.from_numpy(values.values), rows, lengths
    return tensors


class TeacherCache(TeacherFeatures):
    """A teacher's features of a stage's data: unit-length embeddings, feature maps and token
    features, in fp16.

    Feature maps, averaged to the student's `grids` by its layer, and token features are stored
    only where one of `losses` needs them. An image's row depends on its bytes, its number in the
    dataset and the augmentation, a caption's on its text: other data, or another run, finds all
    rows that it shares.
    """

    def __init__(
        self,
        teacher: LazyTeacher,
        collator: Collator,
        losses: Sequence[Loss],
        grids: Mapping[int, Grid],
        workers: int,
        progress: Progress,
        live: bool = False,
        number: int = 0,
    ) -> None:
        """`workers` processes read images for the teacher `number`; if `live`, it runs on those in
        each step.
        """
        self._number = number
        self._teacher = teacher
        self.widths = teacher.facts.widths
        self._on_gpu = teacher.device.startswith("cuda")
        self._collator = collator
        self._workers = workers
        self._progress = progress
        self._grids = map_sizes(losses, grids)
        self._maps = {
            layer: f"image_map {layer} {grid.height}x{grid.width}"
            for layer, grid in self._grids.items()
        }
        self._live = (
            OnlineTeacher(teacher.towers, number, sorted({*self._grids} - {-1}), self.widths)
            if live
            else None
        )
        self._tokens = any(isinstance(loss, TokenFeaturesLoss) for loss in losses)
        self._scale = torch.tensor(teacher.facts.logit_scale)
        self.folder = folder_of(teacher.facts, teacher.device)
        self._images, self._texts = stores_of(
            self.folder, collator.augment, collator.seed, self._progress.say
        )
        dataset = collator.dataset
        count = 1 if live else collator.num_augmentations
        arrays = (
            () if live else (IMAGE, *self._maps.values()),
            (TEXT, TOKENS) if self._tokens else (TEXT,),
        )
        rows = collator.augment, collator.seed, VERSION, arrays, count, collator.captions
        self._record = self.folder / f"complete-{_short(f'{dataset.fingerprint} {rows}')}"
        self.reader = FeatureReader(dataset, self._images, self._texts, *arrays, self._record)
        # Which samples have all that an epoch may need: a row of images for each augmentation, and
        # one of texts.
        self._complete = np.zeros((count + 1, len(dataset)), bool)
        self._complete[:-1, 0 if live else dataset.num_images :] = True
        self._complete[-1, dataset.num_pairs : dataset.num_images] = True
        with suppress(FileNotFoundError, ValueError):
            record = open_block(self._record)
            if {
                *record["blocks"].tobytes().decode().split()
            } <= self._images.files | self._texts.files:
                self._complete |= np.unpackbits(
                    record["complete"], axis=1, count=len(dataset)
                ).view(bool)
        self.computed: dict[str, int] = {
            Message("images"): 0,
            Message("captions"): 0,
        }  # rows, of this object

    def complete(self, batches: Sequence[Sequence[Sample]]) -> None:
        """Compute what is missing for these batches, then free the teacher; other processes and
        runs share the work.
        """
        self._fill(batches, self._progress)
        if not self._live:
            self._teacher.free()

    def completing(self, batches: Iterable[list[Sample]]) -> Iterator[list[Sample]]:
        """The batches, each once what is missing for it is computed."""
        for batch in batches:
            self._fill([batch], Silent())
            yield batch

    def finish(self) -> None:
        """Report what the teacher computed."""
        done = joined(
            ", ", (Message("{:,} {}", count, kind) for kind, count in self.computed.items())
        )
        size = (
            self._images.size + self._texts.size
        )  # of all rows that are stored, also of other data
        line = Message(
            "teacher: features in {}, {:,.0f} MB; computed {}", self.folder, size / 1e6, done
        )
        self._progress.say(line)

    def features(self, batch: Batch) -> Outputs:
        """The teacher's outputs for a batch, from what the loader has read."""
        device = batch.pixels.device
        stored = batch.teacher_features[self._number]
        if stored.images:
            embedding = stored.images[IMAGE].float()
            maps = {layer: stored.images[name].float() for layer, name in self._maps.items()}
            image = ImageFeatures(embedding, maps.pop(-1, embedding[:, :, None, None]), maps)
        elif self._live:
            image = self._live.features(replace(batch, texts={})).image
        else:
            image = no_images(self.widths, [layer for layer in self._maps if layer != -1], device)
        texts = {name: _text_features(features) for name, features in stored.texts.items()}
        image_index = {name: entry.image_index for name, entry in batch.texts.items()}
        self._scale = self._scale.to(device)
        return Outputs(image, texts, image_index, self._scale)

    def check(self) -> None:
        if self._live:
            self._live.check()

    def _fill(self, batches: Sequence[Sequence[Sample]], progress: Progress) -> None:
        """Compute what is missing for these batches.

        The rows are the same ones in the same order however many processes share them.
        """
        collator = self._collator
        reader = self.reader
        images = self._complete[:-1]
        texts = self._complete[-1]
        rows = np.fromiter(chain.from_iterable(chain.from_iterable(batches)), np.int64).reshape(
            -1, 2
        )
        index = rows[:, 0]
        which = rows[:, 1] % len(images)
        no_image = ~images[which, index]
        no_text = ~texts[index]
        if not (no_image | no_text).any():
            return
        samples = [*map(tuple, np.unique(np.stack([index, which], 1)[no_image], axis=0).tolist())]
        pending = {*map(tuple, rows[no_text].tolist())}
        choices = dict[Sample, list[Choice]]()
        for batch in batches:
            if not pending.isdisjoint(batch):
                choices |= collator.chosen_captions(batch, pending)
        chosen = {caption for captions in choices.values() for caption, _ in captions}
        captions = sorted(chosen, key=lambda text: (len(text), text))
        keys_of_images = image_keys(collator.dataset, samples)
        compute_images = partial(self._compute_images, samples)
        keys_of_texts = text_keys(captions)
        compute_texts = partial(self._compute_texts, captions)
        counts = dict[str, int]()
        for kind, store, keys, arrays, compute, batch_size in (
            (
                Message("images"),
                self._images,
                keys_of_images,
                reader.image_arrays,
                compute_images,
                BATCH_SIZE,
            ),
            (
                Message("captions"),
                self._texts,
                keys_of_texts,
                reader.text_arrays,
                compute_texts,
                _TEXTS,
            ),
        ):
            store.refresh()
            counts[kind] = missing = int(store.missing(keys, arrays).sum())
            if missing:
                task = progress.task(Message("teacher: {}", kind), len(keys), len(keys) - missing)
                with task as shown:
                    first = process_index() / process_count()
                    store.fill(
                        keys,
                        arrays,
                        partial(self._arrived, compute),
                        batch_size,
                        shown.advance,
                        first,
                    )
        images[which, index] = True
        if not counts[
            "captions"
        ]:  # so that the other captions of these samples may be there as well
            others = [
                *{text for entries in choices.values() for _, usable in entries for text in usable}
                - chosen
            ]
            chosen.update(
                compress(others, ~self._texts.missing(text_keys(others), reader.text_arrays))
            )
        for (number, _), entries in choices.items():
            texts[number] = all(chosen.issuperset(usable) for _, usable in entries)
        if process_index() == 0:
            blocks = " ".join(self._images.files | self._texts.files).encode()
            record = {
                "blocks": np.frombuffer(blocks, np.uint8),
                "complete": np.packbits(self._complete, axis=1),
            }
            with suppress(OSError):  # it only saves time
                write_block(self._record, record)

    def _compute_images(
        self, samples: list[Sample], batches: Iterable[np.ndarray]
    ) -> Iterator[dict[str, Tensor]]:
        teacher = self._teacher.towers.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        samples_of_batches = ([samples[row] for row in batch] for batch in batches)
        preprocess = training_preprocess(teacher)

        def read(batch: list[Sample]) -> Tensor:
            return stacked([self._collator.pixels(*sample, preprocess)[0] for sample in batch])

        for pixels in load_batches(
            read, samples_of_batches, self._workers, pin_memory=self._on_gpu
        ):
            rows_of_parts = teacher.rows_by_size(pixels)
            parts = [self._image_rows(teacher, pixels[rows]) for rows in rows_of_parts]
            self.computed["images"] += len(pixels)
            if len(parts) > 1:
                back = torch.cat(rows_of_parts).argsort()
                parts = [
                    {name: torch.cat([part[name] for part in parts])[back] for name in parts[0]}
                ]
            yield parts[0]

    def _image_rows(self, teacher: Towers, pixels: Tensor) -> dict[str, Tensor]:
        """The stored arrays of images computed together; on a CPU, the last one repeats up to a
        multiple of 16.
        """
        count = len(pixels)
        layers = tuple(layer for layer in self._maps if layer != -1)
        if (repeats := -count % _IMAGES_MULTIPLE) and not self._on_gpu:
            pixels = torch.cat([pixels, pixels[-1:].expand(repeats, *pixels.shape[1:])])
        moved = normalized(copy_to(pixels, self._teacher.device), teacher.preprocessing)
        moved = moved.contiguous(memory_format=torch.channels_last)
        with teacher.as_teacher():
            features = teacher.image_features(moved, layers)
            values = {IMAGE: F.normalize(features.embedding.float(), dim=-1)}
            for layer, grid in self._grids.items():
                values[self._maps[layer]] = to_grid(
                    features.layer(layer).float(), grid.height, grid.width
                )
        return {name: value[:count].half() for name, value in values.items()}

    def _compute_texts(
        self, captions: list[str], batches: Iterable[np.ndarray]
    ) -> Iterator[dict[str, Tensor]]:
        teacher = self._teacher.towers
        for batch in batches:
            tokens = teacher.tokenize([captions[row] for row in batch]).to(self._teacher.device)
            with teacher.as_teacher():
                features = teacher.text_features_by_length(
                    tokens, None if self._on_gpu else _PART_SIZE
                )
                values = {TEXT: F.normalize(features.embedding.float(), dim=-1).half()}
            self.computed["captions"] += len(batch)
            yield values | (
                {TOKENS: features.states.half(), _MASK: features.mask.bool()}
                if self._tokens
                else {}
            )

    def _arrived(
        self, compute: Callable[..., Iterable[dict[str, Tensor]]], batches: object
    ) -> Iterator[Values]:
        """What is computed for batches, in memory; a GPU computes the next one while a thread
        copies and checks it.
        """
        teacher = self._teacher.facts.name

        def copy(tensors: dict[str, Tensor]) -> Values:
            arrays = {name: tensor.cpu().numpy() for name, tensor in tensors.items()}
            if (mask := arrays.pop(_MASK, None)) is not None:
                arrays[TOKENS] = arrays[TOKENS][mask]
            for name, array in arrays.items():
                finite(array, teacher, _INPUTS.get(name, "images"), _HINT)
            return (
                arrays if mask is None else {**arrays, TOKENS: Ragged(arrays[TOKENS], mask.sum(1))}
            )

        copies = deque[Future[Values]]()
        with ThreadPoolExecutor(1) as copier:
            for tensors in compute(batches):
                copies.append(copier.submit(copy, tensors))
                if len(copies) > self._on_gpu:
                    yield copies.popleft().result()
            yield from (future.result() for future in copies)


def _text_features(stored: StoredTexts) -> TextFeatures:
    """Features of texts, their tokens padded with 0."""
    embedding = stored.embedding.float()
    if stored.tokens is None or stored.rows is None or stored.lengths is None:
        mask = torch.ones(len(embedding), 1, dtype=torch.long, device=embedding.device)
        return TextFeatures(embedding, embedding[:, None], mask)
    mask = torch.arange(stored.rows.shape[1], device=embedding.device) < stored.lengths[:, None]
    tokens = stored.tokens[stored.rows].float().masked_fill(~mask[:, :, None], 0)
    return TextFeatures(embedding, tokens, mask.long())


def _short(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def map_sizes(losses: Sequence[Loss], grids: Mapping[int, Grid]) -> dict[int, Grid]:
    """The teacher's layers whose maps are stored, with the finest grid on which a student's layer
    needs each.
    """
    sizes: dict[int, Grid] = {}
    for loss in losses:
        if isinstance(loss, FeatureMapLoss):
            for student, teacher in zip(loss.student_layers, loss.teacher_layers, strict=True):
                grid = grids[student]
                before = sizes.get(teacher, Grid(1, 1))
                sizes[teacher] = Grid(
                    max(grid.height, before.height), max(grid.width, before.width)
                )
    return sizes


@dataclass(frozen=True)
class CacheFillingSampler(MixedBatchSampler):
    """Completes the teacher caches for some steps at a time, right before the first batch of these
    is handed out.

    The parts are fixed by step numbers, and each is completed in every process, so that a run that
    was killed finds the same rows to compute, and any number of processes share them.
    """

    caches: tuple[TeacherCache, ...] = ()

    def __call__(self, start_step: int, steps: int) -> Iterator[list[Sample]]:
        size = max(1, _ROWS // self.batch_size)  # steps
        begin = start_step - start_step % size
        batches = super().__call__(begin, steps)
        for first in range(begin, steps, size):
            of_steps = list(islice(batches, size))
            for cache in self.caches:
                cache.complete(of_steps)
                if first + size >= steps:
                    cache.finish()
            yield from of_steps[max(0, start_step - first) :]
