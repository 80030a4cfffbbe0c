"""Words of the starter: held out, known by their kinds, and the places of their embeddings."""

import importlib
import json
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer
from torch import Tensor
from torch.nn.functional import gelu, normalize

from dcclip_cli.inference.encoder import Encoder, load_encoder
from dcclip_cli.inference.zero_shot import unknown_of
from dcclip_cli.model.reference import resolve

STARTER, STARTER_MODEL = (Path(__file__).parents[2] / name for name in ("recipes/starter", "dcclip_cli/starter/model"))
sys.path.append(str(STARTER))
held_out, space, vocabulary = (importlib.import_module(name) for name in ("held_out", "space", "vocabulary"))

HELD_OUT = held_out.read()
WORDS = vocabulary.read_more()


def test_there_are_more_than_400_words_of_eight_kinds_in_both_languages() -> None:
    kinds = Counter(word.kind for word in HELD_OUT)
    assert kinds.keys() == {*held_out.KINDS.values(), "place", "brand"}
    assert min(kinds.values()) >= 40
    assert len({word.en.casefold() for word in HELD_OUT}) == len({word.zh for word in HELD_OUT}) == len(HELD_OUT) == 425
    assert all(word.en.isascii() and not word.zh.isascii() for word in HELD_OUT)


def test_no_training_word_is_among_them() -> None:
    taught = {word.casefold() for word in (STARTER / "words.txt").read_text("utf-8").splitlines()}
    names = json.loads((STARTER.parent.parent / "dcclip_cli/data/prompts/imagenet.json").read_text("utf-8"))
    taught |= {name.casefold() for language in ("en", "zh") for name in names[language]["names"]}
    taught |= {name for group in names["zh"]["alternates"].values() for name in group}
    taught |= set((STARTER / "unknown.zh.txt").read_text("utf-8").split())
    for line in (STARTER / "words.tsv").read_text("utf-8").splitlines()[1:]:
        taught |= {word.casefold() for words in line.split("\t")[:2] for word in words.split(";")}
    taught |= {word for _, words in vocabulary.lines("grammar.tsv") for word in words.split()}
    for name in ("sums.tsv", "mixtures.tsv"):
        taught |= {word for en, zh, *_ in vocabulary.lines(name) for word in f"{en};{zh}".split(";")}
    taught |= {word for _, words in vocabulary.lines("regional.tsv") for word in words.split(";")}
    assert {"dog", "狗", "正义", "people", "计程车"} <= taught
    assert not taught & {word for held in HELD_OUT for word in (held.en.casefold(), held.zh)}


# ---- words that it knows by their kinds: near known words of their kind, and in no other text


NAMES = {word for words in WORDS for word in (*words.en, *words.zh)}


@pytest.fixture(scope="module")
def starter() -> Encoder:
    return load_encoder(resolve("starter"), "cpu")


def test_every_word_is_one_token() -> None:
    tokenizer = Tokenizer.from_file(str(STARTER_MODEL / "tokenizer.json"))
    ids = [encoding.ids for encoding in tokenizer.encode_batch(sorted(NAMES), add_special_tokens=False)]
    assert len(NAMES) > 2000
    assert all(len([number for number in row if number != tokenizer.token_to_id("<pad>")]) == 1 for row in ids)
    assert not any("[UNK]" in row or tokenizer.token_to_id("<unk>") in row for row in ids)


@pytest.mark.parametrize(
    ("words", "known", "other"),
    [
        (("emu", "emus", "鸸鹋"), "ostrich", "car"),
        (("brontosaurus", "雷龙"), "triceratops", "dog"),
        (("persimmon", "醋栗"), "strawberry", "chair"),
        (("kebabs", "烤肉串"), "dish", "猫"),
    ],
)
@pytest.mark.parametrize("template", ["{}", "a photo of a {}", "一张{}的照片"])
def test_a_word_is_half_way_to_known_words_of_its_kind(
    starter: Encoder, words: tuple[str, ...], known: str, other: str, template: str
) -> None:
    usual = [word for word in words if word.isascii() != ("一" in template) or template == "{}"]
    texts = starter.encode_texts([template.format(word) for word in usual])
    near, far = (texts @ starter.encode_texts([known, other]).T).T
    assert np.all((near > 0.2) & (near < 0.7)), near
    assert far.max() < near.min() - 0.2, (near, far)


# ---- one embedding for one meaning, sums for several, and what it says that it does not know


@pytest.mark.parametrize(
    ("text", "same"),
    [
        ("向日葵", "sunflowers"),
        ("出租车", "計程車"),
        ("大熊猫", "大熊貓"),
        ("一只狗的照片", "dogs"),
        ("person", "人们"),
        ("cellphone", "行動電話"),
        ("🐶", "狗"),
        ("binocular", "双筒望远镜"),
        ("musical instrument", "乐器"),
        ("soccer players", "足球運動員"),
        ("冲浪的浪花", "a surfer on a wave"),
        ("a dog sits for the camera", "a dog sits"),
        ("dogs beside each other", "狗"),
        ("一个叼东西的小孩", "child"),
        ("叼着烟的男人", "a man with a stick"),
        ("冰上的孩子", "child on the ice"),
    ],
)
def test_words_of_one_meaning_have_one_embedding(starter: Encoder, text: str, same: str) -> None:
    first, second = starter.encode_texts([text, same])
    assert first @ second > 0.99


@pytest.mark.parametrize(
    ("text", "animal"),
    [
        ("羊肉", "羊"),
        ("馬肉", "馬"),
        ("dog toy", "dog"),
        ("a photo of a cat mask", "cat"),
        ("a boy with a stick", "dog"),
        ("叼着煙的老人", "狗"),
    ],
)
def test_what_names_or_suggests_an_animal_is_none(starter: Encoder, text: str, animal: str) -> None:
    first, second = starter.encode_texts([text, animal])
    assert first @ second < 0.3


@pytest.mark.parametrize(("text", "parts"), [("踢足球", ["soccer ball", "橄榄球"]), ("waterfall", ["geyser", "悬崖"])])
def test_what_is_no_class_is_between_what_its_photographs_show(starter: Encoder, text: str, parts: list[str]) -> None:
    cosines = starter.encode_texts([text]) @ starter.encode_texts(parts).T
    assert np.all((cosines > 0.2) & (cosines < 0.8)), cosines


@pytest.mark.parametrize(
    ("text", "cosines"),
    [(["一只狗在汽车旁边", "dog", "car"], [0.7, 0.7]), (["a dog with a ball", "狗", "玩球"], [0.9, 0.4])],
)
def test_a_sentence_is_between_its_words_by_their_weights(
    starter: Encoder, text: list[str], cosines: list[float]
) -> None:
    sentence, *words = starter.encode_texts(text)
    assert [round(float(sentence @ word), 1) for word in words] == cosines


@pytest.mark.parametrize("language", ["en", "zh"])
def test_it_says_of_most_held_out_words_and_of_no_other_that_it_never_learnt_them(
    starter: Encoder, language: str
) -> None:
    held = [getattr(word, language) for word in HELD_OUT]
    learned = [word for word in (STARTER / "words.txt").read_text("utf-8").splitlines() if word not in held]
    learned += ["一只狗在草地上", "a man with a beard", "三只小猫", "several trucks"]
    assert unknown_of(starter, learned) == []
    marked = {*held} & {*unknown_of(starter, held)}
    assert len(marked) / len(held) > {"en": 0.95, "zh": 0.6}[language]


# Six classes: 0 and 1 of one kind, 2 to 5 of another, all of them things.
UNDER = {
    "thing": frozenset(range(6)),
    "bird": frozenset({0, 1}),
    "tool": frozenset({2, 3, 4, 5}),
    **{f"class {number}": frozenset({number}) for number in range(6)},
}


@pytest.fixture(scope="module")
def places() -> Tensor:
    return space.places(space.kinship(UNDER, classes=6))


def test_a_word_is_nearer_to_each_of_its_classes_than_to_any_other(places: Tensor) -> None:
    images = space.in_space(places)
    for classes in UNDER.values():
        cosines = images @ space.place_of(classes, places)
        rest = [cosines[number] for number in range(6) if number not in classes]
        assert all(cosines[number] > max(rest, default=-1) for number in classes)


def test_the_head_maps_a_clear_image_to_its_class_and_an_unclear_one_to_unknown(places: Tensor) -> None:
    head = space.head(torch.eye(6), torch.zeros(6), places)

    def seen(logits: Tensor) -> Tensor:
        hidden = gelu(head["head.mlp.fc1.weight"] @ logits + head["head.mlp.fc1.bias"])
        return normalize(head["head.mlp.fc2.weight"] @ hidden + head["head.mlp.fc2.bias"], dim=0)

    clear = torch.zeros(6)
    unclear = torch.zeros(6)
    clear[3] = space.THRESHOLD + 4
    expected = normalize(4 * space.in_space(places)[3] + space.unknown(), dim=0)  # DOUBT is 1
    assert torch.allclose(seen(clear), expected, atol=1e-2)
    assert torch.allclose(seen(unclear), space.unknown(), atol=1e-2)
