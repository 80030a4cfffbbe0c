"""What remains of a slice once all pairs have been looked at together? One shard, and an account of the rest."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from dcclip_cli.curation.candidate import Drop
from dcclip_cli.curation.dedup.dedup import CAPTIONS, DECISIONS
from dcclip_cli.curation.filter_pair import too_large
from dcclip_cli.curation.report.examples import Examples
from dcclip_cli.curation.report.statistics import MOVED, DroppedCaption, Statistics
from dcclip_cli.curation.shards import DroppedTable, ShardWriter
from dcclip_cli.curation.slices import Account, Kept, read_pairs
from dcclip_cli.curation.work import DROPPED, PAIRS, SCORES, SHARD, WorkFolder, name_of, whole_folder, write_json
from dcclip_cli.data.pair import LANGUAGES, Language, Pair

_REPEATS = ("image-duplicate", "image-merged", "image-near-duplicate")  # their detail ends in the other pair's key


@dataclass(frozen=True)
class Fate:
    """What the global rules made of a pair: the pair as it ends, why it is dropped if so, single captions dropped.

    `before` is the pair as it came out of the read pass.
    """

    before: Pair
    size: tuple[int, int]
    pair: Pair
    drop: Drop | None
    captions: tuple[DroppedCaption, ...]

    @property
    def twin(self) -> str:
        """The key of the pair that stays in this one's place; empty if there is none."""
        return self.drop.detail.rpartition(" ")[2] if self.drop and self.drop.reason in _REPEATS else ""

    def of_caption(self, language: Language, place: int) -> Drop | None:
        """Why one of the captions that the pair had is not in a shard now."""
        if self.drop is not None:
            return None if self.drop.reason in MOVED else self.drop
        text = self.before.captions(language)[place]
        return next((drop for said, caption, drop in self.captions if (said, caption) == (language, text)), None)


def write_slice(work: WorkFolder, number: int, examples: int) -> None:
    """Write a slice's shard into `out`, unless it keeps nothing, and the account of the slice."""
    account = Account(Statistics(), Examples(examples), DroppedTable.read(work.read(number) / DROPPED))
    scores = _by_key(_table(work.read(number) / SCORES)) if (work.read(number) / SCORES).exists() else {}
    name = f"{name_of(number)}.tar"
    with whole_folder(work.written(number)) as folder:
        writer = ShardWriter(folder / name)
        for fate in _fates(work, number):
            account.statistics.add(fate.pair, fate.drop, fate.size, fate.captions)
            account.examples.add(fate.pair, fate.drop, None, fate.captions, fate.twin)
            account.dropped.add_captions(fate.pair, fate.captions)
            _count_scores(account.statistics, fate, scores.get(fate.pair.key, ()))
            if fate.drop is None:
                writer.add(fate.pair)
            else:
                account.dropped.add_pair(fate.pair, fate.drop)
        shard = writer.finish(name)
        account.write(folder)
        write_json(folder / SHARD, asdict(shard))
        if shard.pairs:
            (folder / name).replace(work.out / name)
        else:
            (folder / name).unlink()


def _fates(work: WorkFolder, number: int) -> Iterator[Fate]:
    """What became of each pair of a slice, in order."""
    within = [("key", ">=", name_of(number)), ("key", "<", name_of(number + 1))]
    decisions = {row["key"]: row for row in _table(work.deduped / DECISIONS, within)}
    captions = _by_key(_table(work.deduped / CAPTIONS, within))
    for kept in read_pairs(work.read(number) / PAIRS):
        decision = decisions[kept.pair.key]
        gone = [(row["language"], row["caption"], _drop(row)) for row in captions.get(kept.pair.key, ())]
        yield _fate(kept, decision, tuple(gone))


def _fate(kept: Kept, decision: dict[str, Any], gone: tuple[DroppedCaption, ...]) -> Fate:
    if decision["reason"] is None:
        texts = {language: tuple(decision[language]) for language in LANGUAGES}
        pair = replace(kept.pair, zh=texts["zh"], en=texts["en"], meta=kept.pair.meta | _judged(decision))
        return Fate(kept.pair, kept.size, pair, too_large(pair), gone)
    left: dict[Language, tuple[str, ...]] = {}
    for language in LANGUAGES:
        without = {text for said, text, _ in gone if said == language}
        left[language] = tuple(text for text in kept.pair.captions(language) if text not in without)
    pair = replace(kept.pair, zh=left["zh"], en=left["en"])
    return Fate(kept.pair, kept.size, pair, _drop(decision), gone)


def _judged(decision: dict[str, Any]) -> dict[str, Any]:
    return {"scores": json.loads(decision["scores"])} if decision["scores"] else {}


def _count_scores(statistics: Statistics, fate: Fate, scores: Iterable[dict[str, Any]]) -> None:
    for row in scores:
        if row["value"] is not None and row["language"] is None:
            statistics.add_score(row["name"], row["value"], fate.drop)
        elif row["value"] is not None:
            drop = fate.of_caption(row["language"], row["place"])
            statistics.add_score(row["name"], row["value"], drop, row["language"])


def _drop(row: dict[str, Any]) -> Drop:
    return Drop(row["reason"], row["detail"] or "")


def _table(path: Path, within: list[tuple[str, str, str]] | None = None) -> list[dict[str, Any]]:
    import pyarrow.parquet as pq

    return list(pq.read_table(path, filters=within).to_pylist())


def _by_key(rows: Iterable[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    found: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for row in rows:
        found[row["key"]].append(row)
    return found
