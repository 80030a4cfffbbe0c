"""Lines made of lines: what they are made of, and that the same come again."""

import re
from pathlib import Path

import pytest

from dcclip_cli.data.dataset import ConcatDataset
from dcclip_cli.data.pair import PairDataset
from dcclip_cli.data.unpaired import open_texts, with_phrases
from dcclip_cli.errors import DcclipError

ZH = ("猫", "小狗", "热气球", "红色")
EN = ("cat", "puppy", "hot air balloon", "red")


@pytest.fixture
def plain(tmp_path: Path) -> PairDataset:
    """Four names in each language, a list and a sentence in each, every one in a line of its own."""
    others = ("猫，动物", "一只橘色的小猫在窗台上晒太阳", "cat, animal", "an orange kitten basks on the window sill")
    (tmp_path / "words.txt").write_text("\n".join([*ZH, *EN, *others]), "utf-8")
    return open_texts(tmp_path / "words.txt")


@pytest.fixture
def parallel(tmp_path: Path) -> PairDataset:
    (tmp_path / "words.tsv").write_text("".join(f"{zh}\t{en}\n" for zh, en in zip(ZH, EN, strict=True)), "utf-8")
    return open_texts(tmp_path / "words.tsv")


def made(lines: PairDataset, language: str, given: int) -> list[str]:
    return [texts[0] for texts in lines.captions("zh" if language == "zh" else "en")[given:] if texts]


@pytest.mark.parametrize(("language", "words", "joins"), [("zh", ZH, ("", "，")), ("en", EN, (" ", ", "))])
def test_a_phrase_is_two_or_three_names_joined_or_listed(
    plain: PairDataset, language: str, words: tuple[str, ...], joins: tuple[str, str]
) -> None:
    phrases = made(with_phrases(plain, 400), language, len(plain))
    word = "|".join(words)
    for join in joins:
        for count in (2, 3):
            pattern = re.compile(join.join([f"({word})"] * count))
            phrases_of_a_kind = {phrase for phrase in phrases if pattern.fullmatch(phrase)}
            assert len(phrases_of_a_kind) > 5, (join, count)
    assert all(re.fullmatch(f"({word})(({joins[0]}|{joins[1]})({word})){{1,2}}", phrase) for phrase in phrases)


def test_phrases_follow_the_lines_in_equal_shares_of_the_languages(plain: PairDataset) -> None:
    lines = with_phrases(plain, 400)
    assert (len(lines), lines.num_images) == (412, 0)
    assert [lines[row] for row in range(12)] == [plain[row] for row in range(12)]
    assert 150 < len(made(lines, "zh", 12)) < 250
    assert all(bool(lines[row].zh) != bool(lines[row].en) for row in range(412))


def test_parallel_text_stays_parallel(parallel: PairDataset) -> None:
    lines = with_phrases(parallel, 200)
    english = dict(zip(ZH, EN, strict=True))
    for row in range(4, 204):
        zh, en = lines[row].zh[0], lines[row].en[0]
        parts = re.findall("|".join(ZH), zh)
        assert en == (", " if "，" in zh else " ").join(english[part] for part in parts)


def test_the_same_lines_make_the_same_phrases_and_other_counts_are_other_data(plain: PairDataset) -> None:
    first, again, more = (with_phrases(plain, count) for count in (30, 30, 31))
    assert first.captions("zh") == again.captions("zh") == more.captions("zh")[:-1]
    assert first.captions("en") == again.captions("en") == more.captions("en")[:-1]
    prints = [ConcatDataset([lines]).fingerprint for lines in (plain, first, again, more)]
    assert prints[1] == prints[2]
    assert len(set(prints)) == 3


@pytest.mark.parametrize(
    "text", ["猫，狗\ncat, dog\n", "一只橘色的小猫在窗台上\nan orange kitten on the window sill\n", "猫\ncat\n"]
)
def test_lines_of_which_no_two_can_be_joined_are_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "a.txt").write_text(text, "utf-8")
    with pytest.raises(DcclipError, match=r"a\.txt has no two short texts to make phrases of") as raised:
        with_phrases(open_texts(tmp_path / "a.txt"), 10)
    assert "data.phrases" in raised.value.hint
