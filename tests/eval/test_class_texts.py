import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from threading import Event, Thread
from typing import cast

import numpy as np
import pytest
from PIL import Image

import dcclip_cli
from dcclip_cli.core.files import lock
from dcclip_cli.core.progress import Silent
from dcclip_cli.core.store import Values
from dcclip_cli.eval.dataset import Classes
from dcclip_cli.eval.embedding import ClassVectors, Embedder, FeatureCache, class_vectors
from dcclip_cli.inference.encoder import Encoder


@dataclass
class Characters:
    """Reads texts by characters, of at most `length`, and embeds them so that different tokens are different vectors.

    A character that is not in `known` is token 1; those in `untrained` are different tokens with one embedding.
    """

    known: str
    untrained: str = ""
    length: int = 30
    name: str = "characters"
    fingerprint: str = "characters"

    def tokenize(self, texts: Sequence[str]) -> np.ndarray:
        rows = [[2 + self.known.index(char) if char in self.known else 1 for char in text] for text in texts]
        return np.asarray([(row + [0] * self.length)[: self.length] for row in rows])

    def encode_texts(self, texts: Sequence[str]) -> np.ndarray:
        same = str.maketrans(dict.fromkeys(self.untrained, self.untrained[:1]))
        rows = self.tokenize([text.translate(same) for text in texts])
        vectors = np.stack([np.random.default_rng(row).normal(size=64) for row in rows]).astype(np.float32)
        return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def asked(model: Characters, names: Sequence[str], alternates: dict[str, list[str]], *templates: str) -> ClassVectors:
    classes = Classes(tuple(names), np.zeros(0), templates or ("一张{}的照片。",), alternates)
    return class_vectors(Embedder(cast(Encoder, model), FeatureCache(None), Silent()), classes)


ANIMALS = ["蝾螈", "狗", "猞猁", "犰狳", "cat"]
OTHERS = {"猞猁": ["猞", "山猫"], "犰狳": ["铠鼠"], "狗": ["犬"]}
KNOWN = "一张的照片。狗山猫铠鼠cat"


MOODS = ["愤怒", "厌恶", "快乐", "恐惧"]


@pytest.mark.parametrize(
    ("model", "names", "alternates", "expected", "alike"),
    [
        (Characters(KNOWN), ANIMALS, OTHERS, ["蝾螈", "狗", "山猫", "铠鼠", "cat"], []),  # the same tokens
        # 狗 is a class.
        (Characters(KNOWN), ["獴", "鹎", "狗"], {"獴": ["鹎"], "鹎": ["鹎鸟", "狗"]}, ["獴", "鹎鸟", "狗"], []),
        # With unknown characters only where it is needed.
        (Characters(KNOWN + "虹鱼"), ["鳐鱼", "鳟鱼"], {"鳐鱼": ["鳐"], "鳟鱼": ["虹鳟"]}, ["鳐鱼", "虹鳟"], []),
        (
            Characters("一张"), ["蝾螈", "猞猁", "犰狳"], {"犰狳": ["铠鼠", "犰狳兽"]},
            ["蝾螈", "猞猁", "犰狳兽"], [[0, 1]],
        ),
        (Characters("".join(ANIMALS)), ANIMALS, OTHERS, ANIMALS, []),  # all names are read
        (Characters("misle"), ["missile"] * 2, {"missile": ["rocket"]}, ["missile"] * 2, [[0, 1]]),  # one name
        # Other tokens with the same embedding: 反感 is as 恐惧 is, so it replaces nothing.
        (
            Characters(KNOWN + "愤怒厌恶快乐恐惧反感讨", "愤怒厌恶恐惧反感"), MOODS,
            {"愤怒": ["反感"], "厌恶": ["反感", "讨厌"], "恐惧": ["快乐"]}, ["愤怒", "讨厌", "快乐", "恐惧"], [[0, 3]],
        ),
        (Characters("abcd ", "bcd"), ["a", "b c", "c d", "d"], {"c d": ["a"]}, ["a", "b c", "c d", "d"], [[1, 2]]),
    ],
)  # fmt: skip
def test_names_with_the_embedding_of_another_take_an_alternate_that_no_class_has(
    model: Characters, names: list[str], alternates: dict[str, list[str]], expected: list[str], alike: list[list[int]]
) -> None:
    classes = asked(model, names, alternates)
    assert (classes.alike, [classes.replaced.get(name, name) for name in names]) == (alike, expected)
    assert classes.vectors == pytest.approx(asked(model, expected, {}).vectors, abs=1e-6)


def test_names_that_are_cut_in_one_template_only_are_not_alike() -> None:
    long = "照片一张的照片一张的{}"
    short = "{}"
    model = Characters("一张的照片狗猫", length=8)
    assert asked(model, ["狗", "猫"], {}, long).alike == [[0, 1]]
    assert asked(model, ["狗", "猫"], {}, long, short).alike == []


def test_names_read_alike_are_said_once_for_all_data_sets_languages_and_models(
    tmp_path: Path, chinese_clip_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    names = {"a": ["鸟", "鹿"], "b": ["狗", "马"]}
    for folder, class_names in names.items():
        for number, name in enumerate(class_names):
            Path(folder, name).mkdir(parents=True)
            Image.new("RGB", (32, 32), (number * 200, 0, 0)).save(Path(folder, name, "1.png"))
    shutil.copytree(chinese_clip_folder, "copy")
    messages: list[str] = []
    model = str(chinese_clip_folder)
    dcclip_cli.evaluate(model=[model, "./copy"], datasets=["./a", "./b"], progress=messages.append)
    (warning,) = (line for line in messages if "warning" in line)
    alike = "2 classes share an embedding with another class, such as 鸟 = 鹿"
    assert warning.startswith("a zh, ")
    assert warning.endswith(f"{alike}: ties decide 100.0 % of the answers (and 3 more results)")


def test_a_command_says_that_it_waits_for_another_one_with_the_same_embeddings(tmp_path: Path) -> None:
    said: list[str] = []
    cache = FeatureCache(tmp_path, said.append)
    waits = Event()

    def compute(places: np.ndarray) -> Iterator[tuple[np.ndarray, Values]]:
        yield places, {"embedding": np.ones((len(places), 4), np.float32)}

    def complete() -> None:
        cache.complete({"model": "鸟 bird"}, [b"a"], compute)
        waits.set()

    complete()
    waits.clear()
    assert said == []
    [folder] = (tmp_path / "features").iterdir()
    with lock(folder / ".lock"):
        thread = Thread(target=complete)
        thread.start()
        assert not waits.wait(0.5)
    thread.join(60)
    assert waits.is_set() and said == [f"another process computes embeddings in {folder}; waiting for it"]
