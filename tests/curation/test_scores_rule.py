"""Stored scores become drops: over all pairs at once, language by language."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dcclip_cli.curation.candidate import DecodedImage
from dcclip_cli.curation.decode_image import decode_image
from dcclip_cli.curation.dedup.signatures import signature_schema, signatures_of
from dcclip_cli.curation.dedup.tables import drop_empty, fill
from dcclip_cli.curation.scores import ScoreFilter, score_slice
from dcclip_cli.curation.scores.base import ScorerOptions
from dcclip_cli.curation.scores.classifier import Classifier
from dcclip_cli.curation.scores.dual_encoder import Agreement, Cosines, Fractions, Prompts
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


def captions(connection: duckdb.DuckDBPyConnection, key: str | None = None) -> list[str]:
    """The texts left: `KEY PLACE`."""
    where = f"WHERE text LIKE '{key}%'" if key else ""
    return [row[0] for row in connection.execute(f"SELECT text FROM live_captions {where} ORDER BY text").fetchall()]


def dropped(connection: duckdb.DuckDBPyConnection, table: str = "pair_drops") -> list[tuple[Any, ...]]:
    columns = "number, reason, detail" if table == "pair_drops" else "number, language, place, reason, detail"
    return connection.execute(f"SELECT {columns} FROM {table} ORDER BY ALL").fetchall()


def test_captions_below_their_languages_threshold_go_and_those_on_it_stay(tables: Tables) -> None:
    connection = tables({"a": {"agreement": {"zh": [0.2, 0.19999], "en": [0.25, 0.3]}}})
    apply(connection, Agreement(model="x", threshold=Cosines(zh=0.2, en=0.3)))
    assert dropped(connection, "caption_drops") == [
        (1, "en", 0, "agreement-low", "0.250, below 0.300"),
        (1, "zh", 1, "agreement-low", "0.200, below 0.200"),
    ]
    assert dropped(connection) == []


def test_a_pair_goes_when_no_caption_is_left(tables: Tables) -> None:
    connection = tables(
        {"a": {"agreement": {"zh": [0.1], "en": [0.1]}}, "b": {"agreement": {"zh": [0.1], "en": [0.4]}}}
    )
    apply(connection, Agreement(model="x", threshold=Cosines(zh=0.2, en=0.2)))
    drop_empty(connection)
    assert [row[:2] for row in dropped(connection)] == [(1, "no-caption")]


def test_a_fraction_is_of_all_captions_of_one_language(tables: Tables) -> None:
    zh = {"a": [0.5, 0.1], "b": [0.3], "c": [0.4, 0.2]}
    connection = tables({key: {"agreement": {"zh": several, "en": [0.01]}} for key, several in zh.items()})
    apply(connection, Agreement(model="x", keep=Fractions(zh=0.6)))
    # The best three of five: 0.5, 0.4 and 0.3.
    assert dropped(connection, "caption_drops") == [
        (1, "zh", 1, "agreement-low", "0.100, the best 60 % begin at 0.300"),
        (3, "zh", 1, "agreement-low", "0.200, the best 60 % begin at 0.300"),
    ]


@pytest.mark.parametrize(
    ("fraction", "left"),
    [(1, 10), (0.999, 10), (0.81, 9), (0.8, 8), (0.3, 3), (0.1, 1), (0.0001, 1)],
)
def test_a_fraction_is_rounded_up_to_whole_captions(tables: Tables, fraction: float, left: int) -> None:
    cosines = [0.01 * number for number in range(10)]
    connection = tables({"a": {"agreement": {"zh": cosines[::2], "en": []}}, "b": {"agreement": {"zh": cosines[1::2]}}})
    apply(connection, Agreement(model="x", keep=Fractions(zh=fraction)))
    assert len(captions(connection, "a") + captions(connection, "b")) == left


def test_equal_scores_share_one_fate(tables: Tables) -> None:
    connection = tables({key: {"agreement": {"en": [0.2 if key != "d" else 0.1]}} for key in "abcd"})
    apply(connection, Agreement(model="x", keep=Fractions(en=0.25)))
    assert captions(connection) == ["a 0", "b 0", "c 0"]


def test_with_a_threshold_as_well_the_fraction_is_still_of_all(tables: Tables) -> None:
    connection = tables({"a": {"agreement": {"en": [0.1, 0.2, 0.3, 0.4]}}})
    apply(connection, Agreement(model="x", keep=Fractions(en=0.75), threshold=Cosines(en=0.15)))
    assert captions(connection) == ["a 1", "a 2", "a 3"]  # three of four; of the three above 0.15 it is all


def test_without_a_limit_nothing_is_dropped(tables: Tables) -> None:
    connection = tables({"a": {"agreement": {"zh": [-1.0], "en": [None]}}})
    apply(connection, Agreement(model="x"))
    assert captions(connection) == ["a 0", "a 0"]


def test_a_caption_without_a_number_does_not_pass_a_limit_nor_count(tables: Tables) -> None:
    connection = tables({"a": {"agreement": {"en": [None, 0.3, 0.2]}}})
    apply(connection, Agreement(model="x", keep=Fractions(en=1)))
    assert dropped(connection, "caption_drops") == [
        (1, "en", 0, "agreement-low", "no score, the best 100 % begin at 0.200")
    ]


def test_a_merged_caption_keeps_the_score_it_got_with_its_own_picture(tables: Tables) -> None:
    connection = tables({"a": {"agreement": {"en": [0.5]}}, "b": {"agreement": {"en": [0.1]}}})
    connection.execute("UPDATE captions SET number = 1, place = 1 WHERE number = 2")
    apply(connection, Agreement(model="x", threshold=Cosines(en=0.3)))
    assert [row[:3] for row in dropped(connection, "caption_drops")] == [(1, "en", 1)]


def test_a_second_agreement_has_its_own_scores_and_reason(tables: Tables) -> None:
    connection = tables({"a": {"agreement": {"en": [0.5, 0.5]}, "agreement-light": {"en": [0.9, 0.1]}}})
    rules = (
        Agreement(model="x", threshold=Cosines(en=0.4)),
        Agreement(model="y", name="light", keep=Fractions(en=0.5)),
    )
    apply(connection, *rules)
    assert [row[2:4] for row in dropped(connection, "caption_drops")] == [(1, "agreement-light-low")]


def test_pairs_with_a_label_go_from_the_threshold_on(tables: Tables) -> None:
    connection = tables(
        {"a": {"classifier-nsfw": 0.7}, "b": {"classifier-nsfw": 0.69999}, "c": {"classifier-nsfw": None}}
    )
    apply(connection, Classifier(model="x", reject=("NSFW",), threshold=0.7))
    assert dropped(connection) == [
        (1, "classifier-nsfw", "0.700, rejected from 0.700"),
        (3, "classifier-nsfw", "no score, rejected from 0.700"),
    ]


def test_the_first_label_that_applies_is_the_reason(tables: Tables) -> None:
    scores = {"classifier-porn": 0.9, "classifier-hentai": 0.9}
    connection = tables({"a": scores, "b": scores | {"classifier-hentai": 0.2}})
    apply(connection, Classifier(model="x", reject=("hentai", "porn")))
    assert [row[:2] for row in dropped(connection)] == [(1, "classifier-hentai"), (2, "classifier-porn")]


def test_a_score_of_quality_drops_what_is_below(tables: Tables) -> None:
    connection = tables({"a": {"classifier-looks-aesthetic": 4.9}, "b": {"classifier-looks-aesthetic": 5.0}})
    apply(connection, Classifier(model="x", name="looks", reject=("aesthetic",), threshold=5, below=True))
    assert dropped(connection) == [(1, "classifier-looks-aesthetic", "4.900, rejected below 5.000")]


def test_named_prompts_say_their_name_in_the_reason(tables: Tables) -> None:
    connection = tables({"a": {"prompts-水印": 0.8}, "b": {"prompts-水印": 0.1}})
    apply(connection, Prompts(model="x", name="水印", reject=("带水印的图片", "a watermarked picture")))
    assert dropped(connection) == [(1, "prompts-水印-reject", "0.800, rejected from 0.500")]


def test_a_later_scorer_takes_its_fraction_of_what_is_left(tables: Tables) -> None:
    cosines = {"a": 0.9, "b": 0.8, "c": 0.7, "d": 0.6}
    connection = tables(
        {key: {"agreement": {"en": [of]}, "prompts": float(key in "ab")} for key, of in cosines.items()}
    )
    scorers: Sequence[ScorerOptions] = (
        Prompts(model="x", reject=("水印",)),
        Agreement(model="x", keep=Fractions(en=0.5)),
    )
    apply(connection, *scorers)
    assert captions(connection) == ["c 0"]


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
