"""The teacher's answers, asked for once and kept: K augmentations of each picture, and every caption.

Storing them and replaying the augmentations pays for the teacher once ("dataset reinforcement", MobileCLIP,
arXiv 2311.17049). Rows are filled in one fixed order and batch size, so that the cache depends on nothing else.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.lib.format import open_memmap
from torch.utils.data import DataLoader, Dataset

from dcclip_cli.data.batches import Batch, Reader
from dcclip_cli.errors import DcclipError
from dcclip_cli.model.folder import read_json
from dcclip_cli.model.towers import ImageFeatures, TextFeatures, Towers
from dcclip_cli.progress import Progress
from dcclip_cli.train.feature_stage import Grid
from dcclip_cli.train.losses import DistillLoss, Side, to_grid

ROWS = 64  # pictures or captions that the teacher sees at once; part of what the numbers depend on


@dataclass(frozen=True)
class _Picture(Dataset[np.ndarray | DcclipError]):
    """Every picture in every augmentation, as the teacher takes it: row = sample * repeats + repeat."""

    reader: Reader
    teacher: Towers

    def __len__(self) -> int:
        return len(self.reader.table) * self.reader.repeats

    def __getitem__(self, row: int) -> np.ndarray | DcclipError:
        try:
            return self.teacher.preprocess(self.reader.picture(*divmod(row, self.reader.repeats)))
        except DcclipError as error:
            return error  # torch would lose the hint of an error raised in a worker


def _stacked(pictures: list[np.ndarray | DcclipError]) -> torch.Tensor | DcclipError:
    broken = [picture for picture in pictures if isinstance(picture, DcclipError)]
    return broken[0] if broken else torch.from_numpy(np.stack(pictures))  # type: ignore[arg-type]


class TeacherCache:
    """Teacher features of batches, read from memory-mapped files; unit-length embeddings, all in fp16."""

    def __init__(self, folder: Path, captions: list[str], repeats: int) -> None:
        self._arrays = {path.stem: np.load(path, mmap_mode="r") for path in folder.glob("*.npy")}
        self._caption_rows = {caption: row for row, caption in enumerate(captions)}
        self._repeats = repeats

    def __call__(self, batch: Batch) -> Side:
        device = batch.pixels.device
        rows = (batch.indices * self._repeats + batch.repeats).numpy()
        embedding = self._read("image_embedding", rows)
        image_map = self._read("image_map", rows) if "image_map" in self._arrays else embedding[:, :, None, None]
        texts = {}
        for language, given in batch.texts.items():
            caption_rows = np.asarray([self._caption_rows[caption] for caption in given.captions])
            text_embedding = self._read("text_embedding", caption_rows)
            if "text_tokens" in self._arrays:
                lengths = self._read("text_lengths", caption_rows)
                tokens = self._read("text_tokens", caption_rows)[:, : int(lengths.max())]
                mask = (torch.arange(tokens.shape[1])[None] < lengths[:, None]).long()
            else:
                tokens, mask = text_embedding[:, None], torch.ones(len(caption_rows), 1, dtype=torch.long)
            texts[language] = TextFeatures(text_embedding.to(device), tokens.to(device), mask.to(device))
        image = ImageFeatures(embedding.to(device), image_map.to(device))
        return Side(image, texts, {language: given.rows for language, given in batch.texts.items()})

    def _read(self, name: str, rows: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(self._arrays[name][rows]).float()


def build_cache(
    teacher: Towers,
    reader: Reader,
    losses: Sequence[DistillLoss],
    grid: Grid,
    folder: Path,
    device: str,
    progress: Progress,
) -> TeacherCache:
    """The cache for this teacher, data and augmentation, filled as far as it isn't yet.

    Feature maps, averaged to the student's grid, and token features are kept only where a loss asks for them.
    """
    kinds = {loss.kind for loss in losses}
    captions = sorted(
        {
            caption
            for language in reader.captions.languages
            for several in reader.table.captions(language)
            for caption in several
        }
    )
    key = {
        "teacher": teacher.fingerprint,
        "data": reader.table.fingerprint,
        "augment": reader.augment.model_dump(mode="json"),
        "seed": reader.seed,
        "repeats": reader.repeats,
        "languages": list(reader.captions.languages),
        "map": [grid.height, grid.width] if "feature_map" in kinds else None,
        "tokens": "token_features" in kinds,
        "rows": ROWS,
    }
    folder = folder / hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:16]
    folder.mkdir(parents=True, exist_ok=True)
    teacher.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    (folder / "key.json").write_text(json.dumps(key, indent=2) + "\n")
    _fill_images(teacher, reader, grid if key["map"] else None, folder, device, progress)
    _fill_texts(teacher, captions, bool(key["tokens"]), folder, device, progress)
    return TeacherCache(folder, captions, reader.repeats)


def _fill_images(
    teacher: Towers, reader: Reader, grid: Grid | None, folder: Path, device: str, progress: Progress
) -> None:
    pictures = _Picture(reader, teacher)
    rows = len(pictures)
    done = _progress_of(folder, "images")
    if done >= rows:
        return
    remaining = torch.utils.data.Subset(pictures, range(done, rows))
    loader = DataLoader(remaining, ROWS, num_workers=1, multiprocessing_context="fork", collate_fn=_stacked)
    stores: dict[str, np.memmap] = {}
    with progress.task("teacher: pictures", rows, done) as task, teacher.as_teacher():
        for pixels in loader:
            if isinstance(pixels, DcclipError):
                raise pixels
            features = teacher.image_features(pixels.to(device, memory_format=torch.channels_last))
            values = {"image_embedding": torch.nn.functional.normalize(features.embedding.float(), dim=-1)}
            if grid:
                values["image_map"] = to_grid(features.map.float(), grid.height, grid.width)
            _put(stores, folder, values, rows, done)
            done += len(pixels)
            _note_progress(folder, "images", done, stores)
            task.advance(len(pixels))


def _fill_texts(
    teacher: Towers, captions: list[str], tokens: bool, folder: Path, device: str, progress: Progress
) -> None:
    done = _progress_of(folder, "texts")
    if done >= len(captions):
        return
    longest = max(teacher.tokenize(chunk).mask.sum(1).max().item() for chunk in _chunks(captions, 0)) if tokens else 0
    stores: dict[str, np.memmap] = {}
    with progress.task("teacher: captions", len(captions), done) as task, teacher.as_teacher():
        for chunk in _chunks(captions, done):
            features = teacher.text_features(teacher.tokenize(chunk).to(device))
            values = {"text_embedding": torch.nn.functional.normalize(features.embedding.float(), dim=-1)}
            if tokens:
                hidden = features.tokens.float()[:, : int(longest)]
                padding = (0, 0, 0, int(longest) - hidden.shape[1])
                values["text_tokens"] = torch.nn.functional.pad(hidden, padding)
                values["text_lengths"] = features.mask.sum(1)
            _put(stores, folder, values, len(captions), done)
            done += len(chunk)
            _note_progress(folder, "texts", done, stores)
            task.advance(len(chunk))


def _chunks(captions: list[str], start: int) -> Iterator[list[str]]:
    return (captions[first : first + ROWS] for first in range(start, len(captions), ROWS))


def _put(stores: dict[str, np.memmap], folder: Path, values: dict[str, torch.Tensor], rows: int, start: int) -> None:
    for name, value in values.items():
        array = value.cpu().numpy().astype(np.int16 if name == "text_lengths" else np.float16)
        if name not in stores:
            file, shape = folder / f"{name}.npy", (rows, *array.shape[1:])
            stores[name] = open_memmap(file, "r+") if start else open_memmap(file, "w+", array.dtype, shape)
        stores[name][start : start + len(array)] = array


def _progress_of(folder: Path, part: str) -> int:
    file = folder / f"{part}.json"
    return int(read_json(file, "")["done"]) if file.is_file() else 0


def _note_progress(folder: Path, part: str, done: int, stores: dict[str, np.memmap]) -> None:
    """Say how many rows are whole, once they have reached the disk: a killed run never trusts a half-written one."""
    for store in stores.values():
        store.flush()
    temporary = folder / f".{part}.json"
    temporary.write_text(json.dumps({"done": done}))
    temporary.rename(folder / f"{part}.json")
