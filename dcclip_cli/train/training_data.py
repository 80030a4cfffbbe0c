"""What a stage trains on: pairs, pictures without captions, lines without pictures, any of them."""

from __future__ import annotations

from dataclasses import dataclass

from dcclip_cli.data.batches import DataOptions
from dcclip_cli.data.joined import JoinedTable
from dcclip_cli.data.lines import open_lines
from dcclip_cli.data.order import Mixture, Order, Part, caption_groups
from dcclip_cli.data.phrases import with_phrases
from dcclip_cli.data.pictures import open_pictures
from dcclip_cli.data.table import PairTable
from dcclip_cli.errors import DcclipError
from dcclip_cli.run_dir import RunDir
from dcclip_cli.train.stage import open_training_pairs


@dataclass(frozen=True)
class TrainingData:
    """One table of all samples, the order in which steps take from each of its parts, and the tables by kind."""

    table: PairTable
    order: Mixture
    tables: dict[str, PairTable]

    @property
    def pairs(self) -> PairTable | None:
        """The pairs apart from all else: only they may hold embeddings in place of pictures."""
        return self.tables.get("pairs")


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

    With `distinct_captions` no two pairs of a step have the same first caption. Raises DcclipError where any of it
    can't be had.
    """
    tables: dict[str, PairTable] = {}
    groups = None
    if data.train is not None:
        tables["pairs"] = open_training_pairs(data.train, run)
        groups = caption_groups(tables["pairs"]) if distinct_captions else None
    if data.images is not None and images_a_step != 0:
        tables["images"] = open_pictures(data.images)
    if data.texts is not None and texts_a_step != 0:
        lines = open_lines(data.texts)
        tables["texts"] = with_phrases(lines, data.phrases) if data.phrases else lines
    if not tables:
        raise DcclipError(
            "a step has no pairs, no pictures and no lines",
            "give data.train, or leave images_per_step: 0 and texts_per_step: 0 out",
        )
    sizes = {"pairs": pairs_a_step, "images": images_a_step or pairs_a_step, "texts": texts_a_step or pairs_a_step}
    table = JoinedTable(list(tables.values()))
    # Every part has random numbers of its own: equal sizes must not mean equal orders.
    parts = [
        Part(Order(len(one), sizes[kind], seed + (number << 32), groups if kind == "pairs" else None), first)
        for number, ((kind, one), first) in enumerate(zip(tables.items(), table.firsts, strict=False))
    ]
    return TrainingData(next(iter(tables.values())) if len(tables) == 1 else table, Mixture(tuple(parts)), tables)
