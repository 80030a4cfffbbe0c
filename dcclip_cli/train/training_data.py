"""What stage 1 trains on: pairs, pictures without captions, lines without pictures, any of them."""

from __future__ import annotations

from dataclasses import dataclass

from dcclip_cli.data.batches import DataOptions
from dcclip_cli.data.joined import JoinedTable
from dcclip_cli.data.lines import open_lines
from dcclip_cli.data.order import Mixture, Order, Part
from dcclip_cli.data.pictures import open_pictures
from dcclip_cli.data.table import PairTable
from dcclip_cli.errors import DcclipError
from dcclip_cli.runs import RunFolder
from dcclip_cli.train.stage import open_training_pairs


@dataclass(frozen=True)
class TrainingData:
    """One table of all samples, the order in which steps take from each of its parts, and which kinds there are."""

    table: PairTable
    order: Mixture
    kinds: set[str]


def open_training_data(
    data: DataOptions, run: RunFolder, pairs_a_step: int, images_a_step: int | None, texts_a_step: int | None, seed: int
) -> TrainingData:
    """The data that a recipe names for stage 1; images and texts a step default to the pairs'.

    Raises DcclipError where any of it can't be had.
    """
    tables: dict[str, PairTable] = {}
    if data.train is not None:
        tables["pairs"] = open_training_pairs(data, run)
        if tables["pairs"].embeddings is not None:
            raise DcclipError(f"{data.train} holds embeddings, no pictures to distil on", "name pairs with pictures")
    if data.images is not None:
        tables["images"] = open_pictures(data.images)
    if data.texts is not None:
        tables["texts"] = open_lines(data.texts)
    sizes = {"pairs": pairs_a_step, "images": images_a_step or pairs_a_step, "texts": texts_a_step or pairs_a_step}
    table = JoinedTable(list(tables.values()))
    # Every part has random numbers of its own: equal sizes must not mean equal orders.
    parts = [
        Part(Order(len(one), sizes[kind], seed + (number << 32)), first)
        for number, ((kind, one), first) in enumerate(zip(tables.items(), table.firsts, strict=False))
    ]
    return TrainingData(next(iter(tables.values())) if len(tables) == 1 else table, Mixture(tuple(parts)), set(tables))
