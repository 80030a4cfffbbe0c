"""Pairs that hold image embeddings in place of pictures."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dcclip_cli.data.augment import Augment
from dcclip_cli.data.collator import Collator
from dcclip_cli.data.dataset import open_pairs, write_embeddings
from dcclip_cli.data.options import CaptionOptions
from dcclip_cli.data.pair import Language
from dcclip_cli.errors import DcclipError
from dcclip_cli.model.tokenizer import tokenize_with, train_tokenizer

VECTORS = np.asarray([[1, 0], [0, 1], [0, 1]], np.float32)
CAPTIONS: dict[Language, list[list[str]]] = {
    "zh": [["猫", "猫咪"], ["狗"], ["犬"]],
    "en": [["cat"], ["dog"], ["hound"]],
}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    write_embeddings(tmp_path / "words.parquet", ["cat", "dog", "hound"], VECTORS, CAPTIONS)
    return tmp_path / "words.parquet"


def test_embeddings_and_captions_come_back_as_written(file: Path) -> None:
    table = open_pairs(file)
    assert table.embeddings is not None
    assert table.embeddings.tolist() == VECTORS.tolist()
    assert table.captions("zh") == [("猫", "猫咪"), ("狗",), ("犬",)]


def test_asking_for_a_picture_says_that_there_is_none(file: Path) -> None:
    with pytest.raises(DcclipError, match="has embeddings, no images"):
        open_pairs(file)[0]


def test_a_batch_has_the_embeddings_where_pixels_would_be_and_equal_ones_have_one_number(file: Path) -> None:
    tokenizer = train_tokenizer(["猫狗犬", "cat dog hound"] * 20, 60)
    reader = Collator(
        open_pairs(file),
        0,
        Augment(),
        CaptionOptions(),
        preprocess=lambda image: np.zeros(0),
        tokenize=tokenize_with(tokenizer, 8),
        with_caption_ids=True,
    )
    batch = reader.batch([(2, 0), (0, 0), (1, 0)])
    assert batch.pixels.tolist() == [[0, 1], [1, 0], [0, 1]]
    numbers = batch.texts["en"].caption_ids
    assert numbers is not None
    # 犬 and 狗 lie in one place, 猫 elsewhere.
    assert numbers[0] == numbers[2] != numbers[1]


@pytest.mark.parametrize("bad", [[[1.0, 2.0], [1.0]], [[1.0, float("nan")], [0.0, 1.0]]])
def test_vectors_of_unequal_length_or_not_finite_are_refused(bad: list[list[float]], tmp_path: Path) -> None:
    pq.write_table(pa.table({"key": ["a", "b"], "embedding": bad}), tmp_path / "bad.parquet")
    with pytest.raises(DcclipError, match="not vectors of one length"):
        open_pairs(tmp_path / "bad.parquet")
