"""The training data of a stage: pairs, images without captions and texts without images, with their batch sampler."""

from __future__ import annotations

from dataclasses import dataclass

from dcclip_cli.data.dataset import ConcatDataset, open_pairs
from dcclip_cli.data.options import COLLECTED, DataOptions
from dcclip_cli.data.pair import PairDataset
from dcclip_cli.data.samplers import EpochBatchSampler, MixedBatchSampler, caption_groups
from dcclip_cli.data.unpaired import open_images, open_texts, with_phrases
from dcclip_cli.errors import DcclipError
from dcclip_cli.run_dir import RunDir


@dataclass(frozen=True)
class StageData:
    """The data that a stage uses, and how much of each kind per step.

    None for images or texts per step: as many as pairs; 0: none. With `distinct_captions` no two pairs of a step have
    the same first caption.
    """

    options: DataOptions
    batch_size: int
    images_per_step: int | None = None
    texts_per_step: int | None = None
    distinct_captions: bool = False


@dataclass(frozen=True)
class TrainingData:
    """One dataset of all samples, the sampler of its batches, and the datasets by kind: pairs, images, texts."""

    dataset: PairDataset
    sampler: MixedBatchSampler
    datasets: dict[str, PairDataset]

    @property
    def pairs(self) -> PairDataset | None:
        """The pairs by themselves: only they may have embeddings in place of images."""
        return self.datasets.get("pairs")


def open_training_data(stage: StageData, run: RunDir, seed: int) -> TrainingData:
    """The data of a stage. Raises DcclipError where any of it cannot be loaded."""
    data = stage.options
    datasets: dict[str, PairDataset] = {}
    groups = None
    if data.train is not None:
        datasets["pairs"] = _open_training_pairs(data.train, run)
        groups = caption_groups(datasets["pairs"]) if stage.distinct_captions else None
    if data.images is not None and stage.images_per_step != 0:
        datasets["images"] = open_images(data.images)
    if data.texts is not None and stage.texts_per_step != 0:
        texts = open_texts(data.texts)
        datasets["texts"] = with_phrases(texts, data.phrases) if data.phrases else texts
    if not datasets:
        raise DcclipError(
            "a step has no pairs, no images and no texts",
            "set data.train, or leave images_per_step: 0 and texts_per_step: 0 out",
        )
    sizes = {
        "pairs": stage.batch_size,
        "images": stage.images_per_step or stage.batch_size,
        "texts": stage.texts_per_step or stage.batch_size,
    }
    joined = ConcatDataset(list(datasets.values()))
    samplers = []
    for number, (kind, dataset) in enumerate(datasets.items()):
        own_seed = seed + (number << 32)  # equal sizes must not mean equal orders
        own_groups = groups if kind == "pairs" else None
        samplers.append(EpochBatchSampler(len(dataset), sizes[kind], own_seed, own_groups, joined.firsts[number]))
    return TrainingData(
        next(iter(datasets.values())) if len(datasets) == 1 else joined, MixedBatchSampler(tuple(samplers)), datasets
    )


def _open_training_pairs(train: str, run: RunDir) -> PairDataset:
    if train != COLLECTED:
        return open_pairs(train)
    if not run.stage("collect").is_dir():
        raise DcclipError("data.train is 'collect', but nothing has been collected", "run: dcclip collect RECIPE")
    return open_pairs(run.stage("collect"))
