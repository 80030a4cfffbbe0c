"""Tokenizers trained on captions, and the teacher's trimmed to them."""

import json
from pathlib import Path

import pytest
from tokenizers import Tokenizer, models

from dcclip_cli.core.errors import DcclipError
from dcclip_cli.data.dataset import open_pairs
from dcclip_cli.data.pair import LANGUAGES
from dcclip_cli.model.tokenizer import (
    BEGIN_ID,
    END_ID,
    PADDING_ID,
    UNKNOWN_ID,
    load_tokenizer,
    save_tokenizer,
    tokenize_with,
    train_tokenizer,
    trim_tokenizer,
)

EMOJI = Path(__file__).resolve().parents[2] / "recipes/quickstart/train.parquet"


@pytest.fixture(scope="module")
def trained(captions: list[str]) -> Tokenizer:
    return train_tokenizer(captions, 300)


@pytest.mark.parametrize("text", ["红色的三角形", "red circle", "一张 red 圆环的图片"])
def test_special_tokens_are_those_of_xlm_roberta_and_chinese_is_split_into_characters(
    trained: Tokenizer, text: str
) -> None:
    ids = [trained.token_to_id(token) for token in ("<s>", "<pad>", "</s>", "<unk>")]
    assert ids == [BEGIN_ID, PADDING_ID, END_ID, UNKNOWN_ID] == [0, 1, 2, 3]
    first, *middle, last = trained.encode(text).ids
    assert (first, last) == (BEGIN_ID, END_ID) and min(middle) > UNKNOWN_ID
    assert text != "红色的三角形" or trained.encode(text, add_special_tokens=False).tokens == list(text)


@pytest.mark.parametrize(
    ("one", "other"),
    [("Red CIRCLE", "red circle"), ("ｒｅｄ　ｃｉｒｃｌｅ", "red circle"), ("红色，圆", "红色,圆"), ("（圆）", "(圆)")],
)
def test_case_and_full_width_forms_make_no_difference(trained: Tokenizer, one: str, other: str) -> None:
    assert trained.encode(one).ids == trained.encode(other).ids


def repeated(captions: list[str], size: int) -> dict[str, float]:
    """The scores of a tokenizer that is the same in each of several trainings."""
    trained = [json.loads(train_tokenizer(captions, size).to_str())["model"]["vocab"] for _ in range(8)]
    assert trained[1:] == trained[:-1]
    return dict(trained[0])


def test_characters_that_training_prunes_and_puts_back_have_the_same_scores_each_time() -> None:
    pairs = open_pairs(str(EMOJI))
    scores = repeated(
        [text for number in range(0, 224, 7) for name in LANGUAGES for text in pairs[number].captions(name)], 1000
    )
    assert scores["v"] == min(scores.values()) and scores["z"] == pytest.approx(scores["v"] + 1e-4)
    # Here l and u are put back next to others as rare, which occur once each.
    scores = repeated(
        ["橙色的", "红色的", "绿色的", "蓝色的", "黑色的", "black", "blue", "green", "orange", "red"], 300
    )
    rare = sorted(scores[piece] for piece in "bcdko橙红绿蓝黑lu")
    assert rare[-1] == pytest.approx(min(scores.values()) + 1e-4)


def test_trimming_drops_unused_tokens_keeps_the_segmentation_and_renumbers_special_tokens(
    altclip_folder: Path, captions: list[str]
) -> None:
    full = load_tokenizer(altclip_folder)
    trimmed = trim_tokenizer(altclip_folder, captions, 70)
    assert trimmed.get_vocab_size() < full.get_vocab_size() == 79
    new = ["蓝色的月亮", "一张方块的图片", "black moon", "a picture of a ring", "red 圆环 green"]
    for text in [*captions, *new]:
        assert trimmed.encode(text).tokens == full.encode(text).tokens
    assert {"▁dog", "猫", "小猫", "▁bicycle"} <= set(full.get_vocab()) - set(trimmed.get_vocab())
    assert [trimmed.token_to_id(token) for token in ("<s>", "<pad>", "</s>", "<unk>")] == [0, 1, 2, 3]
    assert trimmed.token_to_id("<mask>") == trimmed.get_vocab_size() - 1
    assert (trimmed.encode("红").ids[0], trimmed.encode("red").ids[-1]) == (0, 2)
    assert 3 in trimmed.encode("犬").ids
    assert trim_tokenizer(altclip_folder, captions, 79).get_vocab() == full.get_vocab()


def test_trimming_keeps_words_added_as_tokens_where_captions_use_them(altclip_folder: Path, tmp_path: Path) -> None:
    full = load_tokenizer(altclip_folder)
    full.add_tokens(["moon lamp", "月灯", "拉花咖啡"])
    full.save(str(tmp_path / "tokenizer.json"))
    trimmed = trim_tokenizer(tmp_path, ["red moon lamp", "红色的拉花咖啡"], 30)
    assert {"moon lamp", "拉花咖啡"} <= set(trimmed.get_vocab()) and "月灯" not in trimmed.get_vocab()
    for text in ("red moon lamp", "拉花咖啡", "红色的"):
        assert trimmed.encode(text).tokens == full.encode(text).tokens
    assert sorted(trimmed.get_vocab().values()) == [*range(trimmed.get_vocab_size())]  # each has a row of a table


def test_trimming_to_fewer_tokens_keeps_the_commonest(altclip_folder: Path) -> None:
    # six that are always kept (<s> <pad> </s> <unk> <mask> ▁), then ▁red three times, ▁green twice, ▁blue once
    trimmed = trim_tokenizer(altclip_folder, ["red", "red green", "red green blue"], 8)
    assert set(trimmed.get_vocab()) == {"<s>", "<pad>", "</s>", "<unk>", "<mask>", "▁", "▁red", "▁green"}


def test_unknown_characters_get_no_cheaper_by_trimming(tmp_path: Path) -> None:
    # a lowest score far below the others makes unknown characters expensive; without it they would be cheap
    special = ["<s>", "<pad>", "</s>", "<unk>"]
    vocab = [*((token, 0.0) for token in special), ("ab", -20.0), ("cd", -20.0), ("bcd", -1.0), ("狗", -50.0)]
    full = Tokenizer(models.Unigram(vocab, unk_id=3))
    full.add_special_tokens(special)
    full.save(str(tmp_path / "tokenizer.json"))
    trimmed = trim_tokenizer(tmp_path, ["abcd", "bcd"], 7)
    assert "狗" not in trimmed.get_vocab() and {"ab", "cd", "bcd"} <= set(trimmed.get_vocab())
    # ab + cd costs 40; with 10 below -20 for the unknown a, a + bcd would cost 31
    assert trimmed.encode("abcd").tokens == full.encode("abcd").tokens == ["ab", "cd"]


def test_single_characters_fill_up_the_vocabulary_where_asked_for(altclip_folder: Path) -> None:
    plain, filled = (
        trim_tokenizer(altclip_folder, ["red"], 30, characters).get_vocab() for characters in (False, True)
    )
    assert len(plain) == 7 and len(filled) == 30
    assert set("abcdefghijklmnopqrstuv") <= set(filled) and "猫" not in filled  # ASCII first


def test_a_tokenizer_other_than_unigram_is_refused(chinese_clip_folder: Path) -> None:
    with pytest.raises(DcclipError, match="is a WordPiece tokenizer; only Unigram tokenizers can be trimmed") as raised:
        trim_tokenizer(chinese_clip_folder, ["猫", "cat"], 50)
    assert "from: data" in raised.value.hint


def test_texts_are_padded_to_the_longest_and_truncated_texts_keep_their_end_token(trained: Tokenizer) -> None:
    tokens = tokenize_with(trained, {"context_length": 24})(["红", "红色的圆"])
    assert tokens.ids.shape == (2, 6)  # <s> 红 色 的 圆 </s>
    assert tokens.mask.tolist() == [[1, 1, 1, 0, 0, 0], [1, 1, 1, 1, 1, 1]]
    assert tokens.ids[0, 2:].tolist() == [END_ID, PADDING_ID, PADDING_ID, PADDING_ID]
    for ids in tokenize_with(trained, {"context_length": 12})(["红色的圆" * 20, "red circle " * 20]).ids:
        assert (len(ids), ids[0], ids[-1]) == (12, BEGIN_ID, END_ID)


def test_white_space_around_and_between_words_makes_no_difference(trained: Tokenizer) -> None:
    ids = tokenize_with(trained, {"context_length": 24})(
        ["  red \n circle\t", "red circle", " 红色 的圆　", "红色 的圆"]
    ).ids.tolist()
    assert ids[0] == ids[1] and ids[2] == ids[3]
    assert tokenize_with(trained, {"context_length": 24})([""]).ids.tolist() == [[BEGIN_ID, END_ID]]


def test_a_saved_tokenizer_is_the_same_in_tokenizers_and_in_transformers(
    tmp_path: Path, trained: Tokenizer, captions: list[str]
) -> None:
    from transformers import AutoTokenizer

    save_tokenizer(trained, tmp_path, 24)
    own_tokenizer = load_tokenizer(tmp_path)
    library_tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    assert library_tokenizer.model_max_length == 24
    for text in [*captions, "一只猫！", "A cat?"]:
        expected = tokenize_with(trained, {"context_length": 24})([text]).ids[0].tolist()
        assert tokenize_with(own_tokenizer, {"context_length": 24})([text]).ids[0].tolist() == expected
        assert library_tokenizer(text, truncation=True, max_length=24)["input_ids"] == expected
