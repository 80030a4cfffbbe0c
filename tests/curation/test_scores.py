"""Models judge pairs; a slice's scores are one file; over all pairs, language by language, they become drops."""

import json
import math
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from pydantic import TypeAdapter, ValidationError

from dcclip_cli.curation.dedup import fill
from dcclip_cli.curation.dedup.dedup import signature_table, signatures_of
from dcclip_cli.curation.filters.image import decode_image
from dcclip_cli.curation.scores import (
    Agreement,
    CachingEncoder,
    Prompts,
    Score,
    ScorerOptions,
    Scorers,
    Scores,
    score_slice,
)
from dcclip_cli.data.dataset import open_pairs, write_parquet
from dcclip_cli.data.decoded import DecodedImage
from dcclip_cli.data.pair import Pair
from dcclip_cli.model.preprocess import decode
from dcclip_cli.model.teachers import TransformersTeacher

ANY: TypeAdapter[Any] = TypeAdapter(Scorers)


class Colours:
    """A dual encoder for which a picture is its colour, and which knows a few texts."""

    known = {"红": (1, 0, 0), "red, a little green": (0.8, 0.6, 0), "绿": (0, 1, 0), "blue": (0, 0, 1)}
    logit_scale = 2.0
    encoded = 0

    def preprocess(self, image: Image.Image) -> np.ndarray:
        return np.asarray(image.resize((1, 1)), np.float32).transpose(2, 0, 1)

    def encode_pixels(self, pixels: np.ndarray) -> np.ndarray:
        self.encoded += len(pixels)
        vectors = pixels[:, :, 0, 0]
        return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)

    def encode_texts(self, texts: Sequence[str]) -> np.ndarray:
        return np.asarray([self.known[text] for text in texts], np.float32)


@pytest.fixture
def colours(monkeypatch: pytest.MonkeyPatch) -> Colours:
    """The model that every dual encoder is in this test."""
    model = Colours()
    encoder = CachingEncoder(model)  # type: ignore[arg-type]
    monkeypatch.setattr("dcclip_cli.curation.scores.open_encoder", lambda *_: encoder)
    return model


def batch(*pairs: tuple[str, Pair]) -> list[tuple[Pair, Image.Image]]:
    return [(pair, Image.new("RGB", (8, 8), colour)) for colour, pair in pairs]


TWO = batch(
    ("red", Pair("1", b"", zh=("绿", "红"), en=("red, a little green",))),
    ("lime", Pair("2", b"", en=("blue", "red, a little green"))),
)


def test_agreement_is_the_cosine_of_each_caption_with_its_own_image(colours: Colours) -> None:
    first, second = Agreement(model="any").open()(TWO)
    assert numbers(first["agreement"]) == {"zh": pytest.approx([0, 1]), "en": pytest.approx([0.8])}
    assert numbers(second["agreement"]) == {"zh": [], "en": pytest.approx([0, 0.6])}


def test_prompts_add_up_the_probabilities_of_what_is_rejected(colours: Colours) -> None:
    scorer = Prompts(model="any", reject=("红", "red, a little green"), against=("blue",))
    red, lime = scorer.open()(TWO)
    together = math.exp(2 * 1) + math.exp(2 * 0.8)  # red against the three texts: cosines 1, 0.8 and 0
    assert red == {"prompts": pytest.approx(together / (together + 1))}
    together = 1 + math.exp(2 * 0.6)
    assert lime == {"prompts": pytest.approx(together / (together + 1))}


def test_scorers_of_one_model_have_each_picture_encoded_once(colours: Colours) -> None:
    opened = [Agreement(model="any").open(), Prompts(model="any", reject=("红",), against=("绿",)).open()]
    second = batch(("red", TWO[0][0]), ("red", TWO[1][0]))
    for score in (*opened, *opened):
        score(TWO)
    assert colours.encoded == 2
    assert opened[0](second)[1]["agreement"] == {"zh": [], "en": pytest.approx([0, 0.8])}  # equal size, other pictures
    assert colours.encoded == 4


def numbers(scores: object) -> Mapping[str, list[float]]:
    assert isinstance(scores, Mapping)
    return scores


@pytest.mark.parametrize(("teacher", "precision"), [("altclip_folder", "fp32"), ("chinese_clip_folder", "bf16")])
def test_a_teacher_scores_as_its_reference_does(
    teacher: str, precision: str, pairs: list[Pair], request: pytest.FixtureRequest
) -> None:
    folder = str(request.getfixturevalue(teacher))
    options = TransformersTeacher.model_validate({"model": folder, "precision": precision})
    sample = [(pair, decode(pair.image)) for pair in pairs[:6]]
    by_options = flat(Agreement(model=options, device="cpu").open(), sample)
    by_reference = flat(Agreement(model=f"hf:{folder}", device="cpu").open(), sample)
    assert len(by_options) == 6 * (3 + 3)
    tolerance = {"fp32": 1e-6, "bf16": 3e-2}[precision]
    np.testing.assert_allclose(by_options, by_reference, atol=tolerance)
    assert (by_options == by_reference) == (precision == "fp32")


def flat(score: Score, some: list[tuple[Pair, Image.Image]]) -> list[float]:
    return [value for scores in score(some) for values in numbers(scores["agreement"]).values() for value in values]


def test_two_scorers_of_a_kind_need_names() -> None:
    watermark = {"kind": "prompts", "model": "hf:x/y", "reject": ["水印", "a watermark"]}
    unsafe = {"kind": "prompts", "model": "hf:x/y", "reject": ["色情图片"]}
    with pytest.raises(ValidationError, match="two scorers have the name prompts"):
        ANY.validate_python([watermark, unsafe])
    named = ANY.validate_python([watermark | {"name": "watermark"}, unsafe])
    assert [scorer.stored for scorer in named] == ["prompts-watermark", "prompts"]


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


def rows(file: Path) -> list[tuple[Any, ...]]:
    table = pq.read_table(file)
    assert table.column_names == COLUMNS
    return [tuple(row.values()) for row in table.to_pylist()]


def test_every_caption_and_every_pair_has_its_row_in_the_order_of_pairs_and_large_pictures_come_fewer_at_a_time(
    tmp_path: Path, picture: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes = {"b": 64, "a": 40, "c": 32}
    captions = {"b": (("红", "一只猫"), ()), "a": ((), ("cat",)), "c": (("猫",), ("a cat",))}
    pairs = [Pair(key, picture(key, (side, side)), *captions[key], {"source": "x"}) for key, side in sizes.items()]
    write_parquet(tmp_path / "pairs.parquet", pairs)
    monkeypatch.setattr("dcclip_cli.curation.scores.MAX_PIXELS", 40 * 40 + 32 * 32)
    scorer = Sides(seen=[])
    score_slice(open_pairs(tmp_path / "pairs.parquet"), [scorer], tmp_path / "scores.parquet")
    assert scorer.seen == [1, 2]  # 64 x 64 is more than allowed by itself
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


WITHOUT_TORCH = """
import sys
sys.modules |= dict.fromkeys(("torch", "transformers", "open_clip"))  # importing them fails
from pathlib import Path
from pydantic import TypeAdapter
from dcclip_cli.curation.scores import score_slice
from dcclip_cli.curation.scores import Scorers
from dcclip_cli.data.dataset import open_pairs
score_slice(open_pairs(Path(sys.argv[2])), TypeAdapter(Scorers).validate_json(sys.argv[1]), Path(sys.argv[3]))
"""


def test_a_bundle_scores_as_the_model_it_was_made_of_also_where_torch_is_not_installed(
    model_folder: Path, bundle_folder: Path, pairs_file: Path, tmp_path: Path
) -> None:
    stored_rows = []
    for model in (model_folder, bundle_folder):
        shared = {"model": str(model), "device": "cpu"}
        scorers = [{"kind": "agreement", **shared}, {"kind": "prompts", "reject": ["红色的圆", "a moon"], **shared}]
        if model == model_folder:
            score_slice(open_pairs(pairs_file), ANY.validate_python(scorers), tmp_path / "scores.parquet")
        else:
            files = (str(pairs_file), str(tmp_path / "scores.parquet"))
            subprocess.run([sys.executable, "-c", WITHOUT_TORCH, json.dumps(scorers), *files], check=True)
        stored_rows.append({row[:4]: row[4] for row in rows(tmp_path / "scores.parquet")})
    assert len(stored_rows[0]) == 40 * (3 + 3 + 1)
    assert {row[1] for row in stored_rows[0]} == {"agreement", "prompts"}
    assert stored_rows[0] == pytest.approx(stored_rows[1], abs=2e-4)


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
                    for language, values in value.items():
                        scores.extend((key, name, language, place, number) for place, number in enumerate(values))
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


@pytest.mark.parametrize(
    ("fraction", "left"), [(1, 10), (0.999, 10), (0.81, 9), (0.8, 8), (0.3, 3), (0.1, 1), (0.0001, 1)]
)
def test_a_fraction_is_rounded_up_to_whole_captions(tables: Tables, fraction: float, left: int) -> None:
    cosines = [0.01 * number for number in range(10)]
    connection = tables({"a": {"agreement": {"zh": cosines[::2], "en": []}}, "b": {"agreement": {"zh": cosines[1::2]}}})
    agreement(keep={"zh": fraction}).apply(connection)
    assert connection.execute("SELECT count(*) FROM live_captions WHERE language = 'zh'").fetchone() == (left,)


PAIR_DROPS: dict[str, tuple[Any, Any, Any]] = {
    "with a score from the threshold on": (
        {"a": {"prompts": 0.7}, "b": {"prompts": 0.69999}, "c": {"prompts": None}},
        [Prompts(model="x", reject=("色情", "nsfw"), threshold=0.7)],
        [(1, "prompts-reject", "0.700, rejected from 0.700"), (3, "prompts-reject", "no score, rejected from 0.700")],
    ),
    "by prompts, whose name is in the reason": (
        {"a": {"prompts-水印": 0.8}, "b": {"prompts-水印": 0.1}},
        [Prompts(model="x", name="水印", reject=("带水印的图片", "a watermarked picture"))],
        [(1, "prompts-水印-reject", "0.800, rejected from 0.500")],
    ),
}


@pytest.mark.parametrize("case", CAPTION_DROPS | PAIR_DROPS)
def test_captions_and_pairs_are_dropped_for_their_scores(tables: Tables, case: str) -> None:
    values, scorers, expected = (CAPTION_DROPS | PAIR_DROPS)[case]
    connection = tables(values)
    for scorer in scorers:
        scorer.apply(connection)
    columns = "number, language, place, reason, detail" if case in CAPTION_DROPS else "number, reason, detail"
    table = "caption_drops" if case in CAPTION_DROPS else "pair_drops"
    assert connection.execute(f"SELECT {columns} FROM {table} ORDER BY ALL").fetchall() == expected
