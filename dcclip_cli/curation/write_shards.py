"""The write step: one shard of the pairs of a slice that are kept, and its statistics, examples and dropped rows."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from dcclip_cli.curation.dedup.dedup import CAPTIONS, DECISIONS
from dcclip_cli.curation.filter_pair import too_large
from dcclip_cli.curation.report.examples import Examples
from dcclip_cli.curation.report.statistics import MOVED, DroppedCaption, Statistics
from dcclip_cli.curation.shards import DroppedTable, ShardWriter
from dcclip_cli.curation.slices import Account, read_pairs
from dcclip_cli.curation.work import DROPPED, PAIRS, SCORES, SHARD, WorkFolder, name_of, whole_folder, write_json
from dcclip_cli.data.pair import LANGUAGES, Language, Pair
from dcclip_cli.data.reading import Drop

_REPEATS = ("image-duplicate", "image-merged", "image-near-duplicate")  # their detail ends with the other pair's key


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
    scores = _by_key(work.read(number) / SCORES) if (work.read(number) / SCORES).exists() else {}
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
        if shard.pairs:
            (folder / name).replace(work.out / name)
        else:
            (folder / name).unlink()


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
