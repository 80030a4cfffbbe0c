"""The training data of a stage: pairs, images without captions and texts without images, with their batch sampler."""

from __future__ import annotations

from dataclasses import dataclass

from dcclip_cli.data.dataset import ConcatDataset
from dcclip_cli.data.options import DataOptions
from dcclip_cli.data.pair import PairDataset
from dcclip_cli.data.samplers import EpochBatchSampler, MixedBatchSampler, Part, caption_groups
from dcclip_cli.data.unpaired import open_images, open_texts, with_phrases
from dcclip_cli.errors import DcclipError
from dcclip_cli.run_dir import RunDir
from dcclip_cli.train.stage import open_training_pairs


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


def open_training_data(
    data: DataOptions,
    run: RunDir,
    pairs_a_step: int,
    images_a_step: int | None,
    texts_a_step: int | None,
    seed: int,
    distinct_captions: bool = False,
) -> TrainingData:
    """The data that a recipe names for a stage; images and texts a step default to the pairs', 0 leaves them out.

    With `distinct_captions` no two pairs of a step have the same first caption. Raises DcclipError where any of the
    data cannot be loaded.
    """
    datasets: dict[str, PairDataset] = {}
    groups = None
    if data.train is not None:
        datasets["pairs"] = open_training_pairs(data.train, run)
        groups = caption_groups(datasets["pairs"]) if distinct_captions else None
    if data.images is not None and images_a_step != 0:
        datasets["images"] = open_images(data.images)
    if data.texts is not None and texts_a_step != 0:
        texts = open_texts(data.texts)
        datasets["texts"] = with_phrases(texts, data.phrases) if data.phrases else texts
    if not datasets:
        raise DcclipError(
            "a step has no pairs, no images and no texts",
            "set data.train, or leave images_per_step: 0 and texts_per_step: 0 out",
        )
    sizes = {"pairs": pairs_a_step, "images": images_a_step or pairs_a_step, "texts": texts_a_step or pairs_a_step}
    joined = ConcatDataset(list(datasets.values()))
    # Every part has random numbers of its own: equal sizes must not mean equal orders.
    parts = []
    for number, (kind, dataset) in enumerate(datasets.items()):
        own_groups = groups if kind == "pairs" else None
        sampler = EpochBatchSampler(len(dataset), sizes[kind], seed + (number << 32), own_groups)
        parts.append(Part(sampler, joined.firsts[number]))
    return TrainingData(
        next(iter(datasets.values())) if len(datasets) == 1 else joined, MixedBatchSampler(tuple(parts)), datasets
    )
