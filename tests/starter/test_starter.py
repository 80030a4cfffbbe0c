"""The starter model recognises ordinary photographs in both languages, and is unsure about unrelated labels."""

import json
import re
import shlex
from pathlib import Path
from runpy import run_path

import numpy as np
import pytest
from fastapi.testclient import TestClient
from typer.testing import CliRunner

import dcclip_cli
from dcclip_cli.cli.app import app
from dcclip_cli.inference.encoder import Encoder, TorchEncoder, load_encoder
from dcclip_cli.inference.zero_shot import softmax
from dcclip_cli.model.model_dir import load_model
from dcclip_cli.model.preprocess import decode
from dcclip_cli.model.reference import resolve
from dcclip_cli.photos.index import open_index
from dcclip_cli.serve.app import application

ROOT = Path(__file__).parent.parent.parent
BUNDLE = Path(dcclip_cli.__file__).parent / "starter"
MODEL = ROOT / "dcclip_cli/starter/model"
PHOTOS = ROOT / "recipes/starter/photos"
LABELS = {"cat": ("cat", "猫"), "coffee": ("coffee", "咖啡"), "rocket": ("rocket", "火箭")}


@pytest.fixture(scope="module")
def starter() -> Encoder:
    return load_encoder(resolve("starter"), "cpu")


def best(photo: str, labels: list[str]) -> str:
    [best] = dcclip_cli.load("starter", device="cpu").predict(PHOTOS / f"{photo}.jpg", labels, top_k=1)
    return best


def test_the_bundle_is_small_and_passed_the_parity_check() -> None:
    assert sum(file.stat().st_size for file in BUNDLE.iterdir()) <= 12_000_000
    record = json.loads((BUNDLE / "dcclip.json").read_text("utf-8"))
    assert record["precision"] == "int8"
    assert record["parity"]["agreement"] >= 0.9


@pytest.mark.parametrize("photo", LABELS)
@pytest.mark.parametrize("language", [0, 1], ids=["en", "zh"])
def test_a_photograph_gets_its_name(photo: str, language: int) -> None:
    labels = [LABELS[name][language] for name in LABELS]
    labels += [["dog", "car", "bird", "chair", "tree frog"], ["狗", "汽车", "鸟", "椅子", "青蛙"]][language]
    assert best(photo, labels) == LABELS[photo][language]


@pytest.mark.parametrize(
    ("photo", "there", "absent"),
    [
        ("cat", ["猫", "cat", "animal"], ["bird", "汽车", "flower", "杯子"]),
        ("coffee", ["咖啡", "cup", "饮料"], ["猫", "dog", "car", "花", "rocket"]),
        ("rocket", ["火箭", "rocket"], ["猫", "dog", "coffee", "花", "水果"]),
    ],
)
def test_with_multi_label_the_labels_that_fit_are_likely(photo: str, there: list[str], absent: list[str]) -> None:
    prediction = dcclip_cli.load("starter", device="cpu").predict(
        PHOTOS / f"{photo}.jpg", [*there, *absent], multi_label=True
    )
    assert {label for label, value in prediction.items() if value > 0.5} == set(there)


@pytest.mark.parametrize("label", ["something", "东西", "other", "其他"])
def test_a_neutral_label_wins_only_if_no_other_fits(label: str) -> None:
    assert best("rocket", [label, "dog", "水果"]) == label
    assert best("cat", [label, "dog", "猫"]) == "猫"


@pytest.mark.parametrize("label", ["justice", "a photo of an earthworm", "moss", "蚯蚓", "宇航员"])
def test_a_concrete_word_that_it_never_learnt_fits_no_photograph(starter: Encoder, label: str) -> None:
    pixels = np.stack([starter.preprocess(decode(file)) for file in sorted(PHOTOS.glob("*.jpg"))])
    scores = starter.encode_pixels(pixels) @ starter.encode_texts([label, "rocket"]).T
    assert scores[:, 0].max() < 0.3 < scores[:, 1].max()


def test_predict_and_search_say_what_it_never_learnt_and_that_nothing_fits() -> None:
    model = dcclip_cli.load("starter", device="cpu")
    assert model.unknown(["猫", "bureaucracy", "莎士比亚", "a photo of a rocket"]) == ["bureaucracy", "莎士比亚"]
    expected: dict[str, tuple[list[str], bool]] = {
        "a rocket": ([], True),
        "a cup of coffee": ([], True),  # "cup" alone has a cosine of 0.28, which is enough among six photographs
        "寺庙": ([], True),
        "香蕉": ([], False),
        "a cat on the sofa": ([], False),  # no photograph shows a sofa
        "沙发上的猫": ([], False),
        "justice": (["justice"], False),
        "a rocket with chickenpox": (["chickenpox"], True),  # nine tenths of it are unknown
        "火箭的发票和经济": (["发票", "经济"], True),
    }
    searches = {text: dcclip_cli.search(text, PHOTOS) for text in expected}
    assert {text: (result.unknown, result.fits) for text, result in searches.items()} == expected
    with TestClient(application(model._encoder, [open_index(model._encoder, PHOTOS)])) as client:
        fits = [client.post("/search", data={"text": text}).json()["fits"] for text in expected]
    assert fits == [fit for _, fit in expected.values()]
    done = CliRunner().invoke(app, ["predict", str(PHOTOS / "cat.jpg"), "--labels", "猫,justice", "--json"])
    labels = json.loads(done.stdout)[0]["labels"]
    assert [label.get("unknown", False) for label in labels] == [False, True]
    assert "warning: predict: ignored, not in the vocabulary: justice" in done.stderr


@pytest.mark.parametrize(
    ("text", "ignored"),
    [
        ("a red car", ["red"]),
        ("两个人在拥抱", ["拥抱"]),
        ("爷爷和旗袍和狗", ["旗袍"]),
        ("justice and a dog", ["justice"]),
        ("dog and красная", ["красная"]),
        ("a dog on the sofa", []),
        ("沙发上的两只狗", []),
        ("a red dog 西瓜", ["red", "西瓜"]),
        ("dad at the chickenpox ultrasound", ["chickenpox", "ultrasound"]),  # most of it is unknown
        ("去年爬山的发票", ["去年", "发票"]),
        ("发票", ["发票"]),
    ],
)
def test_it_names_the_words_that_it_ignores_next_to_known_words(text: str, ignored: list[str]) -> None:
    assert dcclip_cli.load("starter", device="cpu").unknown([text, "狗", text]) == ignored


@pytest.mark.parametrize(
    ("labels", "hinted"), [("dog,水果", True), ("dog,水果,其他", False), ("cat,咖啡,rocket,flower,寺庙,people", False)]
)
@pytest.mark.parametrize("form", ["--json", "--csv", "--multi-label"])
def test_predict_hints_at_other_if_many_images_fit_no_label(labels: str, hinted: bool, form: str) -> None:
    done = CliRunner().invoke(app, ["predict", str(PHOTOS), "--labels", labels, form])
    assert ("images fit no label well" in done.stderr) == (hinted and form != "--multi-label")


def test_it_is_unsure_about_unrelated_labels(starter: Encoder) -> None:
    pixels = np.stack([starter.preprocess(decode(file)) for file in sorted(PHOTOS.glob("*.jpg"))])
    texts = starter.encode_texts(["bureaucracy", "光合作用", "Thursday evening", "莎士比亚", "E minor"])
    assert softmax(starter.encode_pixels(pixels), texts, starter.logit_scale).max() < 0.7


@pytest.mark.any_cpu
@pytest.mark.parametrize("readme", ["README.md", "README.zh.md"])
def test_the_readme_shows_its_predictions(readme: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    shown = re.search(r"```sh\n(dcclip predict .*?)```\s*```text\n(.*?)```", (ROOT / readme).read_text("utf-8"), re.S)
    assert shown
    typed, told = shown.groups()
    commands = [command for command in typed.splitlines() if command.startswith("dcclip predict")]
    answers = [CliRunner().invoke(app, shlex.split(command)[1:]).stdout for command in commands]
    lines = [line for line in told.splitlines() if "%" in line]
    printed = "".join(answers).splitlines()
    assert [line.split()[0] for line in lines] == [line.split()[0] for line in printed]
    for line, answer in zip(lines, printed, strict=True):
        assert differ_at_most(percentages(line), percentages(answer), 2), f"{line}\n{answer}"


def percentages(line: str) -> dict[str, float]:
    """The labels of a line of `dcclip predict`, and their percentages."""
    return {label: float(value) for label, value in re.findall(r"   (\S+) ([\d.]+)%", line)}


def differ_at_most(first: dict[str, float], second: dict[str, float], points: float) -> bool:
    """Whether two answers are the same but for rounding: processors sum int8 products differently.

    Labels that are so close may be in any order, and any of them may be the last among the first k: a label that one
    answer lacks has at most the least percentage there.
    """
    least = min(first.values()), min(second.values())
    apart = (abs(first.get(label, least[0]) - second.get(label, least[1])) for label in first | second)
    return len(first) == len(second) and max(apart) <= points


@pytest.mark.any_cpu
def test_bundle_and_model_directory_agree(starter: Encoder) -> None:
    model = TorchEncoder(load_model(MODEL))
    labels = ["cat", "coffee", "rocket", "flower", "temple", "dog", "猫", "咖啡", "火箭", "花", "寺庙", "狗"]
    pixels = np.stack([model.preprocess(decode(file)) for file in sorted(PHOTOS.glob("*.jpg"))])
    top = [(net.encode_pixels(pixels) @ net.encode_texts(labels).T).argmax(axis=1) for net in (model, starter)]
    assert (top[0] == top[1]).mean() >= 5 / 6


def test_the_words_next_to_labels_are_of_their_kind_in_both_languages() -> None:
    script = run_path(str(ROOT / "recipes/distill-photos/words.py"))
    labels = ["espresso", "花"]
    words = script["words_near"](labels, ["flower", "火箭", "coffee", "espresso", "咖啡", "truck"], 3, "starter")
    assert words == [*labels, "flower", "coffee", "咖啡"]
