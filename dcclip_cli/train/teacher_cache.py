"""The teacher's answers, asked for once and kept: K augmentations of each picture, and every caption.

Storing them and replaying the augmentations pays for the teacher once ("dataset reinforcement", MobileCLIP,
arXiv 2311.17049). Rows are filled in one fixed order and batch size, so that a block depends on nothing but its key:
the teacher with its preprocessing and precision, the pictures' bytes and places, the augmentation and its seed, or the
captions.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset, Subset

from dcclip_cli.data.collator import Batch, Collator
from dcclip_cli.errors import DcclipError
from dcclip_cli.model.precision import finite
from dcclip_cli.model.towers import ImageFeatures, TextFeatures, Towers
from dcclip_cli.processes import loading_processes
from dcclip_cli.progress import Progress
from dcclip_cli.train.cache_blocks import Block, BlockStore, Rows, key_of
from dcclip_cli.train.distributed import process_count, process_index
from dcclip_cli.train.feature_shapes import Grid
from dcclip_cli.train.losses.base import Loss, Outputs, Widths
from dcclip_cli.train.losses.features import FeatureMapLoss, TokenFeaturesLoss, to_grid
from dcclip_cli.train.teachers import no_images

ROWS = 64  # pictures or captions that the teacher sees at once; part of what the numbers depend on
SAMPLES_IN_BLOCK = 1024  # a multiple of ROWS, so that blocks do not change which pictures the teacher sees together
CAPTIONS_IN_BLOCK = 8192
_HINT = "check the teacher's weights, or set its precision to fp32; the cache is in fp16: or set teacher_cache to false"
_EXTRAS = {"maps", "tokens"}  # what is kept beside the embeddings and changes nothing about them


@dataclass(frozen=True)
class _Picture(Dataset[np.ndarray | DcclipError]):
    """Every picture in every augmentation, as the teacher takes it: row = sample * augmentations + augmentation."""

    reader: Collator
    teacher: Towers

    def __len__(self) -> int:
        return self.reader.dataset.num_images * self.reader.num_augmentations

    def __getitem__(self, row: int) -> np.ndarray | DcclipError:
        try:
            return self.teacher.preprocess(self.reader.image(*divmod(row, self.reader.num_augmentations)))
        except DcclipError as error:
            return error  # torch would lose the hint of an error raised in a worker


def _stacked(pictures: list[np.ndarray | DcclipError]) -> torch.Tensor | DcclipError:
    broken = [picture for picture in pictures if isinstance(picture, DcclipError)]
    return broken[0] if broken else torch.from_numpy(np.stack(pictures))  # type: ignore[arg-type]


class TeacherCache:
    """Teacher features of batches, read from memory-mapped files; unit-length embeddings, all in fp16.

    `found` says how many of its rows were there before it was made.
    """

    def __init__(
        self,
        images: BlockStore,
        texts: BlockStore,
        captions: list[str],
        augmentations: int,
        maps: Sequence[int],
        tokens: bool,
        widths: Widths,
        logit_scale: float,
        found: int,
    ) -> None:
        self.images, self.texts, self.found = images, texts, found
        self._caption_rows = {caption: row for row, caption in enumerate(captions)}
        self._augmentations, self._maps, self._tokens, self._widths = augmentations, maps, tokens, widths
        self._scale = torch.tensor(logit_scale)

    def features(self, batch: Batch) -> Outputs:
        """The teacher's outputs for a batch, from the cache."""
        device = batch.pixels.device
        rows = (batch.sample_index * self._augmentations + batch.augmentation_index).numpy()
        texts = {name: self._text(given.captions, device) for name, given in batch.texts.items()}
        rows_of = {name: given.image_index for name, given in batch.texts.items()}
        return Outputs(self._image(rows, device), texts, rows_of, self._scale.to(device))

    def seconds_online(self, pictures: int, captions: int) -> float:
        """What asking the teacher for so many would take, going by what it took here."""
        each_picture = self.images.seconds / max(1, self.images.rows)
        each_caption = self.texts.seconds / max(1, self.texts.rows)
        return each_picture * pictures + each_caption * captions

    @property
    def seconds(self) -> float:
        """What asking the teacher took, whichever run did it."""
        return self.images.seconds + self.texts.seconds

    def _image(self, rows: np.ndarray, device: torch.device) -> ImageFeatures:
        if not len(rows):
            return no_images(self._widths, [layer for layer in self._maps if layer != -1], device)
        embedding = _tensor(self.images.read("image_embedding", rows), device)
        maps = {layer: _tensor(self.images.read(_map_name(layer), rows), device) for layer in self._maps}
        return ImageFeatures(embedding, maps.pop(-1, embedding[:, :, None, None]), maps)

    def _text(self, captions: list[str], device: torch.device) -> TextFeatures:
        rows = np.asarray([self._caption_rows[caption] for caption in captions])
        embedding = _tensor(self.texts.read("text_embedding", rows), device)
        if not self._tokens:
            return TextFeatures(
                embedding, embedding[:, None], torch.ones(len(rows), 1, dtype=torch.long, device=device)
            )
        lengths = torch.from_numpy(self.texts.read("text_lengths", rows)).long()
        longest = int(lengths.max())
        mask = (torch.arange(longest)[None] < lengths[:, None]).long()
        tokens = _tensor(self.texts.read("text_tokens", rows, longest), device)
        return TextFeatures(embedding, tokens, mask.to(device))


def _tensor(values: np.ndarray, device: torch.device) -> torch.Tensor:
    return torch.from_numpy(values).to(device).float()


def _map_name(layer: int) -> str:
    return "image_map" if layer == -1 else f"image_map_{layer}"


def build_cache(
    teacher: Towers,
    widths: Widths,
    reader: Collator,
    losses: Sequence[Loss],
    grids: Mapping[int, Grid],
    folder: Path,
    elsewhere: Sequence[Path],
    device: str,
    progress: Progress,
) -> TeacherCache:
    """The cache for this teacher, data and augmentation, filled as far as it isn't yet, here or in one `elsewhere`.

    Feature maps, averaged to the student's `grids` by its layer, and token features are kept only where one of `losses`
    asks for them. Processes that train together fill it together.
    """
    maps = _map_sizes(losses, grids)
    tokens = any(isinstance(loss, TokenFeaturesLoss) for loss in losses)
    teacher.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    asked = {
        "teacher": teacher.fingerprint,
        "augment": reader.augment.model_dump(mode="json"),
        "seed": reader.seed,
        "augmentations": reader.num_augmentations,
        "maps": {str(layer): [grid.height, grid.width] for layer, grid in maps.items()},
        "rows": ROWS,
    }
    images = _store(
        folder, elsewhere, "images", asked, _picture_blocks(reader), SAMPLES_IN_BLOCK * reader.num_augmentations
    )
    captions = sorted(
        {
            caption
            for language in reader.captions.languages
            for several in reader.dataset.captions(language)
            for caption in several
        }
    )
    asked = {"teacher": teacher.fingerprint, "tokens": tokens, "rows": ROWS}
    texts = _store(folder, elsewhere, "texts", asked, _caption_blocks(captions), CAPTIONS_IN_BLOCK)
    found = images.rows_there + texts.rows_there
    _fill_images(images, teacher, reader, maps, device, progress)
    _fill_texts(texts, teacher, captions, tokens, device, progress)
    return TeacherCache(
        images, texts, captions, reader.num_augmentations, list(maps), tokens, widths, teacher.logit_scale, found
    )


def _map_sizes(losses: Sequence[Loss], grids: Mapping[int, Grid]) -> dict[int, Grid]:
    """The teacher's layers whose maps are kept, with the finest grid on which a student's layer wants each."""
    sizes: dict[int, Grid] = {}
    for loss in losses:
        if isinstance(loss, FeatureMapLoss):
            for own, theirs in zip(loss.student_layers, loss.teacher_layers, strict=True):
                grid, before = grids[own], sizes.get(theirs, Grid(1, 1))
                sizes[theirs] = Grid(max(grid.height, before.height), max(grid.width, before.width))
    return sizes


def _store(
    folder: Path,
    elsewhere: Sequence[Path],
    part: str,
    asked: dict[str, Any],
    contents: Sequence[tuple[int, int, list[str]]],
    block_rows: int,
) -> BlockStore:
    """A store for answers to what is `asked`; each block is named after its contents, and what is asked.

    Stores of this run or others that were asked for more, like feature maps beside embeddings, serve as well.
    """
    own = folder / f"{part}-{key_of(asked)}"
    own.mkdir(parents=True, exist_ok=True)
    (own / "key.json").write_text(json.dumps(asked, indent=2) + "\n")
    there = [key.parent for place in (folder, *elsewhere) for key in sorted(place.glob(f"{part}-*/key.json"))]
    blocks = [Block(key_of(names), first, last) for first, last, names in contents]
    return BlockStore(own, [store for store in there if store != own and _has_all(store, asked)], blocks, block_rows)


def _has_all(store: Path, asked: Mapping[str, Any]) -> bool:
    """Whether what a store was asked for is what is `asked` now, or that and more."""
    try:
        there = json.loads((store / "key.json").read_text("utf-8"))
    except (OSError, ValueError):
        return False  # another run is just writing it, or was killed while it did
    return (
        all(there.get(name) == value for name, value in asked.items() if name not in _EXTRAS)
        and asked.get("maps", {}).items() <= there.get("maps", {}).items()
        and asked.get("tokens", False) <= there.get("tokens", False)
    )


def _picture_blocks(reader: Collator) -> list[tuple[int, int, list[str]]]:
    # A picture's random numbers come from its number in the table, which is therefore part of the key.
    count, augmentations = reader.dataset.num_images, reader.num_augmentations
    blocks = []
    for first in range(0, count, SAMPLES_IN_BLOCK):
        last = min(count, first + SAMPLES_IN_BLOCK)
        names = [str(first), *(reader.dataset.image_id(index) for index in range(first, last))]
        blocks.append((first * augmentations, last * augmentations, names))
    return blocks


def _caption_blocks(captions: list[str]) -> list[tuple[int, int, list[str]]]:
    firsts = range(0, len(captions), CAPTIONS_IN_BLOCK)
    return [
        (first, min(len(captions), first + CAPTIONS_IN_BLOCK), captions[first : first + CAPTIONS_IN_BLOCK])
        for first in firsts
    ]


def _fill_images(
    store: BlockStore, teacher: Towers, reader: Collator, maps: Mapping[int, Grid], device: str, progress: Progress
) -> None:
    if (there := store.rows_there) == store.rows:
        return
    pictures, layers = _Picture(reader, teacher), tuple(layer for layer in maps if layer != -1)

    def compute(block: Block, row: int) -> Iterator[Rows]:
        remaining = Subset(pictures, range(row, block.last))
        workers = loading_processes(1)
        how = "fork" if workers else None
        loader = DataLoader(remaining, ROWS, num_workers=workers, multiprocessing_context=how, collate_fn=_stacked)
        for pixels in loader:
            if isinstance(pixels, DcclipError):
                raise pixels
            features = teacher.image_features(pixels.to(device, memory_format=torch.channels_last), layers)
            values = {"image_embedding": F.normalize(features.embedding.float(), dim=-1)}
            for layer, grid in maps.items():
                values[_map_name(layer)] = to_grid(features.layer(layer).float(), grid.height, grid.width)
            yield Rows(row, {name: _half(value, teacher, "images") for name, value in values.items()})
            row += len(pixels)

    with progress.task("teacher: pictures", store.rows, there) as task, teacher.as_teacher():
        store.fill(compute, task.advance, _first_block(store.rows, SAMPLES_IN_BLOCK * reader.num_augmentations))


def _fill_texts(
    store: BlockStore, teacher: Towers, captions: list[str], tokens: bool, device: str, progress: Progress
) -> None:
    if (there := store.rows_there) == store.rows:
        return

    def compute(block: Block, row: int) -> Iterator[Rows]:
        longest = 0
        if tokens:
            chunks = (captions[first : first + ROWS] for first in range(block.first, block.last, ROWS))
            longest = max(int(teacher.tokenize(chunk).mask.sum(1).max()) for chunk in chunks)
        for first in range(row, block.last, ROWS):
            chunk = captions[first : min(first + ROWS, block.last)]
            features = teacher.text_features_by_length(teacher.tokenize(chunk).to(device))
            values = {"text_embedding": _half(F.normalize(features.embedding.float(), dim=-1), teacher, "texts")}
            if tokens:
                hidden = features.tokens.float()[:, :longest]
                padded = F.pad(hidden, (0, 0, 0, longest - hidden.shape[1]))
                values["text_tokens"] = _half(padded, teacher, "texts")
                values["text_lengths"] = features.mask.sum(1).cpu().numpy().astype(np.int16)
            yield Rows(first, values)

    with progress.task("teacher: captions", store.rows, there) as task, teacher.as_teacher():
        store.fill(compute, task.advance, _first_block(store.rows, CAPTIONS_IN_BLOCK))


def _first_block(rows: int, block_rows: int) -> int:
    """Where this process begins, so that those that train together do not meet at the first block."""
    return -(-rows // block_rows) * process_index() // process_count()


def _half(values: torch.Tensor, teacher: Towers, inputs: str) -> np.ndarray:
    with np.errstate(over="ignore"):  # a feature map beyond fp16's 65,504
        half = values.cpu().numpy().astype(np.float16)
    return finite(half, teacher.name, inputs, _HINT)
