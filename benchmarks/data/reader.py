"""Images per CPU second of dcclip's reader next to webdataset's own loop and a bare Pillow loop.

    pip install webdataset
    OMP_NUM_THREADS=1 python benchmarks/data/reader.py WORK [--images 2000] [--rounds 5] [--photos FOLDER]

JPEGs of 256 x 256 and of 1024 x 768, in a tar with captions, become pixels of 224 x 224 of a
random crop of at least 0.6 of the area, in batches of 64 from one loader process. Drawn images
have soft colours with fine noise; --photos takes those in a folder. The loops run in turn, so that
a change in the machine's load meets all alike; CPU seconds are of both processes, the median of
all rounds counts. `webdataset` and `bare` are written as their users write them:

  webdataset  WebDataset(...).shuffle(1000).decode("pil"), RandomResizedCrop (bicubic), ToTensor, Normalize; floats
  bare        Image.open, convert, crop, resize (bicubic), np.asarray, one stack; uint8
  dcclip      the Collator of a training run, with captions; uint8
  dcclip f32  the same with the normalization that a run does on its device, here on the CPU
"""

import argparse
import io
import json
import os
import resource
import statistics
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
import webdataset
from PIL import Image
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

from dcclip_cli.core.machine import keep_freed_memory
from dcclip_cli.data.collator import Collator
from dcclip_cli.data.dataset import open_pairs
from dcclip_cli.data.options import Augment, CaptionOptions
from dcclip_cli.data.pixels import ImageCache, Uint8Pixels, normalized
from dcclip_cli.data.samplers import EpochBatchSampler, MixedBatchSampler
from dcclip_cli.model.preprocess import Preprocessing
from dcclip_cli.model.towers import Tokens

SIDE, CROP, BATCH = 224, 0.6, 64
PREPROCESSING = Preprocessing(SIDE)


def drawn(width: int, height: int, number: int) -> Image.Image:
    random = np.random.default_rng(number)
    coarse = Image.fromarray(random.integers(0, 256, (height // 16, width // 16, 3), np.uint8))
    smooth = np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC), np.float32)
    noisy = smooth + random.normal(0, 6, smooth.shape).astype(np.float32)
    return Image.fromarray(noisy.clip(0, 255).astype(np.uint8))


def write_tar(path: Path, width: int, height: int, count: int, photos: list[Path]) -> float:
    """Write a tar of pairs, and return the bytes of an image. Drawn images repeat after 64."""
    images: list[bytes] = []
    for number in range(min(count, len(photos) or 64)):
        image = (
            Image.open(photos[number]).convert("RGB") if photos else drawn(width, height, number)
        )
        written = io.BytesIO()
        image.resize((width, height)).save(written, "JPEG", quality=80)
        images.append(written.getvalue())
    with tarfile.open(path, "w") as tar:
        for number in range(count):
            record = json.dumps(
                {"zh": f"第{number}张照片", "en": f"photo number {number}"}
            ).encode()
            for suffix, content in (("jpg", images[number % len(images)]), ("json", record)):
                member = tarfile.TarInfo(f"{number:06d}.{suffix}")
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
    return statistics.mean(map(len, images))


# ---- the loops: each yields batches


def webdatasets(tar: Path) -> Iterator[Any]:
    transform = transforms.Compose(
        [
            transforms.RandomResizedCrop(
                SIDE, (CROP, 1.0), interpolation=transforms.InterpolationMode.BICUBIC
            ),
            transforms.ToTensor(),
            transforms.Normalize(PREPROCESSING.mean, PREPROCESSING.std),
        ]
    )
    data = (
        webdataset.WebDataset(str(tar), shardshuffle=False)
        .shuffle(1000)
        .decode("pil")
        .to_tuple("jpg", "json")
    )
    data = data.map_tuple(transform, lambda record: record).batched(BATCH)
    for batch in webdataset.WebLoader(
        data, batch_size=None, num_workers=1, multiprocessing_context="fork"
    ):
        yield batch[0]


class Bare(Dataset[np.ndarray]):
    """JPEGs in memory; what is timed is only what nobody can leave out."""

    def __init__(self, tar: Path) -> None:
        with tarfile.open(tar) as opened:
            self._images = [
                opened.extractfile(member).read()
                for member in opened
                if member.name.endswith(".jpg")
            ]  # type: ignore[union-attr]
        self._random = np.random.default_rng(0)

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, index: int) -> np.ndarray:
        with Image.open(io.BytesIO(self._images[index])) as opened:
            image = opened.convert("RGB")
        side = (CROP + (1 - CROP) * self._random.random()) ** 0.5
        width, height = round(image.width * side), round(image.height * side)
        x = int(self._random.integers(image.width - width + 1))
        top = int(self._random.integers(image.height - height + 1))
        image = image.crop((x, top, x + width, top + height))
        return np.asarray(image.resize((SIDE, SIDE), Image.Resampling.BICUBIC))


def bare(tar: Path) -> Iterator[Any]:
    yield from DataLoader(
        Bare(tar),
        batch_size=BATCH,
        shuffle=True,
        num_workers=1,
        multiprocessing_context="fork",
        collate_fn=lambda images: torch.from_numpy(np.stack(images)),
    )


def tokens_of(texts: list[str]) -> Tokens:
    lengths = torch.tensor([[len(text)] for text in texts])
    return Tokens(lengths, torch.ones_like(lengths))


def ours(tar: Path) -> Iterator[Any]:
    dataset = open_pairs(tar)
    collator = Collator(
        dataset,
        0,
        Augment(crop=CROP),
        CaptionOptions(),
        Uint8Pixels(PREPROCESSING),
        tokens_of,
        with_caption_ids=True,
        image_cache=ImageCache(0),  # as with data that is much larger than it
    )
    sampler = MixedBatchSampler((EpochBatchSampler(dataset, BATCH, 0, distinct_captions=True),))
    loader: DataLoader[Any] = DataLoader(
        collator,  # type: ignore[arg-type]
        batch_sampler=sampler(0, sampler.steps_per_epoch),
        collate_fn=lambda batch: batch,
        num_workers=1,
        multiprocessing_context="fork",
    )
    for batch in loader:
        yield batch.pixels


def ours_normalized(tar: Path) -> Iterator[Any]:
    return (normalized(pixels, PREPROCESSING) for pixels in ours(tar))


LOOPS: dict[str, Callable[[Path], Iterator[Any]]] = {
    "webdataset": webdatasets,
    "bare": bare,
    "dcclip": ours,
    "dcclip f32": ours_normalized,
}


def used() -> float:
    """CPU seconds of this process and of the children that have ended."""
    who = (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    return sum(sum(resource.getrusage(usage)[:2]) for usage in who)


def per_cpu_second(loop: Callable[[Path], Iterator[Any]], tar: Path) -> float:
    before, images = used(), sum(len(pixels) for pixels in loop(tar))
    return images / (used() - before)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("work", type=Path)
    parser.add_argument(
        "--images", type=int, default=2000, help="of 256 x 256; a fifth as many of 1024 x 768"
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--photos", type=Path)
    parsed = parser.parse_args()
    torch.set_num_threads(1)
    keep_freed_memory()  # as the commands do; all loops gain by it
    parsed.work.mkdir(parents=True, exist_ok=True)
    os.environ["DCCLIP_CACHE"] = str(parsed.work / "cache")
    photos = sorted(parsed.photos.rglob("*.jpg")) if parsed.photos else []
    print(
        f"Pillow {Image.__version__}, torch {torch.__version__}, "
        f"{torch.backends.cpu.get_cpu_capability()}"
    )
    for width, height, count in ((256, 256, parsed.images), (1024, 768, parsed.images // 5)):
        tar = parsed.work / f"{width}x{height}.tar"
        size = write_tar(tar, width, height, count, photos)
        for loop in LOOPS.values():  # imports, the index, the page cache
            next(loop(tar))
        rounds = [
            {name: per_cpu_second(loop, tar) for name, loop in LOOPS.items()}
            for _ in range(parsed.rounds)
        ]
        speeds = {name: statistics.median(turn[name] for turn in rounds) for name in LOOPS}
        print(f"\n{width} x {height}, {size / 1000:.0f} KB, {count} images, {parsed.rounds} rounds")
        for name, speed in speeds.items():
            ratios = [
                statistics.median(turn[name] / turn[peer] for turn in rounds)
                for peer in ("webdataset", "bare")
            ]
            print(
                f"{name:>11}  {speed:6.0f} images/CPU s  {ratios[0]:.2f} x webdataset  "
                f"{ratios[1]:.2f} x bare"
            )


if __name__ == "__main__":
    main()
