"""Small embeddings: what is stored of each, and what a search among them finds."""

from pathlib import Path

import numpy as np
import pytest

from dcclip_cli.errors import DcclipError
from dcclip_cli.predict.encoder import shortened
from dcclip_cli.predict.index import open_index
from dcclip_cli.predict.onnx_encoder import OnnxEncoder
from dcclip_cli.predict.vectors import VectorType, compressed, nearest, restored
from dcclip_cli.progress import Lines, Silent


def unit(rows: int, width: int, seed: int = 0) -> np.ndarray:
    found = np.random.default_rng(seed).standard_normal((rows, width)).astype(np.float32)
    return found / np.linalg.norm(found, axis=1, keepdims=True)


def test_int8_keeps_a_rows_direction_with_its_largest_number_at_127() -> None:
    row = np.asarray([[0.6, -0.8, 0.0]], np.float32)
    assert compressed(row, "int8").tolist() == [[95, -127, 0]]  # 0.6 / 0.8 * 127 = 95.25
    np.testing.assert_allclose(restored(compressed(row, "int8"), "int8", 3), row, atol=0.002)


def test_binary_has_a_bit_for_each_number_with_the_first_one_highest() -> None:
    row = np.asarray([[0.5, -0.5, 0.1, -0.1, -1, 1, -1, 1, 1]], np.float32)
    assert compressed(row, "binary").tolist() == [[0b10100101, 0b10000000]]
    signs = restored(compressed(row, "binary"), "binary", 9)[0] * 3
    assert signs.round(5).tolist() == [1, -1, 1, -1, -1, 1, -1, 1, 1]


@pytest.mark.parametrize(("kind", "found"), [("fp32", 1.0), ("fp16", 1.0), ("int8", 1.0), ("binary", 0.9)])
def test_the_row_that_a_query_was_made_from_is_found(kind: VectorType, found: float) -> None:
    rows = unit(2_000, 64)
    stored, noisy = compressed(rows, kind), rows[:200] + 0.3 * unit(200, 64, seed=1)
    noisy /= np.linalg.norm(noisy, axis=1, keepdims=True)
    hits = [nearest(stored, kind, query, 3)[0][0] == place for place, query in enumerate(noisy)]
    assert np.mean(hits) >= found


def test_the_cosines_of_compressed_rows_are_those_with_the_restored_ones() -> None:
    rows, query = unit(50, 24), unit(1, 24, seed=2)[0]
    for kind in ("fp16", "int8", "binary"):
        places, scores = nearest(compressed(rows, kind), kind, query, 4)
        np.testing.assert_allclose(scores, restored(compressed(rows, kind), kind, 24)[places] @ query, rtol=1e-5)
        assert scores.tolist() == sorted(scores.tolist(), reverse=True)


def test_each_kind_and_number_of_dimensions_has_an_index_of_its_own(bundle_folder: Path, pictures: list[Path]) -> None:
    model, folder = OnnxEncoder(bundle_folder, "cpu"), pictures[0].parent
    whole = open_index(model, folder)
    short = shortened(model, 8, Silent())
    made = {
        (encoder.name, kind): open_index(encoder, folder, kind=kind)
        for encoder in (model, short)
        for kind in ("int8", "binary")
    }
    assert {index.embedded for index in made.values()} == {0}  # made from the whole index
    assert open_index(short, folder, fresh=True, kind="int8").embedded == 5
    assert [index.embeddings.shape for index in made.values()] == [(5, 16), (5, 2), (5, 8), (5, 1)]
    assert open_index(short, folder, kind="binary").embedded == 0
    cut = whole.embeddings[:, :8] / np.linalg.norm(whole.embeddings[:, :8], axis=1, keepdims=True)
    np.testing.assert_allclose(restored(made[short.name, "int8"].embeddings, "int8", 8), cut, atol=0.01)
    query = short.encode_texts(["红色的圆"])[0]
    assert len(made[short.name, "binary"].search(query, 3)) == 3


def test_dimensions_that_a_model_was_not_trained_for_are_warned_of_and_too_many_refused(bundle_folder: Path) -> None:
    said: list[str] = []
    model = OnnxEncoder(bundle_folder, "cpu")
    short = shortened(model, 8, Lines(said.append))
    assert said == [f"warning: {model.name} was not trained for 8 dimensions (trained: none; see train option dims)"]
    vectors = short.encode_texts(["a red circle", "红色的圆"])
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, rtol=1e-5)
    with pytest.raises(DcclipError, match="embeddings of 16 numbers, fewer than 24"):
        shortened(model, 24, Silent()).encode_texts(["猫"])
