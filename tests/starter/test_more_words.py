"""Words that the starter knows by their kinds: near known words of their kind, behind them, and in no other text."""

import importlib
import json
import sys
from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer

from dcclip_cli.model.reference import resolve
from dcclip_cli.predict.encoder import Encoder, load_encoder

STARTER = Path(__file__).parent.parent.parent / "recipes/starter"
sys.path.append(str(STARTER))
grow, held_out = (importlib.import_module(name) for name in ("grow", "held_out"))

WORDS = grow.read()
NAMES = {word for more in WORDS for word in (*more.en, *more.zh)}


@pytest.fixture(scope="module")
def starter() -> Encoder:
    return load_encoder(resolve("starter"), "cpu")


def test_every_word_is_one_token() -> None:
    tokenizer = Tokenizer.from_file(str(STARTER / "model/tokenizer.json"))
    ids = [one.ids for one in tokenizer.encode_batch(sorted(NAMES), add_special_tokens=False)]
    assert len(NAMES) > 2000
    assert all(len([number for number in one if number != tokenizer.token_to_id("<pad>")]) == 1 for one in ids)
    assert not any("[UNK]" in one or tokenizer.token_to_id("<unk>") in one for one in ids)


def test_none_is_in_a_text_that_was_taught_or_held_out() -> None:
    state = json.loads((STARTER / "model/tokenizer.json").read_text("utf-8"))
    with_them = Tokenizer.from_str(json.dumps(state))
    state["added_tokens"] = [token for token in state["added_tokens"] if token["content"] not in NAMES]
    without = Tokenizer.from_str(json.dumps(state))
    texts = (STARTER / "words.txt").read_text("utf-8").splitlines()
    texts += [
        template.format(word) for held in held_out.read() for word in held[1:] for template in ("{}", "一张{}的照片")
    ]
    texts += (STARTER / "unknown.zh.txt").read_text("utf-8").split()
    changed = zip(with_them.encode_batch(texts), without.encode_batch(texts), strict=True)
    assert [text for text, (now, then) in zip(texts, changed, strict=True) if now.ids != then.ids] == []
    assert with_them.encode("emu").ids != without.encode("emu").ids


@pytest.mark.parametrize(
    ("words", "known", "other"),
    [
        (("emu", "emus", "鸸鹋"), "ostrich", "car"),
        (("brontosaurus", "雷龙"), "triceratops", "dog"),
        (("persimmon", "醋栗"), "strawberry", "chair"),
        (("kebabs", "烤肉串"), "food", "猫"),
    ],
)
@pytest.mark.parametrize("template", ["{}", "a photo of a {}", "一张{}的照片"])
def test_a_word_is_half_way_to_known_words_of_its_kind(
    starter: Encoder, words: tuple[str, ...], known: str, other: str, template: str
) -> None:
    usual = [word for word in words if word.isascii() != ("一" in template) or template == "{}"]
    texts = starter.encode_texts([template.format(word) for word in usual])
    near, far = (texts @ starter.encode_texts([known, other]).T).T
    assert np.all((near > 0.25) & (near < 0.7)), near
    assert far.max() < near.min() - 0.2, (near, far)
