"""What the steps store for each slice, from its filtered pairs to its shard, with statistics and examples."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from dcclip_cli.curation.dedup.dedup import CAPTIONS, DECISIONS, signature_schema, signatures_of
from dcclip_cli.curation.filter_pair import FilterResult, too_large
from dcclip_cli.curation.report.examples import Examples
from dcclip_cli.curation.report.statistics import MOVED, DroppedCaption, Statistics
from dcclip_cli.curation.shards import DroppedTable, ShardWriter
from dcclip_cli.curation.work import (
    DROPPED,
    EXAMPLES,
    PAIRS,
    SCORES,
    SHARD,
    SIGNATURES,
    STATISTICS,
    WorkFolder,
    name_of,
    whole_folder,
)
from dcclip_cli.data.index import SUFFIX
from dcclip_cli.data.pair import LANGUAGES, Language, Pair
from dcclip_cli.data.reading import Drop
from dcclip_cli.files import write_json

_GROUP_PAIRS, _GROUP_BYTES = 256, 32_000_000  # of a row group, which readers have in memory as a whole
_REPEATS = ("image-duplicate", "image-merged", "image-near-duplicate")  # their detail ends with the other pair's key


@dataclass(frozen=True)
class Kept:
    """A pair that passed the filters, and its image's (width, height)."""

    pair: Pair
    size: tuple[int, int]


def write_pairs(path: Path, pairs: Iterable[Kept]) -> None:
    """Write pairs as Parquet like `data.dataset.write_parquet`, with `width` and `height`, in small row groups."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    texts = pa.list_(pa.string())
    fields = {"key": pa.string(), "image": pa.binary(), "zh": texts, "en": texts, "meta": pa.string()}
    schema = pa.schema(fields | {"width": pa.int32(), "height": pa.int32()})
    # Images do not compress, and this file is read once and deleted.
    with pq.ParquetWriter(path, schema, compression="none", use_dictionary=False) as file:
        rows: list[dict[str, Any]] = []
        for kept in pairs:
            meta = json.dumps(kept.pair.meta, sort_keys=True)  # in ASCII, so that lone surrogates survive
            rows.append(vars(kept.pair) | {"meta": meta, "width": kept.size[0], "height": kept.size[1]})
            if len(rows) >= _GROUP_PAIRS or sum(len(row["image"]) for row in rows) >= _GROUP_BYTES:
                file.write_table(pa.Table.from_pylist(rows, schema))
                rows = []
        if rows:
            file.write_table(pa.Table.from_pylist(rows, schema))


def read_pairs(path: Path) -> Iterator[Kept]:
    """The pairs that `write_pairs` wrote, one row group in memory at a time."""
    import pyarrow.parquet as pq

    with pq.ParquetFile(path) as file:
        for group in range(file.num_row_groups):
            for row in file.read_row_group(group).to_pylist():
                zh, en = (tuple(row[language]) for language in LANGUAGES)
                pair = Pair(row["key"], row["image"], zh, en, json.loads(row["meta"]))
                yield Kept(pair, (row["width"], row["height"]))


def find_pair(path: Path, key: str) -> Pair | None:
    """One pair of a file of `write_pairs`, without its metadata; None if there is none."""
    import pyarrow.parquet as pq

    rows = pq.read_table(path, columns=["key", "image", *LANGUAGES], filters=[("key", "==", key)]).to_pylist()
    return next((Pair(key, row["image"], tuple(row["zh"]), tuple(row["en"])) for row in rows), None)


@dataclass
class Account:
    """Statistics, examples and dropped rows of one slice, written by the read step and by the write step."""

    statistics: Statistics
    examples: Examples
    dropped: DroppedTable = field(default_factory=DroppedTable)

    def write(self, folder: Path) -> None:
        write_json(folder / STATISTICS, self.statistics.as_dict())
        self.examples.write(folder / EXAMPLES)
        self.dropped.write(folder / DROPPED)


def keep_slice(folder: Path, results: Iterable[FilterResult], examples: int) -> None:
    """Write the result of the read step for a slice into a folder."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    account = Account(Statistics(), Examples(examples))
    signatures: list[dict[str, Any]] = []

    def kept() -> Iterator[Kept]:
        for result in results:
            pair, decoded = result.pair, result.decoded
            image = decoded.image if decoded else None
            account.dropped.add_captions(pair, result.captions)
            if result.drop is not None:
                account.statistics.add(pair, result.drop, image.size if image else None, result.captions)
                account.examples.add(pair, result.drop, image, result.captions)
                account.dropped.add_pair(pair, result.drop)
                continue
            assert decoded is not None and image is not None
            account.statistics.add_captions(result.captions)
            account.examples.add_captions(pair, result.captions, image)
            signatures.append(signatures_of(pair, decoded, str(pair.meta["source"]), result.names_class))
            yield Kept(pair, image.size)

    write_pairs(folder / PAIRS, kept())
    pq.write_table(pa.Table.from_pylist(signatures, schema=signature_schema()), folder / SIGNATURES, compression="zstd")
    account.write(folder)


@dataclass(frozen=True)
class Decision:
    """The result of all filters on a pair: its final form, why it is dropped (None: kept), its dropped captions.

    `before` is the pair after the read step.
    """

    before: Pair
    size: tuple[int, int]
    pair: Pair
    drop: Drop | None
    captions: tuple[DroppedCaption, ...]

    @property
    def twin(self) -> str:
        """The key of the pair that is kept instead of this one; empty if there is none."""
        return self.drop.detail.rpartition(" ")[2] if self.drop and self.drop.reason in _REPEATS else ""

    def caption_drop(self, language: Language, place: int) -> Drop | None:
        """Why a caption that the pair had is not in a shard now."""
        if self.drop is not None:
            return None if self.drop.reason in MOVED else self.drop
        text = self.before.captions(language)[place]
        return next((drop for each, caption, drop in self.captions if (each, caption) == (language, text)), None)


def write_slice(work: WorkFolder, number: int, examples: int) -> None:
    """Write the shard of a slice into `out`, unless it is empty, and the account of the slice."""
    account = Account(Statistics(), Examples(examples), DroppedTable.read(work.read(number) / DROPPED))
    scores = _by_key(work.scored(number) / SCORES) if work.scored(number).exists() else {}
    name = f"{name_of(number)}.tar"
    with whole_folder(work.written(number)) as folder:
        writer = ShardWriter(folder / name)
        for each in _decisions(work, number):
            account.statistics.add(each.pair, each.drop, each.size, each.captions)
            account.examples.add(each.pair, each.drop, None, each.captions, each.twin)
            account.dropped.add_captions(each.pair, each.captions)
            for row in scores.get(each.pair.key, ()):
                if row["value"] is not None:
                    language = row["language"]
                    drop = each.caption_drop(language, row["place"]) if language else each.drop
                    account.statistics.add_score(row["name"], row["value"], drop, language)
            if each.drop is None:
                writer.add(each.pair)
            else:
                account.dropped.add_pair(each.pair, each.drop)
        shard = writer.finish(name)
        account.write(folder)
        write_json(folder / SHARD, asdict(shard))
        for file in (folder / name, folder / f"{name}{SUFFIX}"):
            if shard.pairs:
                file.replace(work.out / file.name)
            else:
                file.unlink()


def _decisions(work: WorkFolder, number: int) -> Iterator[Decision]:
    """The decision on each pair of a slice, in order."""
    within = [("key", ">=", name_of(number)), ("key", "<", name_of(number + 1))]
    decisions, captions = (_by_key(work.deduped / name, within) for name in (DECISIONS, CAPTIONS))
    for kept in read_pairs(work.read(number) / PAIRS):
        before, row = kept.pair, decisions[kept.pair.key][0]
        dropped = tuple((each["language"], each["caption"], _drop(each)) for each in captions.get(before.key, ()))
        if row["reason"] is None:
            meta = before.meta | ({"scores": json.loads(row["scores"])} if row["scores"] else {})
            pair = replace(before, zh=tuple(row["zh"]), en=tuple(row["en"]), meta=meta)
            yield Decision(before, kept.size, pair, too_large(pair), dropped)
        else:
            gone = {(language, text) for language, text, _ in dropped}
            zh, en = (tuple(text for text in before.captions(each) if (each, text) not in gone) for each in LANGUAGES)
            yield Decision(before, kept.size, replace(before, zh=zh, en=en), _drop(row), dropped)


def _drop(row: dict[str, Any]) -> Drop:
    return Drop(row["reason"], row["detail"] or "")


def _by_key(path: Path, within: list[tuple[str, str, str]] | None = None) -> dict[str, list[dict[str, Any]]]:
    """The rows of a Parquet file by their key."""
    import pyarrow.parquet as pq

    found: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for row in pq.read_table(path, filters=within).to_pylist():
        found[row["key"]].append(row)
    return found
