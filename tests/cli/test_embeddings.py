"""What search and predict say is what NumPy computes from embed's output."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dcclip_cli import load
from dcclip_cli.data.pair import Pair
from tests.cli.conftest import dcclip

NAMES = {  # that the model knows, in Chinese and in English
    "tiny": {"红色的圆": "red circle", "蓝色的方块": "blue square", "月亮": "moon", "十字": "cross", "圆环": "ring"},
    "starter": {"猫": "cat", "狗": "dog", "马": "horse", "鱼": "fish", "花": "flower"},
}
UNKNOWN = "龘龘龘"
PHOTOS = Path(__file__).parents[2] / "recipes/starter/photos"


class Embeddings:
    """The embeddings that `embed` writes of twelve drawn pictures and five photographs, and of names."""

    def __init__(self, model: str | Path, names: dict[str, str], pairs: list[Pair], folder: Path) -> None:
        self.model = model
        self.folder = folder / "图片"
        self.texts = [*names, *names.values(), "something", "东西", UNKNOWN]
        contents = {f"{pair.key}  图.png": pair.image for pair in pairs[:12]}
        contents |= {photo.name: photo.read_bytes() for photo in PHOTOS.glob("*.jpg")}
        self.folder.mkdir()
        for name, content in contents.items():
            (self.folder / name).write_bytes(content)
        self.paths = sorted(map(str, self.folder.iterdir()))
        dcclip("embed", self.folder, "--model", model, "--out", folder / "images.npy", "-q")
        assert (folder / "images.txt").read_text("utf-8").splitlines() == self.paths
        options = [option for text in self.texts for option in ("--text", text)]
        dcclip("embed", *options, "--model", model, "--out", folder / "texts.npy", "-q")
        self.images = np.load(folder / "images.npy")
        vectors = np.load(folder / "texts.npy")
        self.of_text = dict(zip(self.texts, vectors, strict=True))

    def run(self, command: str, *options: object) -> Any:
        return json.loads(dcclip(command, *options, "--model", self.model, "--json", "-q").stdout)


@pytest.fixture(scope="module", params=NAMES)
def embeddings(
    request: pytest.FixtureRequest, bundle_folder: Path, pairs: list[Pair], tmp_path_factory: pytest.TempPathFactory
) -> Embeddings:
    """By the tiny student in fp32, and by the starter in int8."""
    model: str | Path = bundle_folder if request.param == "tiny" else "starter"
    return Embeddings(model, NAMES[request.param], pairs, tmp_path_factory.mktemp("embeddings"))


def unit(vectors: np.ndarray) -> np.ndarray:
    return np.asarray(vectors / np.linalg.norm(vectors, axis=-1, keepdims=True))


@pytest.mark.parametrize("dims", [None, 8])
@pytest.mark.parametrize(("added", "subtracted", "image"), [([0], [], 0), ([6], [], 0), ([0, 7], [3], 2), ([], [8], 5)])
def test_search_ranks_by_the_cosine_with_what_is_added_and_subtracted(
    embeddings: Embeddings, added: list[int], subtracted: list[int], image: int, dims: int | None
) -> None:
    options = list[object]()
    vectors = list[np.ndarray]()
    for option, sign, numbers in (("--text", 1, added), ("--not", -1, subtracted)):
        for text in (embeddings.texts[number] for number in numbers):
            options += [option, text]
            vectors.append(sign * unit(embeddings.of_text[text][:dims]))
    images = unit(embeddings.images[:, :dims])
    if image:
        options += ["--image", embeddings.paths[image]]
        vectors.append(images[image])
    scores = dict(zip(embeddings.paths, (images @ unit(np.sum(vectors, axis=0))).tolist(), strict=True))
    hits = embeddings.run("search", embeddings.folder, *options, *(["--dims", dims] if dims else []), "--top-k", 9)
    cosines = [hit["score"] for hit in hits]
    assert cosines == pytest.approx(sorted(scores.values(), reverse=True)[:9], abs=2e-3)  # the index is in fp16
    assert cosines == pytest.approx([scores[hit["image"]] for hit in hits], abs=2e-3)


@pytest.mark.parametrize("multi_label", [False, True])
def test_predict_gives_probabilities_and_says_which_labels_are_unknown(
    embeddings: Embeddings, multi_label: bool
) -> None:
    scale = load(embeddings.model).logit_scale
    labels = embeddings.texts
    logits = scale * embeddings.images @ np.stack([*embeddings.of_text.values()]).T
    odds = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    if multi_label:  # against "something" in the language of the label
        against = [labels.index("something" if label.isascii() else "东西") for label in labels]
        odds = 1 / (1 + np.exp(logits[:, against] - logits))
        if embeddings.model == "starter":  # which knows that these are for what no other label fits
            is_rest = np.isin(labels, ["something", "东西"])
            odds[:, is_rest] = 1 - odds[:, ~is_rest].max(axis=1, keepdims=True)
    options = ["--labels", ",".join(labels), "--top-k", len(labels), *["--multi-label"] * multi_label]
    for line, row in zip(embeddings.run("predict", embeddings.folder, *options), odds.tolist(), strict=True):
        by_label = {entry["label"]: entry["probability"] for entry in line["labels"]}
        assert [*by_label.values()] == sorted(by_label.values(), reverse=True)
        assert by_label == pytest.approx(dict(zip(labels, row, strict=True)), abs=2e-6)
        unknown = [entry["label"] for entry in line["labels"] if entry.get("unknown")]
        assert unknown == ([UNKNOWN] if embeddings.model == "starter" else [])
