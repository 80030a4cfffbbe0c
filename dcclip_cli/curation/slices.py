"""What the tasks do with a slice, all of whose pairs are accounted for: filter pairs, keep them,
write the shard.
"""

import json
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cache
from itertools import chain, islice
from pathlib import Path
from typing import Any

from dcclip_cli.core.errors import DcclipError
from dcclip_cli.core.files import OpenFile, write_json
from dcclip_cli.curation.dedup.dedup import CAPTIONS, DECISIONS, signature_table, signatures_of
from dcclip_cli.curation.filters.image import decode_image
from dcclip_cli.curation.normalize_text import check_characters, normalize
from dcclip_cli.curation.options import CollectOptions
from dcclip_cli.curation.report.account import MOVED, DroppedCaption, Examples, Statistics
from dcclip_cli.curation.shards import DroppedTable, record, write_shard
from dcclip_cli.curation.sources.base import Candidate, Place
from dcclip_cli.curation.work import (
    EXAMPLES,
    IMAGES,
    PAIRS,
    SCORES,
    SHARD,
    STATISTICS,
    WorkFolder,
    name_of,
    whole_folder,
)
from dcclip_cli.data.decoded import DecodedImage
from dcclip_cli.data.index import beside, write_index
from dcclip_cli.data.pair import LANGUAGES, Language, Pair, image_digest
from dcclip_cli.data.reading import MAX_TEXT_BYTES, Drop
from dcclip_cli.data.remote import local_file
from dcclip_cli.data.shards import DROPPED, Columns

# pairs, and pixels of 4 bytes of their images, that are filtered at once
_AT_A_TIME = 32
_MAX_PIXELS = 16_000_000
_GROUP_PAIRS = 256  # of a row group, which is in memory as a whole
_READ = ["key", *LANGUAGES, "meta", "width", "height", "file_hash", "file", "offset", "size"]
_REPEATS = (
    "image-duplicate",
    "image-merged",
    "image-near-duplicate",
)  # their detail ends with the other pair's key


@dataclass(frozen=True)
class FilterResult:
    """The pair with its remaining captions, why the pair is dropped (None: kept), and the dropped
    captions.

    `decoded` is None if the image could not be decoded; `place` and `names_class` are the
    candidate's.
    """

    pair: Pair
    drop: Drop | None
    captions: tuple[DroppedCaption, ...] = ()
    decoded: DecodedImage | None = None
    place: Place | None = None
    names_class: bool = False


def filter_pairs(
    candidates: Iterable[Candidate], options: CollectOptions
) -> Iterator[FilterResult]:
    """The result of all filters on each candidate, without those that compare pairs."""
    # many at once take a fifth less time
    batch = list[FilterResult]()
    pixels = 0
    for candidate in candidates:
        pair = candidate.pair
        decoded = candidate.fault or decode_image(candidate.pair.image)
        if isinstance(decoded, Drop):
            batch.append(FilterResult(pair, decoded))
        else:
            drop = next(
                (drop for rule in options.filters if (drop := rule.check_pair(pair, decoded))), None
            )
            batch.append(
                FilterResult(pair, drop, (), decoded, candidate.place, candidate.names_class)
            )
            pixels += decoded.image.width * decoded.image.height
        if len(batch) == _AT_A_TIME or pixels > _MAX_PIXELS:
            yield from _filter_captions(batch, options)
            batch = []
            pixels = 0
    yield from _filter_captions(batch, options)


def _filter_captions(
    results: Sequence[FilterResult], options: CollectOptions
) -> Iterator[FilterResult]:
    """The results with the captions that are kept, normalized, and the dropped ones."""
    live = [
        (result, language) for result in results if result.drop is None for language in LANGUAGES
    ]
    captions = [
        (text, language, result.names_class)
        for result, language in live
        for text in result.pair.captions(language)
    ]
    empty = Drop("caption-short", "nothing is left of it once tidied")
    checked: list[str | Drop] = [
        check_characters(text) or normalize(text, language, options.normalize) or empty
        for text, language, _ in captions
    ]
    for rule in options.filters:
        passed = [
            (at, text)
            for at, text in enumerate(checked)
            if isinstance(text, str) and not captions[at][2]
        ]
        for number in rule.suspects([text for _, text in passed]):
            at, text = passed[number]
            checked[at] = rule.check_caption(text, captions[at][1]) or text
    outcomes = iter(checked)
    for result in results:
        if result.drop is not None:
            yield result
            continue
        texts: dict[Language, list[str]] = {language: [] for language in LANGUAGES}
        dropped: list[tuple[Language, str, Drop]] = []
        for language in LANGUAGES:
            for caption, outcome in zip(result.pair.captions(language), outcomes, strict=False):
                if outcome in texts[language]:
                    outcome = Drop("caption-repeated", "the pair has it already")
                if isinstance(outcome, Drop):
                    dropped.append((language, caption, outcome))
                else:
                    texts[language].append(outcome)
        pair = replace(result.pair, zh=tuple(texts["zh"]), en=tuple(texts["en"]))
        drop = too_large(pair) if pair.zh or pair.en else Drop("no-caption", "none that is fit")
        yield replace(result, pair=pair, drop=drop, captions=tuple(dropped))


def too_large(pair: Pair) -> Drop | None:
    """`record-bytes` if the pair's captions and metadata are too long for a shard."""
    characters = sum(map(len, pair.zh + pair.en)) + len(repr(pair.meta))
    if (
        6 * characters + 64 <= MAX_TEXT_BYTES or len(record(pair)) <= MAX_TEXT_BYTES
    ):  # \u0000 takes six bytes
        return None
    return Drop("record-bytes", f"captions and metadata take more than {MAX_TEXT_BYTES:,} bytes")


def read_pairs(folder: Path, key: str | None = None) -> Iterator[tuple[Pair, tuple[int, int]]]:
    """The pairs that `keep_slice` kept, or the one with `key`, and (width, height). Raises
    DcclipError if changed.
    """
    import pyarrow.parquet as pq

    files = cache(OpenFile)
    within = None if key is None else [("key", "=", key)]
    batches = pq.read_table(folder / PAIRS, columns=_READ, filters=within).to_batches(_GROUP_PAIRS)
    for row in chain.from_iterable(batch.to_pylist() for batch in batches):
        file = row["file"] or str(folder / IMAGES)
        image = files(file).read(row["offset"], row["size"])
        if image_digest(image) != row["file_hash"]:
            raise DcclipError(
                "{} changed while collect was reading it", "run the same command again", file
            )
        pair = Pair(row["key"], image, tuple(row["zh"]), tuple(row["en"]), json.loads(row["meta"]))
        yield pair, (row["width"], row["height"])


class Account:
    """Statistics, examples and dropped rows of one slice, written by the read step and by the
    write step.
    """

    def __init__(self) -> None:
        self.statistics = Statistics()
        self.examples = Examples()
        self.dropped = DroppedTable()

    def add(
        self,
        pair: Pair,
        drop: Drop | None,
        size: tuple[int, int] | None,
        captions: Sequence[DroppedCaption],
        image: DecodedImage | None = None,
        twin: str = "",
    ) -> None:
        """Account for a pair and its dropped captions, as `Statistics.add` and `Examples.add` do."""
        self.statistics.add(pair, drop, size, captions)
        self.examples.add(pair, drop, image, captions, twin)
        self._drop(pair, drop, captions)

    def keeps(self, result: FilterResult) -> bool:
        """Whether a pair passed the filters; accounts for what did not."""
        pair = result.pair
        drop = result.drop
        captions = result.captions
        decoded = result.decoded
        if drop is None:
            self.statistics.add_captions(captions)
            self.examples.add_captions(pair, captions, decoded)
            self._drop(pair, drop, captions)
        else:
            self.add(pair, drop, decoded.image.size if decoded else None, captions, decoded)
        return drop is None

    def _drop(self, pair: Pair, drop: Drop | None, captions: Sequence[DroppedCaption]) -> None:
        for language, caption, why in captions:
            self.dropped.add(pair, why, language, caption)
        if drop is not None:
            self.dropped.add(pair, drop)

    def write(self, folder: Path) -> None:
        write_json(folder / STATISTICS, self.statistics.as_dict())
        self.examples.write(folder / EXAMPLES)
        self.dropped.write(folder / DROPPED)


def keep_slice(folder: Path, results: Iterable[FilterResult]) -> None:
    """Write the result of the read step for a slice: pairs with their signatures, and images of no
    file of a source.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    columns = {"meta": pa.string(), "file": pa.string(), "offset": pa.int64(), "size": pa.int64()}
    account = Account()
    schema = signature_table([], columns).schema
    with (
        (folder / IMAGES).open("wb") as images,
        pq.ParquetWriter(folder / PAIRS, schema, compression="none", use_dictionary=False) as table,
    ):

        def row_of(result: FilterResult) -> dict[str, Any]:
            assert result.decoded is not None
            pair = result.pair
            place = {"file": None, "offset": images.tell()}
            if result.place is None:
                images.write(pair.image)
            else:
                place = result.place._asdict()
            row = signatures_of(pair, result.decoded, str(pair.meta["source"]), result.names_class)
            meta = json.dumps(
                pair.meta, sort_keys=True
            )  # in ASCII, so that lone surrogates survive
            return {**row, "meta": meta, **place, "size": len(pair.image)}

        rows = map(
            row_of, filter(account.keeps, results)
        )  # one by one: only rows wait for their group, not images
        while group := list(islice(rows, _GROUP_PAIRS)):
            table.write_table(signature_table(group, columns))
    account.write(folder)


def write_slice(work: WorkFolder, number: int, options: CollectOptions) -> None:
    """Write the shard of a slice into `out`, unless it is empty, and the account of the slice."""
    account = Account()
    name = f"{name_of(number)}.{options.output.shards}"
    with whole_folder(work.result("write", number)) as folder:
        shard = write_shard(
            folder / name, map(options.output.written, _kept_pairs(work, number, account))
        )
        account.write(folder)
        write_json(folder / SHARD, asdict(shard))
        if shard.pairs:
            data = local_file(folder / name)
            write_index(data, beside(data), Columns())
            for file in folder.glob(f"{name}*"):
                file.replace(work.out / file.name)
        else:
            (folder / name).unlink()


def _kept_pairs(work: WorkFolder, number: int, account: Account) -> Iterator[Pair]:
    """The pairs of a slice that are kept in their final form, once all before them are accounted
    for.
    """
    within = [("key", ">=", name_of(number)), ("key", "<", name_of(number + 1))]
    decisions, captions = (
        _by_key(work.result("dedup", 0) / name, within) for name in (DECISIONS, CAPTIONS)
    )
    score_file = work.result("score", number) / SCORES
    scores = _by_key(score_file) if score_file.exists() else {}
    for before, size in read_pairs(work.result("read", number)):
        row = decisions[before.key][0]
        dropped = [
            (caption["language"], caption["caption"], _drop(caption))
            for caption in captions.get(before.key, ())
        ]
        drop_of = {(language, text): drop for language, text, drop in reversed(dropped)}
        if row["reason"] is None:
            meta = before.meta | ({"scores": json.loads(row["scores"])} if row["scores"] else {})
            pair = replace(before, zh=tuple(row["zh"]), en=tuple(row["en"]), meta=meta)
            drop = too_large(pair)
        else:
            zh, en = (
                tuple(text for text in before.captions(name) if (name, text) not in drop_of)
                for name in LANGUAGES
            )
            pair = replace(before, zh=zh, en=en)
            drop = _drop(row)
        twin = (
            drop.detail.rpartition(" ")[2] if drop and drop.reason in _REPEATS else ""
        )  # the key of the kept pair
        account.add(pair, drop, size, dropped, twin=twin)
        for score in scores.get(pair.key, ()):
            reason = drop
            language = score["language"]
            if language:  # a caption's
                caption = before.captions(language)[score["place"]]
                reason = (
                    drop_of.get((language, caption))
                    if drop is None
                    else None
                    if drop.reason in MOVED
                    else drop
                )
            if score["value"] is not None:
                account.statistics.add_score(score["name"], score["value"], reason, language)
        if drop is None:
            yield pair


def _drop(row: dict[str, Any]) -> Drop:
    return Drop(row["reason"], row["detail"] or "")


def _by_key(
    path: Path, within: list[tuple[str, str, str]] | None = None
) -> dict[str, list[dict[str, Any]]]:
    import pyarrow.parquet as pq

    rows: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for row in pq.read_table(path, filters=within).to_pylist():
        rows[row["key"]].append(row)
    return rows
