"""A slice's scores are one file, the same however the pairs are cut into batches, with torch or without."""

import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from PIL import Image

from dcclip_cli.curation.scores.base import ScorerOptions, Scores, score_slice
from dcclip_cli.curation.scores.scorers import Agreement, Prompts
from dcclip_cli.data.dataset import write_parquet
from dcclip_cli.data.pair import Pair
from dcclip_cli.exporters.export import ExportOptions, export
from dcclip_cli.model.reference import resolve

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
    score_slice(three, [Sides()], tmp_path / "scores.parquet")
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


def test_a_slice_without_pairs_has_an_empty_file(tmp_path: Path) -> None:
    write_parquet(tmp_path / "pairs.parquet", [])
    score_slice(tmp_path / "pairs.parquet", [Sides()], tmp_path / "scores.parquet")
    assert rows(tmp_path / "scores.parquet") == []


def test_large_pictures_come_fewer_at_a_time(three: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dcclip_cli.curation.scores.base.MAX_PIXELS", 40 * 40 + 32 * 32)
    scorer = Sides(seen=[])
    score_slice(three, [scorer], tmp_path / "scores.parquet")
    assert scorer.seen == [1, 2]  # 64 x 64 is more than allowed by itself
    assert len(rows(tmp_path / "scores.parquet")) == 8


@pytest.fixture(scope="module")
def bundle_folder(model_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny student as an fp32 bundle."""
    out = tmp_path_factory.mktemp("bundles") / "tiny"
    return export(options=ExportOptions(), model=resolve(str(model_folder)), out=out).folder


def scorers(model: Path) -> list[ScorerOptions]:
    shared: dict[str, Any] = {"model": str(model), "device": "cpu"}
    return [Agreement(**shared), Prompts(**shared, reject=("红色的圆", "a moon"))]


def test_a_bundle_scores_as_the_model_it_was_made_of(
    model_folder: Path, bundle_folder: Path, pairs_file: Path, tmp_path: Path
) -> None:
    score_slice(pairs_file, scorers(model_folder), tmp_path / "torch.parquet")
    score_slice(pairs_file, scorers(bundle_folder), tmp_path / "onnx.parquet")
    by_torch, by_onnx = rows(tmp_path / "torch.parquet"), rows(tmp_path / "onnx.parquet")
    assert len(by_torch) == 40 * (3 + 3 + 1)
    assert {row[1] for row in by_torch} == {"agreement", "prompts"}
    assert sorted_places(by_torch) == sorted_places(by_onnx)
    assert values(by_torch) == pytest.approx(values(by_onnx), abs=2e-4)


def sorted_places(found: list[tuple[Any, ...]]) -> list[tuple[Any, ...]]:
    return sorted((row[:4] for row in found), key=str)


def values(found: list[tuple[Any, ...]]) -> dict[tuple[Any, ...], float]:
    return {row[:4]: row[4] for row in found}


def test_the_same_slice_gives_the_same_bytes(model_folder: Path, pairs_file: Path, tmp_path: Path) -> None:
    files = [tmp_path / "one.parquet", tmp_path / "other.parquet"]
    for file in files:
        score_slice(pairs_file, scorers(model_folder), file)
    assert files[0].read_bytes() == files[1].read_bytes()


def test_a_bundle_scores_where_torch_is_not_installed(bundle_folder: Path, pairs_file: Path, tmp_path: Path) -> None:
    code = """
import sys
sys.modules |= dict.fromkeys(("torch", "transformers", "open_clip"))  # importing them fails
from pathlib import Path
from pydantic import TypeAdapter
from dcclip_cli.curation.scores.base import score_slice
from dcclip_cli.curation.scores.scorers import Scorers
shared = {"model": sys.argv[1]}
given = [{"kind": "agreement", **shared}, {"kind": "prompts", "reject": ["水印", "a watermark"], **shared}]
score_slice(Path(sys.argv[2]), TypeAdapter(Scorers).validate_python(given), Path(sys.argv[3]))
"""
    out = tmp_path / "scores.parquet"
    subprocess.run([sys.executable, "-c", code, bundle_folder, pairs_file, out], check=True)
    assert len(rows(out)) == 40 * (3 + 3 + 1)
