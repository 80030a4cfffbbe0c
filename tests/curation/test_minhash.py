"""Comparison of captions."""

from __future__ import annotations

import numpy as np
import pytest

from dcclip_cli.curation.dedup.minhash import bands_of, jaccard, letters_of, replaces_a_word, sketches_of, text_hash


def test_letters_and_hashes_ignore_case_width_and_punctuation() -> None:
    assert letters_of("A Cat, 12!") == "acat12"
    assert letters_of("一只猫，ＡＢＣ。") == "一只猫abc"
    assert text_hash("A cat.", "acat") == text_hash("a cat", "acat") != text_hash("a cap", "acap")
    assert text_hash("一只猫。", "一只猫") == text_hash("一只猫", "一只猫") != text_hash("两只猫", "两只猫")
    assert text_hash("🐱", "") != text_hash("🐶", "")


def test_jaccard_is_the_share_of_common_runs_of_three_letters() -> None:
    assert jaccard("abcd", "abce") == pytest.approx(1 / 3)  # abc of abc, bcd, bce
    assert jaccard("一只黑猫", "一只黑狗") == pytest.approx(1 / 3)
    assert jaccard("猫", "猫。") == 1


@pytest.mark.parametrize(
    ("one", "other", "replaced"),
    [
        ("a man on a horse", "a woman on a horse", True),
        ("男人骑马", "女人骑马", True),
        ("a man on a horse", "a man on a horse, stock photo", False),
        ("草地上的狗", "狗在草地上的照片", False),
        ("一只黄色的狗", "一只黄色的狗。", False),
        ("a dog and a cat", "a cat and a dog", False),
        ("one o'clock", "two o'clock", True),
    ],
)
def test_a_replaced_word_changes_the_meaning(one: str, other: str, replaced: bool) -> None:
    assert replaces_a_word(one, other) is replaced


def test_similar_captions_share_a_band_and_others_do_not() -> None:
    dog = "a brown dog runs on the green grass in the park"
    texts = (dog, dog + " today", "two cats sleep on a sofa", "一只猫", "一只猫！")
    one, longer, other, cat, loud_cat = (set(bands) for bands in bands_of(list(map(letters_of, texts))).tolist())
    assert one & longer
    assert not one & other
    assert cat == loud_cat
    assert bands_of(["猫", ""]).shape == (2, 8)


def test_sketches_differ_in_no_more_bits_than_captions_in_trigrams() -> None:
    texts = ["abcdef", "abcdeg", "一只黑猫在沙发上", "一只白猫在沙发上", "猫"]
    sketches = sketches_of(texts)
    assert sketches[:, 0].tolist() == [4, 4, 6, 6, 0]
    bits = np.bitwise_count(sketches[:, 1:] ^ sketches[:1, 1:]).sum(1)
    assert bits.tolist() == [0, 2, 10, 10, 4]  # def and deg; nothing in common
    assert np.bitwise_count(sketches[2, 1:] ^ sketches[3, 1:]).sum() == 6  # 一只黑, 只黑猫, 黑猫在
