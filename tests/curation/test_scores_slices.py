"""A slice's scores are one file, with torch or without; over all pairs, language by language, they become drops."""

import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from dcclip_cli.curation.dedup import fill
from dcclip_cli.curation.dedup.dedup import signature_table, signatures_of
from dcclip_cli.curation.filters.image import DecodedImage, decode_image
from dcclip_cli.curation.scores import ScorerOptions, Scores, score_slice
from dcclip_cli.curation.scores.scorers import Agreement, Classifier, Prompts
from dcclip_cli.data.dataset import open_pairs, write_parquet
from dcclip_cli.data.pair import Pair

COLUMNS = ["key", "name", "language", "place", "value"]


class Sides(ScorerOptions):
    """Gives every caption its length and every picture its width; what has no pixels in common, no number."""

    kind: str = "sides"
    seen: list[int] = []

    def check(self) -> None:
        pass

    def open(self) -> Callable[[Sequence[tuple[Pair, Image.Image]]], list[Scores]]:
        def score(batch: Sequence[tuple[Pair, Image.Image]]) -> list[Scores]:
            self.seen.append(len(batch))
            return [
                {
                    "length": {"zh": [float(len(text)) for text in pair.zh], "en": [len(text) / 3 for text in pair.en]},
                    "width": float("nan") if picture.width == 40 else picture.width,
                }
                for pair, picture in batch
            ]

        return score

    def apply(self, connection: Any) -> None:
        pass


@pytest.fixture
def three(tmp_path: Path, picture: Any) -> Path:
    """Three pairs of 64, 40 and 32 px."""
    file = tmp_path / "pairs.parquet"
    sizes = {"b": 64, "a": 40, "c": 32}
    captions = {"b": (("红", "一只猫"), ()), "a": ((), ("cat",)), "c": (("猫",), ("a cat",))}
    pairs = [Pair(key, picture(key, (side, side)), *captions[key], {"source": "x"}) for key, side in sizes.items()]
    write_parquet(file, pairs)
    return file


def rows(file: Path) -> list[tuple[Any, ...]]:
    table = pq.read_table(file)
    assert table.column_names == COLUMNS
    return [tuple(row.values()) for row in table.to_pylist()]


def test_every_caption_and_every_pair_has_its_row_in_the_order_of_pairs(three: Path, tmp_path: Path) -> None:
    score_slice(open_pairs(three), [Sides()], tmp_path / "scores.parquet")
    assert rows(tmp_path / "scores.parquet") == [
        ("b", "length", "zh", 0, 1.0),
        ("b", "length", "zh", 1, 3.0),
        ("b", "width", None, None, 64.0),
        ("a", "length", "en", 0, 1.0),
        ("a", "width", None, None, None),  # no number
        ("c", "length", "zh", 0, 1.0),
        ("c", "length", "en", 0, 1.66667),  # 5 / 3 to five decimals
        ("c", "width", None, None, 32.0),
    ]


def test_large_pictures_come_fewer_at_a_time(three: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dcclip_cli.curation.scores.MAX_PIXELS", 40 * 40 + 32 * 32)
    scorer = Sides(seen=[])
    score_slice(open_pairs(three), [scorer], tmp_path / "scores.parquet")
    assert scorer.seen == [1, 2]  # 64 x 64 is more than allowed by itself
    assert len(rows(tmp_path / "scores.parquet")) == 8


def scorers(model: Path) -> list[ScorerOptions]:
    shared: dict[str, Any] = {"model": str(model), "device": "cpu"}
    return [Agreement(**shared), Prompts(**shared, reject=("红色的圆", "a moon"))]


def test_a_bundle_scores_as_the_model_it_was_made_of(
    model_folder: Path, bundle_folder: Path, pairs_file: Path, tmp_path: Path
) -> None:
    score_slice(open_pairs(pairs_file), scorers(model_folder), tmp_path / "torch.parquet")
    score_slice(open_pairs(pairs_file), scorers(bundle_folder), tmp_path / "onnx.parquet")
    by_torch, by_onnx = rows(tmp_path / "torch.parquet"), rows(tmp_path / "onnx.parquet")
    assert len(by_torch) == 40 * (3 + 3 + 1)
    assert {row[1] for row in by_torch} == {"agreement", "prompts"}
    torch_values, onnx_values = ({row[:4]: row[4] for row in found} for found in (by_torch, by_onnx))
    assert torch_values == pytest.approx(onnx_values, abs=2e-4)


def test_a_bundle_scores_where_torch_is_not_installed(bundle_folder: Path, pairs_file: Path, tmp_path: Path) -> None:
    code = """
import sys
sys.modules |= dict.fromkeys(("torch", "transformers", "open_clip"))  # importing them fails
from pathlib import Path
from pydantic import TypeAdapter
from dcclip_cli.curation.scores import score_slice
from dcclip_cli.data.dataset import open_pairs
from dcclip_cli.curation.scores.scorers import Scorers
shared = {"model": sys.argv[1]}
given = [{"kind": "agreement", **shared}, {"kind": "prompts", "reject": ["水印", "a watermark"], **shared}]
score_slice(open_pairs(Path(sys.argv[2])), TypeAdapter(Scorers).validate_python(given), Path(sys.argv[3]))
"""
    out = tmp_path / "scores.parquet"
    subprocess.run([sys.executable, "-c", code, bundle_folder, pairs_file, out], check=True)
    assert len(rows(out)) == 40 * (3 + 3 + 1)


Of = Mapping[str, Any]
Tables = Callable[[Mapping[str, Of]], duckdb.DuckDBPyConnection]


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
        pq.write_table(signature_table(facts), tmp_path / "signatures.parquet")
        types = {"key": pa.string(), "name": pa.string(), "language": pa.string(), "place": pa.int32()}
        schema = pa.schema({**types, "value": pa.float64()})
        listed = [dict(zip(schema.names, row, strict=True)) for row in scores]
        pq.write_table(pa.Table.from_pylist(listed, schema=schema), tmp_path / "scores.parquet")
        connection = duckdb.connect()
        fill(connection, [tmp_path / "signatures.parquet"], [tmp_path / "scores.parquet"])
        return connection

    return make


def apply(connection: duckdb.DuckDBPyConnection, *scorers: ScorerOptions) -> None:
    for scorer in scorers:
        scorer.apply(connection)


def dropped(connection: duckdb.DuckDBPyConnection, table: str = "pair_drops") -> list[tuple[Any, ...]]:
    columns = "number, reason, detail" if table == "pair_drops" else "number, language, place, reason, detail"
    return connection.execute(f"SELECT {columns} FROM {table} ORDER BY ALL").fetchall()


def agreement(**options: Any) -> Agreement:
    return Agreement.model_validate({"model": "x", **options})


CAPTION_DROPS: dict[str, tuple[Any, Any, Any]] = {
    "below the threshold of their language; those on it stay": (
        {"a": {"agreement": {"zh": [0.2, 0.19999], "en": [0.25, 0.3]}}},
        [agreement(threshold={"zh": 0.2, "en": 0.3})],
        [(1, "en", 0, "agreement-low", "0.250, below 0.300"), (1, "zh", 1, "agreement-low", "0.200, below 0.200")],
    ),
    "a fraction is of all captions of one language": (  # the best three of five: 0.5, 0.4 and 0.3
        {
            "a": {"agreement": {"zh": [0.5, 0.1], "en": [0.01]}},
            "b": {"agreement": {"zh": [0.3]}},
            "c": {"agreement": {"zh": [0.4, 0.2]}},
        },
        [agreement(keep={"zh": 0.6})],
        [
            (1, "zh", 1, "agreement-low", "0.100, the best 60 % begin at 0.300"),
            (3, "zh", 1, "agreement-low", "0.200, the best 60 % begin at 0.300"),
        ],
    ),
    "equal scores share one fate": (
        {key: {"agreement": {"en": [0.2 if key != "d" else 0.1]}} for key in "abcd"},
        [agreement(keep={"en": 0.25})],
        [(4, "en", 0, "agreement-low", "0.100, the best 25 % begin at 0.200")],
    ),
    "with a threshold as well, the fraction is of all": (  # three of four, not of the three above 0.15
        {"a": {"agreement": {"en": [0.1, 0.2, 0.3, 0.4]}}},
        [agreement(keep={"en": 0.75}, threshold={"en": 0.15})],
        [(1, "en", 0, "agreement-low", "0.100, below 0.150")],
    ),
    "nothing without a limit": ({"a": {"agreement": {"zh": [-1.0], "en": [None]}}}, [agreement()], []),
    "a caption without a number neither passes a limit nor counts": (
        {"a": {"agreement": {"en": [None, 0.3, 0.2]}}},
        [agreement(keep={"en": 1})],
        [(1, "en", 0, "agreement-low", "no score, the best 100 % begin at 0.200")],
    ),
    "a second agreement has its own scores and reason": (
        {"a": {"agreement": {"en": [0.5, 0.5]}, "agreement-light": {"en": [0.9, 0.1]}}},
        [agreement(threshold={"en": 0.4}), agreement(keep={"en": 0.5}, name="light")],
        [(1, "en", 1, "agreement-light-low", "0.100, the best 50 % begin at 0.900")],
    ),
    "a later scorer takes its fraction of what is left": (  # a and b are dropped by the prompts
        {key: {"agreement": {"en": [0.9 - at / 10]}, "prompts": float(key in "ab")} for at, key in enumerate("abcd")},
        [Prompts(model="x", reject=("水印",)), agreement(keep={"en": 0.5})],
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
    apply(connection, agreement(keep={"zh": fraction}))
    assert connection.execute("SELECT count(*) FROM live_captions WHERE language = 'zh'").fetchone() == (left,)


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
