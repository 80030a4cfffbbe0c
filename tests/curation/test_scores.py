"""Models judge pairs: cosines of captions, probabilities of prompts and of labels."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pydantic import TypeAdapter, ValidationError

from dcclip_cli.curation.scores import Score
from dcclip_cli.curation.scores.scorers import Agreement, CachingEncoder, Classifier, Prompts, Scorers
from dcclip_cli.data.pair import Pair
from dcclip_cli.errors import DcclipError
from dcclip_cli.model.preprocess import decode
from dcclip_cli.model.teachers import AltClipTeacher, TransformersTeacher

ANY: TypeAdapter[Any] = TypeAdapter(Scorers)


class Colours:
    """A dual encoder for which a picture is its colour, and which knows a few texts."""

    known = {"红": (1, 0, 0), "red, a little green": (0.8, 0.6, 0), "绿": (0, 1, 0), "blue": (0, 0, 1)}
    logit_scale = 2.0
    encoded = 0

    def preprocess(self, image: Image.Image) -> np.ndarray:
        return np.asarray(image.resize((1, 1)), np.float32).transpose(2, 0, 1)

    def encode_pixels(self, pixels: np.ndarray) -> np.ndarray:
        self.encoded += len(pixels)
        vectors = pixels[:, :, 0, 0]
        return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)

    def tokenize(self, texts: Sequence[str]) -> np.ndarray:
        raise NotImplementedError

    def encode_texts(self, texts: Sequence[str]) -> np.ndarray:
        return np.asarray([self.known[text] for text in texts], np.float32)


@pytest.fixture
def colours(monkeypatch: pytest.MonkeyPatch) -> Colours:
    """The model that every dual encoder is in this test."""
    model = Colours()
    encoder = CachingEncoder(model)  # type: ignore[arg-type]
    monkeypatch.setattr("dcclip_cli.curation.scores.scorers.open_encoder", lambda *_: encoder)
    return model


def batch(*pairs: tuple[str, Pair]) -> list[tuple[Pair, Image.Image]]:
    return [(pair, Image.new("RGB", (8, 8), colour)) for colour, pair in pairs]


TWO = batch(
    ("red", Pair("1", b"", zh=("绿", "红"), en=("red, a little green",))),
    ("lime", Pair("2", b"", en=("blue", "red, a little green"))),
)


def test_agreement_is_the_cosine_of_each_caption_with_its_own_image(colours: Colours) -> None:
    first, second = Agreement(model="any").open()(TWO)
    assert numbers(first["agreement"]) == {"zh": pytest.approx([0, 1]), "en": pytest.approx([0.8])}
    assert numbers(second["agreement"]) == {"zh": [], "en": pytest.approx([0, 0.6])}


def test_prompts_add_up_the_probabilities_of_what_is_rejected(colours: Colours) -> None:
    scorer = Prompts(model="any", reject=("红", "red, a little green"), against=("blue",))
    red, lime = scorer.open()(TWO)
    together = math.exp(2 * 1) + math.exp(2 * 0.8)  # red against the three texts: cosines 1, 0.8 and 0
    assert red == {"prompts": pytest.approx(together / (together + 1))}
    together = 1 + math.exp(2 * 0.6)
    assert lime == {"prompts": pytest.approx(together / (together + 1))}


def test_scorers_of_one_model_have_each_picture_encoded_once(colours: Colours) -> None:
    opened = [Agreement(model="any").open(), Prompts(model="any", reject=("红",), against=("绿",)).open()]
    other = batch(("red", TWO[0][0]), ("red", TWO[1][0]))
    for score in (*opened, *opened):
        score(TWO)
    assert colours.encoded == 2
    assert opened[0](other)[1]["agreement"] == {"zh": [], "en": pytest.approx([0, 0.8])}  # equal size, other pictures
    assert colours.encoded == 4


def numbers(scores: object) -> Mapping[str, list[float]]:
    assert isinstance(scores, Mapping)
    return scores


# ---- real models


@pytest.mark.parametrize(("teacher", "precision"), [("altclip_folder", "fp32"), ("chinese_clip_folder", "bf16")])
def test_a_teacher_scores_as_its_reference_does(
    teacher: str, precision: str, pairs: list[Pair], request: pytest.FixtureRequest
) -> None:
    folder = str(request.getfixturevalue(teacher))
    options = TransformersTeacher.model_validate({"model": folder, "precision": precision})
    some = [(pair, decode(pair.image)) for pair in pairs[:6]]
    by_options = flat(Agreement(model=options, device="cpu").open(), some)
    by_reference = flat(Agreement(model=f"hf:{folder}", device="cpu").open(), some)
    assert len(by_options) == 6 * (3 + 3)
    tolerance = {"fp32": 1e-6, "bf16": 3e-2}[precision]
    np.testing.assert_allclose(by_options, by_reference, atol=tolerance)
    assert (by_options == by_reference) == (precision == "fp32")


def flat(score: Score, some: list[tuple[Pair, Image.Image]]) -> list[float]:
    return [value for scores in score(some) for several in numbers(scores["agreement"]).values() for value in several]


# ---- classifiers


def save_classifier(folder: Path, labels: Sequence[str], **config: Any) -> None:
    """A tiny ViT whose logits are 0, 1, 2, ... for every picture: what is left of it is the bias of its last layer."""
    import torch
    from transformers import ViTConfig, ViTForImageClassification, ViTImageProcessor

    config |= {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 1}
    names = {"id2label": dict(enumerate(labels)), "label2id": {label: at for at, label in enumerate(labels)}}
    model = ViTForImageClassification(ViTConfig(image_size=32, patch_size=16, **config, **names))
    with torch.no_grad():
        model.classifier.weight.zero_()
        model.classifier.bias.copy_(torch.arange(len(labels)))
    model.save_pretrained(folder)
    ViTImageProcessor(size={"height": 32, "width": 32}).save_pretrained(folder)


def transparent() -> Image.Image:
    return Image.new("RGBA", (40, 30), (255, 0, 0, 0))


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({}, math.exp(2) / (1 + math.exp(1) + math.exp(2))),
        ({"problem_type": "multi_label_classification"}, 1 / (1 + math.exp(-2))),
    ],
)
def test_a_classifier_gives_its_labels_probability(tmp_path: Path, config: dict[str, str], expected: float) -> None:
    save_classifier(tmp_path, ["normal", "水印", "Not Safe!"], **config)
    score = Classifier(model=str(tmp_path), reject=("Not Safe!",), device="cpu").open()
    found = score([(Pair(str(number), b""), transparent()) for number in range(3)])
    assert found == [{"classifier-not-safe": pytest.approx(expected)}] * 3


def test_a_single_label_is_a_yes_or_no_and_a_regression_a_plain_number(tmp_path: Path) -> None:
    save_classifier(tmp_path / "yes", ["美"])
    save_classifier(tmp_path / "number", ["aesthetic"], problem_type="regression")
    some = [(Pair("1", b""), transparent())]
    yes = Classifier(model=str(tmp_path / "yes"), reject=("美",), device="cpu")
    assert yes.open()(some) == [{"classifier-美": 0.5}]
    number = Classifier(model=str(tmp_path / "number"), reject=("aesthetic",), below=True, name="looks", device="cpu")
    assert number.open()(some) == [{"classifier-looks-aesthetic": 0.0}]


def test_a_label_that_the_classifier_lacks_is_refused_with_those_it_has(tmp_path: Path) -> None:
    save_classifier(tmp_path, ["normal", "nsfw"])
    with pytest.raises(DcclipError, match="has no label NSFW or 色情") as raised:
        Classifier(model=str(tmp_path), reject=("NSFW", "nsfw", "色情"), device="cpu").open()
    assert raised.value.hint == "its labels: normal, nsfw"


def test_pickled_weights_of_a_classifier_are_never_read(tmp_path: Path) -> None:
    import torch
    from safetensors.torch import load_file

    save_classifier(tmp_path, ["normal", "nsfw"])
    torch.save(load_file(tmp_path / "model.safetensors"), tmp_path / "pytorch_model.bin")
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(DcclipError, match="cannot be loaded"):
        Classifier(model=str(tmp_path), reject=("nsfw",), device="cpu").open()


# ---- what a recipe may say


@pytest.mark.parametrize(
    ("scorer", "said"),
    [
        (Agreement(model="/nowhere/model"), "model /nowhere/model is not a directory"),
        (Agreement(model=AltClipTeacher(model="/nowhere/altclip")), "/nowhere/altclip is not a directory"),
        (Prompts(model="runs/nothing", reject=("水印",)), "model runs/nothing is not a directory"),
        (Classifier(model="/nowhere/nsfw", reject=("nsfw",)), "/nowhere/nsfw has no config.json"),
    ],
)
def test_a_model_that_is_not_there_is_named_before_anything_is_loaded(scorer: Any, said: str) -> None:
    for call in (scorer.check, scorer.open):
        with pytest.raises(DcclipError) as raised:
            call()
        assert said in raised.value.what or "config.json" in raised.value.what
        assert raised.value.hint


def test_two_scorers_of_a_kind_need_names() -> None:
    watermark = {"kind": "prompts", "model": "hf:x/y", "reject": ["水印", "a watermark"]}
    unsafe = {"kind": "prompts", "model": "hf:x/y", "reject": ["色情图片"]}
    with pytest.raises(ValidationError, match="two scorers are both called prompts"):
        ANY.validate_python([watermark, unsafe])
    named = ANY.validate_python([watermark | {"name": "watermark"}, unsafe])
    assert [scorer.stored for scorer in named] == ["prompts-watermark", "prompts"]


@pytest.mark.parametrize(
    "wrong",
    [
        {"kind": "agreement", "model": "hf:x/y", "keep": {"zh": 0}},
        {"kind": "agreement", "model": "hf:x/y", "keep": {"fr": 0.5}},
        {"kind": "prompts", "model": "hf:x/y", "reject": []},
        {"kind": "aesthetics"},
    ],
)
def test_an_option_that_makes_no_sense_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        ANY.validate_python([wrong])
