"""Each pair of eval's options: metrics are what NumPy computes from the model's embeddings, or a reason is given."""

import json
import random
import re
from base64 import b64encode
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from sklearn.metrics import precision_recall_curve

from dcclip_cli.data import prompts
from dcclip_cli.data.dataset import write_parquet
from dcclip_cli.data.pair import LANGUAGES, Language, Pair
from dcclip_cli.exporters.export import ExportOptions, export
from dcclip_cli.inference.encoder import load_encoder
from dcclip_cli.inference.model import Model
from dcclip_cli.model.reference import resolve
from tests.cli.conftest import dcclip
from tests.covering import CoveringArray, Row, covers_all
from tests.eval import layouts
from tests.tars import tar_of

_FILE = yaml.safe_load(Path(__file__).with_name("pairs.yaml").read_text("utf-8"))
ERRORS = [rule.pop("says") for rule in _FILE["rules"]]
ARRAY = CoveringArray(_FILE["options"], _FILE["rules"], _FILE["dangerous"])
PROMPTS = {
    "en": {"own": ["a photo of a {}.", "{}"], "compact": ["a {}"]},
    "zh": {"own": ["一张{}的照片。"], "compact": ["一个{}"]},
}
Embed = Callable[[Sequence[Any]], np.ndarray]


@dataclass
class DataSet:
    """Images with the captions of each, by language; a named one has its classes and templates, or else captions.

    `labels` (N, C) are those of several classes per image.
    """

    name: str
    images: list[bytes]
    captions: Mapping[Language, Sequence[tuple[str, ...]]]
    classes: int = 0
    labels: np.ndarray | None = None
    is_retrieval: bool = False


@pytest.fixture(scope="module")
def data_sets(
    pairs: list[Pair], request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[dict[str, list[DataSet]]]:
    """The data sets that rows name. They and the models are in the current folder."""
    folder = tmp_path_factory.mktemp("eval")
    for name, fixture in {"tiny": "model_folder", "bundle": "bundle_folder", "altclip": "altclip_folder"}.items():
        (folder / name).symlink_to(request.getfixturevalue(fixture))
    layouts.write(folder / "run/align/notes", "")
    (folder / "run/align/model").symlink_to(folder / "tiny")
    (folder / "run/export").symlink_to(folder / "bundle")
    shown = pairs[:24]
    shapes = [replace(pair, zh=pair.zh[2:], en=pair.en[2:]) for pair in pairs[:24]]
    mixed = [replace(pair, zh=pair.zh if number == 20 else ()) for number, pair in enumerate(shown)]
    write_parquet(folder / "pairs.parquet", shown)
    write_parquet(folder / "mixed.parquet", mixed)
    layouts.write(folder / "chinese.tar", tar_of([replace(pair, en=()) for pair in shown]))
    layouts.write(folder / "shards/last.tar", tar_of(shapes[10:]))
    layouts.write(folder / "shards/first.tar", tar_of(shapes[:10]))
    for name in ("shapes", "broken"):
        for pair in shapes:
            layouts.write(folder / name / pair.en[0] / f"{pair.key}.png", pair.image)
        names = {pair.en[0]: {"zh": pair.zh[0], "en": pair.en[0]} for pair in shapes}
        layouts.write(folder / name / "classes.yaml", yaml.safe_dump(names, allow_unicode=True))
    by_file = sorted(shapes, key=lambda pair: (pair.en[0], f"{pair.key}.png"))
    layouts.write(folder / "broken" / by_file[1].en[0] / f"{by_file[1].key}.png", b"no image")
    rows = np.eye(20, dtype=np.float32) + np.eye(20, k=3, dtype=np.float32)
    layouts.wds(folder / "data/voc2007", "test", [layouts.npy(row) for row in rows], ".npy")
    for number in range(10):
        for split, place in (("test", number), ("train", number + 10), ("train", number + 20)):
            layouts.write(folder / f"data/mnist/{split}/alpha_{number}/{place}.png", pairs[place].image)
    texts = {pair.zh[2]: [number, number + 5] for number, pair in enumerate(pairs[:35:5])}
    muge = [{"text": text, "image_ids": numbers} for text, numbers in texts.items()]
    layouts.write(folder / "data/muge/valid_texts.jsonl", "\n".join(map(json.dumps, muge)))
    images = [f"{number}\t{b64encode(pair.image).decode()}" for number, pair in enumerate(pairs)]
    layouts.write(folder / "data/muge/valid_imgs.tsv", "\n".join(images))

    def own(name: str, rows: Sequence[Pair], *languages: Language) -> DataSet:
        captions = {language: [pair.captions(language) for pair in rows] for language in languages}
        return DataSet(name, [pair.image for pair in rows], captions)

    def named(name: str, language: Language, images: list[bytes], labels: np.ndarray | None = None) -> DataSet:
        captions = [pair.captions(language)[:1] for pair in pairs[: len(images)]]
        return DataSet(name, images, {language: captions}, len(images), labels)

    digits = [pair.image for pair in pairs[:10]]
    described = [tuple(text for text in texts if number in texts[text]) for number in range(len(pairs))]
    sets = {
        "pairs": own("pairs", shown, "en", "zh"),
        "tar": own("chinese", shown, "zh"),
        "shards": own("shards", shapes, "en", "zh"),
        "folder": own("shapes", by_file, "en", "zh"),
        "broken": own("broken", [by_file[0], replace(by_file[1], image=b""), *by_file[2:]], "en", "zh"),
        "mixed": own("mixed", mixed, "en", "zh"),
        "english": named("mnist", "en", digits),
        "chinese": named("mnist-cn", "zh", digits),
        "labels": named("voc2007-cn", "zh", [layouts.image(number) for number in range(20)], rows),
        "captions": DataSet("muge-cn", [pair.image for pair in pairs], {"zh": described}, is_retrieval=True),
    }
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        layouts.write(Path("recipe.yaml"), "name: recipe\neval: {datasets: [mnist]}")
        yield {label: [data_set] for label, data_set in sets.items()} | {"together": [sets["pairs"], sets["chinese"]]}


@cache
def model_of(reference: str, precision: str) -> Model:
    name = reference.removeprefix("hf:")
    path = Path(reference)
    if name in ("open_clip", "sentence-transformers") and not path.exists():
        options = ExportOptions.model_validate({"format": name, "parity": {"min_agreement": 0}})
        export(options=options, model=resolve("tiny"), out=path)
    return Model(load_encoder(resolve(reference), "cpu", precision))  # type: ignore[arg-type]


@cache
def embedding(reference: str, precision: str, item: bytes | str) -> np.ndarray:
    model = model_of(reference, precision)
    vectors = model.embed_texts([item]) if isinstance(item, str) else model.embed_images([item])
    return np.asarray(vectors[0])


def expected_metrics(row: Row, data_set: DataSet, language: Language, embed: Embed) -> tuple[int, dict[str, Any]]:
    """How many images are measured, and the metrics, by NumPy."""

    def recalls(queries: np.ndarray, items: np.ndarray, wanted: list[set[int]], name: str) -> dict[str, Any]:
        order = np.argsort(-queries @ items.T, kind="stable")
        ranks = np.asarray([np.isin(line, [*hits]).argmax() for line, hits in zip(order, wanted, strict=True)])
        return {f"{name}_recall@{k}": np.mean(ranks < k) for k in (1, 5, 10)}

    captions = data_set.captions[language]
    rows = list(range(len(data_set.images)))
    if row["limit"] == "few":
        rows = sorted(np.random.default_rng(0).permutation(len(rows))[:7].tolist())
    rows = [number for number in rows if data_set.images[number]]
    if data_set.is_retrieval or (row["task"] == "retrieval" and not data_set.classes):
        rows = [number for number in rows if captions[number]]
        images = embed([data_set.images[number] for number in rows])
        of_image = [captions[number] for number in rows]
        texts = list(dict.fromkeys(chain(*of_image)))
        images_of = [{place for place, image_texts in enumerate(of_image) if text in image_texts} for text in texts]
        metrics = recalls(embed(texts), images, images_of, "image")
        if not data_set.is_retrieval:  # MUGE: from text to image alone
            metrics |= recalls(images, embed(texts), [{*map(texts.index, group)} for group in of_image], "text")
        return len(rows), metrics | {"mean_recall": np.mean([*metrics.values()])}
    names = list(dict.fromkeys(image_texts[0] for image_texts in captions))
    from_set = PROMPTS[language]["own"] if data_set.classes else ["{}"]
    templates = {"own": from_set, "compact": PROMPTS[language]["compact"], "name": ["{}"]}[row["templates"]]
    classes = np.stack([embed([template.format(name) for template in templates]).mean(axis=0) for name in names])
    classes /= np.linalg.norm(classes, axis=1, keepdims=True)
    same = np.linalg.matrix_power(classes @ classes.T > 1 - 1e-5, len(classes))  # alike, or by way of others
    scores = embed([data_set.images[number] for number in rows]) @ classes.T
    scores = (scores @ (same / same.sum(axis=0)))[:, same.argmax(axis=0)]
    if data_set.labels is not None:
        scores = np.exp(100 * scores) / np.exp(100 * scores).sum(axis=1, keepdims=True)
        values = list[float]()
        for truth, column in zip(data_set.labels[rows].T, scores.T, strict=True):
            if truth.any():
                precision, recall, _ = precision_recall_curve(truth, column)
                values += [np.mean([precision[recall > level / 10 - 1e-9].max() for level in range(11)])]
        return len(rows), {"map11": np.mean(values)}
    labels = np.asarray([names.index(captions[number][0]) for number in rows])
    before = (scores > scores[np.arange(len(rows)), labels][:, None]).sum(axis=1)
    ties = same[labels].sum(axis=1)
    top1, top5 = (np.clip((k - before) / ties, 0, 1) for k in (1, 5))
    per_class = [top1[labels == label].mean() for label in np.unique(labels)]
    return len(rows), {"top1": top1.mean(), "top5": top5.mean(), "mean_per_class": np.mean(per_class)}


def expected(row: Row, data_sets: Sequence[DataSet]) -> dict[tuple[str, ...], tuple[int, dict[str, Any]]]:
    """`expected_metrics` by model, data set and language."""
    precision = "bf16" if row["precision"] == "bf16" else "fp32"
    by_result = dict[tuple[str, ...], Any]()
    for reference in ARRAY.table["model"][row["model"]][1::2]:

        def embed(items: Sequence[Any], reference: str = reference) -> np.ndarray:
            vectors = np.stack([embedding(reference, precision, item) for item in items])
            vectors = vectors[:, : 8 if row["dims"] == "eight" else None]
            return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)

        name = model_of(reference, precision).name + "-8d" * (row["dims"] == "eight")
        for data_set in data_sets:
            for language, captions in data_set.captions.items():
                is_named = data_set.classes or data_set.is_retrieval
                is_measurable = row["task"] == "retrieval" or all(captions)
                if is_named or (is_measurable and row["languages"] in ("all", "both", language)):
                    key = name, data_set.name, language
                    by_result[key] = expected_metrics(row, data_set, language, embed)
    return by_result


def run(row: Row, out: Path, *arguments: str) -> str:
    """What a command prints."""
    for reference in ARRAY.table["model"][row["model"]][1::2]:
        model_of(reference, "fp32")  # exported now
    values = (str(value) for option, label in row.items() for value in ARRAY.table[option][label])
    options = [str(out) if value == "out" else value for value in values]
    return dcclip("eval", "recipe.yaml", "--data-root", "data", "--device", "cpu", *options, *arguments).stdout


def results(row: Row, out: Path, *arguments: str) -> list[dict[str, Any]]:
    """The results of a command, without what differs from run to run."""
    varying = ("seconds", "images_per_second", "date", "details")
    written = run(row | {"output": "json", "format": "none"}, out, *arguments)
    written_results = json.loads(written, parse_float=lambda number: round(float(number), 6))
    return [{key: result[key] for key in result if key not in varying} for result in written_results]


def cases(rows: Sequence[Row], quick: int) -> Any:
    parameters = [
        pytest.param(row, id=f"{number:03}-{ARRAY.name_of(row)}", marks=[pytest.mark.slow] * (number >= quick))
        for number, row in enumerate(rows)
    ]
    return pytest.mark.parametrize("row", parameters)


@pytest.fixture
def names(data_sets: Any, small: Any, pairs: list[Pair]) -> None:
    """The class names of named data sets are captions."""
    for name, count in (("mnist", 10), ("voc2007", 20)):
        content = json.loads((prompts.FOLDER / f"{name}.json").read_text("utf-8"))
        for language in LANGUAGES:
            content[language] |= {"names": [pair.captions(language)[0] for pair in pairs[:count]], "alternates": {}}
        (prompts.FOLDER / f"{name}.json").write_text(json.dumps(content), "utf-8")


@cases(ARRAY.rows, len(ARRAY.quick_rows))
def test_metrics_are_what_numpy_computes_from_the_embeddings(
    row: Row, data_sets: dict[str, list[DataSet]], names: None, tmp_path: Path
) -> None:
    run(row, tmp_path / "out", "--check")
    printed = run(row, tmp_path / "out")
    computed = expected(row, data_sets[row["data"]])
    if row["output"] == "table":
        assert row["task"] == "probe" or all(
            any(f"{value:.1%}" in printed for value in metrics.values()) for _, metrics in computed.values()
        )
        return
    files = [file for file in (tmp_path / "out").glob("*.json") if file.name != "summary.json"]  # none without --out
    written = [json.loads(text) for text in [file.read_text("utf-8") for file in files] or [printed]]
    by_result = {(result["model"], result["dataset"], result["language"]): result for result in chain(*written)}
    assert row["task"] == "probe" or by_result.keys() == computed.keys()
    for key, result in by_result.items():
        assert result["value"] == result["metrics"][result["metric"]]
        if row["task"] != "probe":
            count, metrics = computed[key]
            assert result["n"] == count
            if row["precision"] != "bf16":  # whose embeddings depend on the batch
                assert {name: result["metrics"][name] for name in metrics} == pytest.approx(metrics, abs=1e-6)


@cases(random.Random(0).sample(ARRAY.rows, 40), 1)
def test_an_option_changes_results_and_what_saves_time_does_not(row: Row, names: None, tmp_path: Path) -> None:
    row = row | {"data": "together"} if row["data"] == "captions" else row
    plain = {option: next(iter(labels)) for option, labels in ARRAY.table.items()}
    first = results(row, tmp_path)
    changed = {"workers": "one" if row["workers"] == "three" else "three", "cache": "no"}
    assert results(row | changed, tmp_path, "--set", "eval.batch_size=5") == first
    same = {"workers", "cache", "output", "format", "model", "data", "partial"}
    same |= {option for option in ("languages", "precision") if row[option] in ("both", "fp32")}
    same |= {"languages"} if row["data"] in ("tar", "mixed") else set()
    same |= {"templates"} if row["templates"] == "name" else set()
    for option in ARRAY.table.keys() - same:
        omitted = row | {option: plain[option]}
        if row[option] != plain[option] and ARRAY.follows_rules(omitted):
            assert results(omitted, tmp_path) != first, option


@pytest.mark.parametrize(("rule", "error"), zip(ARRAY.rules, ERRORS, strict=True))
def test_values_that_do_not_go_together_are_refused(rule: Row, error: str, names: None, tmp_path: Path) -> None:
    row = ARRAY.completed({option: labels.split()[0] for option, labels in rule.items()}, broken=rule)
    assert row is not None
    for arguments in [[], ["--check"]] if not {"model", "output", "partial", "limit"} & rule.keys() else [[]]:
        with pytest.raises(AssertionError, match=re.escape(error)):
            run(row, tmp_path / "out", *arguments)


def test_rows_cover_all_pairs_of_values_that_rules_allow() -> None:
    covers_all("eval", ARRAY)
