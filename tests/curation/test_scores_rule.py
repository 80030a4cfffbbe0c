"""Stored scores become drops: over all pairs at once, language by language."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dcclip_cli.curation.decode_image import DecodedImage, decode_image
from dcclip_cli.curation.dedup import drop_empty, fill
from dcclip_cli.curation.dedup.dedup import signature_schema, signatures_of
from dcclip_cli.curation.scores.base import ScoreFilter, ScorerOptions, score_slice
from dcclip_cli.curation.scores.scorers import Agreement, Classifier, Cosines, Fractions, Prompts
from dcclip_cli.data.dataset import open_pairs, write_parquet
from dcclip_cli.data.pair import Pair

Of = Mapping[str, Any]
Tables = Callable[[Mapping[str, Of]], duckdb.DuckDBPyConnection]


QUICKSTART = Path(__file__).parents[2] / "recipes/quickstart"


@pytest.fixture
def tables(tmp_path: Path, picture: Any) -> Tables:
    """A function that fills the tables: pairs by key, each with its scores by name, cosines by language."""

    def make(given: Mapping[str, Of]) -> duckdb.DuckDBPyConnection:
        facts: list[dict[str, Any]] = []
        scores: list[tuple[Any, ...]] = []
        for key, of_pair in given.items():
            cosines = of_pair.get("agreement", {})
            zh, en = (tuple(f"{key} {place}" for place, _ in enumerate(cosines.get(to, []))) for to in ("zh", "en"))
            opened = decode_image(picture(key))
            assert isinstance(opened, DecodedImage)
            facts.append(signatures_of(Pair(key, picture(key), zh, en or ("no score",)), opened, "source"))
            for name, value in of_pair.items():
                if isinstance(value, Mapping):
                    for language, several in value.items():
                        scores.extend((key, name, language, place, one) for place, one in enumerate(several))
                else:
                    scores.append((key, name, None, None, value))
        pq.write_table(pa.Table.from_pylist(facts, schema=signature_schema()), tmp_path / "signatures.parquet")
        types = {"key": pa.string(), "name": pa.string(), "language": pa.string(), "place": pa.int32()}
        schema = pa.schema({**types, "value": pa.float64()})
        listed = [dict(zip(schema.names, row, strict=True)) for row in scores]
        pq.write_table(pa.Table.from_pylist(listed, schema=schema), tmp_path / "scores.parquet")
        connection = duckdb.connect()
        fill(connection, [tmp_path / "signatures.parquet"], [tmp_path / "scores.parquet"])
        return connection

    return make


def apply(connection: duckdb.DuckDBPyConnection, *scorers: ScorerOptions) -> None:
    ScoreFilter(scorers=scorers).apply(connection)


def dropped(connection: duckdb.DuckDBPyConnection, table: str = "pair_drops") -> list[tuple[Any, ...]]:
    columns = "number, reason, detail" if table == "pair_drops" else "number, language, place, reason, detail"
    return connection.execute(f"SELECT {columns} FROM {table} ORDER BY ALL").fetchall()


def agreement(limit: Cosines | Fractions | None = None, name: str | None = None, **options: Any) -> Agreement:
    field = "keep" if isinstance(limit, Fractions) else "threshold" if limit else None
    return Agreement(model="x", name=name, **({field: limit} if field else {}), **options)


CAPTION_DROPS: dict[str, tuple[Any, Any, Any]] = {
    "below the threshold of their language; those on it stay": (
        {"a": {"agreement": {"zh": [0.2, 0.19999], "en": [0.25, 0.3]}}},
        [agreement(Cosines(zh=0.2, en=0.3))],
        [
            (1, "en", 0, "agreement-low", "0.250, below 0.300"),
            (1, "zh", 1, "agreement-low", "0.200, below 0.200"),
        ],
    ),
    "a fraction is of all captions of one language": (  # the best three of five: 0.5, 0.4 and 0.3
        {
            "a": {"agreement": {"zh": [0.5, 0.1], "en": [0.01]}},
            "b": {"agreement": {"zh": [0.3]}},
            "c": {"agreement": {"zh": [0.4, 0.2]}},
        },
        [agreement(Fractions(zh=0.6))],
        [
            (1, "zh", 1, "agreement-low", "0.100, the best 60 % begin at 0.300"),
            (3, "zh", 1, "agreement-low", "0.200, the best 60 % begin at 0.300"),
        ],
    ),
    "equal scores share one fate": (
        {key: {"agreement": {"en": [0.2 if key != "d" else 0.1]}} for key in "abcd"},
        [agreement(Fractions(en=0.25))],
        [(4, "en", 0, "agreement-low", "0.100, the best 25 % begin at 0.200")],
    ),
    "with a threshold as well, the fraction is of all": (  # three of four, not of the three above 0.15
        {"a": {"agreement": {"en": [0.1, 0.2, 0.3, 0.4]}}},
        [agreement(Fractions(en=0.75), threshold=Cosines(en=0.15))],
        [(1, "en", 0, "agreement-low", "0.100, below 0.150")],
    ),
    "nothing without a limit": ({"a": {"agreement": {"zh": [-1.0], "en": [None]}}}, [agreement()], []),
    "a caption without a number neither passes a limit nor counts": (
        {"a": {"agreement": {"en": [None, 0.3, 0.2]}}},
        [agreement(Fractions(en=1))],
        [(1, "en", 0, "agreement-low", "no score, the best 100 % begin at 0.200")],
    ),
    "a second agreement has its own scores and reason": (
        {"a": {"agreement": {"en": [0.5, 0.5]}, "agreement-light": {"en": [0.9, 0.1]}}},
        [agreement(Cosines(en=0.4)), agreement(Fractions(en=0.5), name="light")],
        [(1, "en", 1, "agreement-light-low", "0.100, the best 50 % begin at 0.900")],
    ),
    "a later scorer takes its fraction of what is left": (  # a and b are dropped by the prompts
        {key: {"agreement": {"en": [0.9 - at / 10]}, "prompts": float(key in "ab")} for at, key in enumerate("abcd")},
        [Prompts(model="x", reject=("水印",)), agreement(Fractions(en=0.5))],
        [(4, "en", 0, "agreement-low", "0.600, the best 50 % begin at 0.700")],
    ),
}


@pytest.mark.parametrize("case", CAPTION_DROPS)
def test_captions_are_dropped_for_their_scores(tables: Tables, case: str) -> None:
    given, scorers, expected = CAPTION_DROPS[case]
    connection = tables(given)
    apply(connection, *scorers)
    assert dropped(connection, "caption_drops") == expected


@pytest.mark.parametrize(
    ("fraction", "left"), [(1, 10), (0.999, 10), (0.81, 9), (0.8, 8), (0.3, 3), (0.1, 1), (0.0001, 1)]
)
def test_a_fraction_is_rounded_up_to_whole_captions(tables: Tables, fraction: float, left: int) -> None:
    cosines = [0.01 * number for number in range(10)]
    connection = tables({"a": {"agreement": {"zh": cosines[::2], "en": []}}, "b": {"agreement": {"zh": cosines[1::2]}}})
    apply(connection, agreement(Fractions(zh=fraction)))
    assert connection.execute("SELECT count(*) FROM live_captions WHERE language = 'zh'").fetchone() == (left,)


def test_a_pair_is_dropped_when_no_caption_is_left(tables: Tables) -> None:
    low = {"agreement": {"zh": [0.1], "en": [0.1]}}
    connection = tables({"a": low, "b": {"agreement": {"zh": [0.1], "en": [0.4]}}})
    apply(connection, agreement(Cosines(zh=0.2, en=0.2)))
    drop_empty(connection)
    assert [row[:2] for row in dropped(connection)] == [(1, "no-caption")]


def test_a_merged_caption_keeps_the_score_it_got_with_its_own_image(tables: Tables) -> None:
    connection = tables({"a": {"agreement": {"en": [0.5]}}, "b": {"agreement": {"en": [0.1]}}})
    connection.execute("UPDATE captions SET number = 1, place = 1 WHERE number = 2")
    apply(connection, agreement(Cosines(en=0.3)))
    assert [row[:3] for row in dropped(connection, "caption_drops")] == [(1, "en", 1)]


BOTH = {"classifier-porn": 0.9, "classifier-hentai": 0.9}
PAIR_DROPS: dict[str, tuple[Any, Any, Any]] = {
    "with a label's score from the threshold on": (
        {"a": {"classifier-nsfw": 0.7}, "b": {"classifier-nsfw": 0.69999}, "c": {"classifier-nsfw": None}},
        Classifier(model="x", reject=("NSFW",), threshold=0.7),
        [(1, "classifier-nsfw", "0.700, rejected from 0.700"), (3, "classifier-nsfw", "no score, rejected from 0.700")],
    ),
    "for the first label that applies": (
        {"a": BOTH, "b": BOTH | {"classifier-hentai": 0.2}},
        Classifier(model="x", reject=("hentai", "porn")),
        [(1, "classifier-hentai", "0.900, rejected from 0.500"), (2, "classifier-porn", "0.900, rejected from 0.500")],
    ),
    "below a score of quality": (
        {"a": {"classifier-looks-aesthetic": 4.9}, "b": {"classifier-looks-aesthetic": 5.0}},
        Classifier(model="x", name="looks", reject=("aesthetic",), threshold=5, below=True),
        [(1, "classifier-looks-aesthetic", "4.900, rejected below 5.000")],
    ),
    "by prompts, whose name is in the reason": (
        {"a": {"prompts-水印": 0.8}, "b": {"prompts-水印": 0.1}},
        Prompts(model="x", name="水印", reject=("带水印的图片", "a watermarked picture")),
        [(1, "prompts-水印-reject", "0.800, rejected from 0.500")],
    ),
}


@pytest.mark.parametrize("case", PAIR_DROPS)
def test_pairs_are_dropped_for_their_scores(tables: Tables, case: str) -> None:
    given, scorer, expected = PAIR_DROPS[case]
    connection = tables(given)
    apply(connection, scorer)
    assert dropped(connection) == expected


def test_wrong_captions_of_emoji_are_found_from_the_pictures_to_the_drops(tmp_path: Path) -> None:
    emoji = list(open_pairs(QUICKSTART / "twemoji.parquet"))[::47]
    assert len(emoji) == 20
    given = [replace(pair, key=f"{at:02}") for at, pair in enumerate(emoji)]
    for at in range(5):  # captions of pictures of another sort
        given[at] = replace(given[at], zh=emoji[at + 10].zh)
        given[at + 5] = replace(given[at + 5], en=emoji[at + 15].en)
    write_parquet(tmp_path / "pairs.parquet", given)
    scorer = Agreement(model=str(QUICKSTART / "teacher"), device="cpu", threshold=Cosines(zh=0.2, en=0.2))
    score_slice(tmp_path / "pairs.parquet", [scorer], tmp_path / "scores.parquet")
    opened = [(pair, decode_image(pair.image)) for pair in given]
    rows = [signatures_of(pair, picture, "emoji") for pair, picture in opened if isinstance(picture, DecodedImage)]
    pq.write_table(pa.Table.from_pylist(rows, schema=signature_schema()), tmp_path / "signatures.parquet")
    connection = duckdb.connect()
    fill(connection, [tmp_path / "signatures.parquet"], [tmp_path / "scores.parquet"])
    apply(connection, scorer)
    found = {row[:3] for row in dropped(connection, "caption_drops")}
    wrong = {(number, "zh" if number <= 5 else "en", 0) for number in range(1, 11)}
    assert found >= wrong
    assert len(found - wrong) <= 1  # of 30 right ones; of all 940 pairs' it takes 1 %
