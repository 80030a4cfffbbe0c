from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
from PIL import Image

import dcclip_cli
from dcclip_cli.eval import registry
from dcclip_cli.eval.embedding import class_texts, lost
from dcclip_cli.eval.evaluate import EvalOptions, evaluate, open_datasets
from dcclip_cli.eval.report import write_report
from dcclip_cli.eval.result import sha256_of
from dcclip_cli.inference.encoder import Encoder
from dcclip_cli.model.reference import resolve
from tests.eval import layouts


class Characters:
    """A tokenizer by characters, of at most `length`: one that is not in `known` is token 1, padding is 0."""

    def __init__(self, known: str, length: int = 30) -> None:
        self.known, self.length = known, length

    def tokenize(self, texts: Sequence[str]) -> np.ndarray:
        rows = [[2 + self.known.index(char) if char in self.known else 1 for char in text] for text in texts]
        return np.asarray([(row + [0] * self.length)[: self.length] for row in rows])


def asked(known: str, names: Sequence[str], alternates: dict[str, list[str]], *templates: str, **more: Any) -> Any:
    return class_texts(cast(Encoder, Characters(known, **more)), names, alternates, templates or ("一张{}的照片。",))


ANIMALS = ["蝾螈", "狗", "猞猁", "犰狳", "cat"]
OTHERS = {"猞猁": ["猞", "山猫"], "犰狳": ["铠鼠"], "狗": ["犬"]}
KNOWN = "一张的照片。狗山猫铠鼠cat"


@pytest.mark.parametrize(
    ("known", "names", "alternates", "expected", "alike"),
    [
        (KNOWN, ANIMALS, OTHERS, ["蝾螈", "狗", "山猫", "铠鼠", "cat"], ()),  # the same tokens, alternates that are not
        (KNOWN, ["獴", "鹎", "狗"], {"獴": ["鹎"], "鹎": ["鹎鸟", "狗"]}, ["獴", "鹎鸟", "狗"], ()),  # 狗 is a class
        # With unknown characters only where it is needed.
        (KNOWN + "虹鱼", ["鳐鱼", "鳟鱼"], {"鳐鱼": ["鳐"], "鳟鱼": ["虹鳟"]}, ["鳐鱼", "虹鳟"], ()),
        ("一张的照片。", ["蝾螈", "猞猁", "犰狳"], {"犰狳": ["铠鼠", "犰狳兽"]}, ["蝾螈", "猞猁", "犰狳兽"], ((0, 1),)),
        ("".join(ANIMALS), ANIMALS, OTHERS, ANIMALS, ()),  # all names are read
        ("misle", ["missile", "missile"], {"missile": ["rocket"]}, ["missile", "missile"], ((0, 1),)),  # one name
    ],
)  # fmt: skip
def test_names_that_are_the_same_tokens_take_an_alternate_that_is_not(
    known: str, names: list[str], alternates: dict[str, list[str]], expected: list[str], alike: tuple[Any, ...]
) -> None:
    found = asked(known, names, alternates)
    assert (found.names, found.alike) == (tuple(expected), alike)
    assert found.replaced == {name: other for name, other in zip(names, expected, strict=True) if name != other}


def test_names_that_are_cut_in_one_template_only_are_not_alike() -> None:
    long, short = "照片一张的照片一张的{}", "{}"
    assert asked("一张的照片狗猫", ["狗", "猫"], {}, long, length=8).alike == ((0, 1),)
    assert asked("一张的照片狗猫", ["狗", "猫"], {}, long, short, length=8).alike == ()


def test_the_loss_is_all_but_the_largest_class_of_each_group() -> None:
    labels = np.asarray([0, 0, 0, 1, 2, 2, 3, 3, 3, 3])
    assert lost([(0, 1), (2, 3)], labels, per_class=False) == pytest.approx((1 + 2) / 10)
    assert lost([(0, 1), (2, 3)], labels, per_class=True) == pytest.approx(2 / 4)
    assert lost([(0, 9)], labels, per_class=True) == 0  # no image is of class 9
    assert lost([], labels, per_class=False) == 0


def test_names_that_the_tokenizer_reads_alike_are_in_the_result_and_in_the_report(
    tmp_path: Path, chinese_clip_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(registry.SETS, "cifar10", replace(registry.SETS["cifar10"], size=20))
    layouts.wds(tmp_path / "cifar10", "test", [b"0 1 2 3 4 5 6 7 8 9".split()[at % 10] for at in range(20)], ".cls")
    options = EvalOptions(datasets=("cifar10", "cifar10-cn"), data_root=str(tmp_path))
    en, zh = evaluate([resolve(str(chinese_clip_folder))], open_datasets(options), options, device="cpu")
    # 猫 and the characters of the templates are all that this vocabulary has in common with these names.
    assert "猫" not in zh.replaced and zh.indistinct[-1] == ["鸟", "鹿", "狗", "马", "船"]
    assert zh.lost == pytest.approx(sum(len(group) - 1 for group in zh.indistinct) / 10)
    assert zh.class_names[3] == "猫" and zh.class_names_sha256 == sha256_of(zh.class_names)
    write_report(tmp_path / "report.html", [zh])
    assert "鸟 = 鹿 = 狗 = 马 = 船" in (tmp_path / "report.html").read_text("utf-8")
    assert (en.replaced, en.indistinct, en.lost) == ({}, [], 0.0)  # letters are in the vocabulary


def test_names_read_alike_are_said_once_for_all_data_sets_languages_and_models(
    tmp_path: Path, chinese_clip_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    names = {"a": ["鸟", "鹿"], "b": ["狗", "马"]}
    for folder, several in names.items():
        for number, name in enumerate(several):
            Path(folder, name).mkdir(parents=True)
            Image.new("RGB", (32, 32), (number * 200, 0, 0)).save(Path(folder, name, "1.png"))
    said: list[str] = []
    model = str(chinese_clip_folder)
    dcclip_cli.evaluate(model=[model, f"hf:{model}"], datasets=["./a", "./b"], progress=said.append)
    (warning,) = (line for line in said if "like others" in line)
    assert warning.startswith("a zh, ") and warning.endswith(
        "2 classes like others, such as 鸟 = 鹿: at least 50.0 points are lost (and 3 more results)"
    )
