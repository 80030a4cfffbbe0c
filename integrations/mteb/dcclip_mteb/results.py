"""Results of `dcclip eval` in mteb's form: a folder that its ResultCache reads.

mteb is the Massive Text Embedding Benchmark. The tasks of this package give the same numbers for
the same model and images.
"""

import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from dcclip_cli.core.errors import DcclipError
from dcclip_cli.core.files import json_object, several, write_json
from dcclip_cli.core.run_dir import RECORD
from dcclip_cli.data import prompts
from dcclip_cli.data.pair import Language
from dcclip_cli.eval import registry
from dcclip_cli.eval.result import ZERO_SHOT as ZERO_SHOT_TASK
from dcclip_cli.eval.result import EvalResult, load_several, sha256_of
from dcclip_cli.inference.encoder import Encoder, load_encoder
from dcclip_cli.model.reference import ModelSource, resolve

PathLike = str | os.PathLike[str]

LANGUAGES = ["zho-Hans"]
KS = (1, 3, 5, 10, 20, 100, 1000)  # mteb's
NO_REVISION = "no_revision_available"  # mteb's word for what has none: here data in a folder
MAIN_SCORES: Mapping[str, str] = {
    "top1": "accuracy",
    "mean_per_class": "recall",  # mteb's is the mean over the classes
    "map11": "map11",
    "roc_auc": "roc_auc",
    "mean_recall": "hit_rate_at_1",
}
ZERO_SHOT = {
    "imagenet": "Imagenet1k", "caltech101": "Caltech101", "cifar10": "CIFAR10", "cifar100": "CIFAR100",
    "country211": "Country211", "dtd": "DTD", "eurosat": "EuroSAT", "fer2013": "FER2013",
    "fgvc_aircraft": "FGVCAircraft", "food101": "Food101", "gtsrb": "GTSRB", "hateful_memes": "HatefulMemes",
    "kitti_distance": "KITTIDistance", "mnist": "MNIST", "flowers102": "Flowers102", "pets": "OxfordPets",
    "pcam": "PatchCamelyon", "rendered_sst2": "RenderedSST2", "resisc45": "RESISC45", "stanford_cars": "StanfordCars",
    "voc2007": "VOC2007",
}  # fmt: skip
RETRIEVAL = {"flickr30k_cn": "Flickr30kCN", "coco_cn": "COCOCN", "muge_cn": "MUGE"}


def tasks_of(dataset: str, language: Language) -> dict[str, str]:
    """The mteb tasks of results on a data set, retrieval one each way: by name "image", "text" or
    "" to search for.
    """
    named, named_language = registry.find(dataset) or (None, language)
    if named is None or language != "zh" or named_language != "zh":
        return {}
    if name := ZERO_SHOT.get(named.name):
        return {f"{name}ZeroShot-zh": ""}
    if name := RETRIEVAL.get(named.name):
        return {f"{name}T2IRetrieval": "image"} | (
            {f"{name}I2TRetrieval": "text"} if named.both_ways else {}
        )
    return {}


def write_results(
    results: PathLike | Sequence[PathLike],
    folder: PathLike,
    owner: str | None = None,
    models: Sequence[PathLike] = (),
) -> list[str]:
    """Write results/MODEL/REVISION/TASK.json and model_meta.json; returns a line about each result
    that is left out.

    `results` are files or folders that `dcclip eval` wrote. Models that are not on the hub are
    OWNER/NAME; those among `models`, which `dcclip --model` takes, get the facts of their files.
    Raises DcclipError if no result is fit.
    """
    rows = load_several([Path(path) for path in several(results)])
    reasons = [(row, unfit(row)) for row in rows]
    lines = [
        f"left out: {row.dataset} {row.language} of {row.model}: {why}"
        for row, why in reasons
        if why
    ]
    fit = [row for row, why in reasons if not why]
    if not fit:
        names = ", ".join(
            registry.name_in(registry.SETS[name], "zh") for name in (*ZERO_SHOT, *RETRIEVAL)
        )
        problem = f"no result belongs to an mteb task ({lines[0] if lines else 'no results'})"
        raise DcclipError(
            "{}", "evaluate a Chinese data set that has an mteb task: {}", problem, names
        )

    facts: dict[
        str, dict[str, Any]
    ] = {}  # by the fingerprint of the weights, without the precision measured
    for model in models:
        reference = resolve(os.fspath(model))
        encoder = load_encoder(reference, "cpu", "fp32")
        facts[weights_of(encoder.fingerprint)] = model_meta_of(encoder, reference, owner)

    places: dict[str, Path] = {}
    for result in fit:
        revision = result.model_fingerprint
        if revision not in places:
            meta = facts.get(weights_of(revision)) or model_meta(result.model, revision, owner)
            name = meta["name"].replace("/", "__").replace(" ", "_")
            places[revision] = Path(folder) / "results" / name / revision
            write_json(places[revision] / "model_meta.json", meta | {"revision": revision})
        for task, target in tasks_of(result.dataset, result.language).items():
            write_json(places[revision] / f"{task}.json", task_result(result, task, target))
    return lines


def weights_of(fingerprint: str) -> str:
    """A model's fingerprint without its precision."""
    return fingerprint.partition("-")[0]


def task_result(result: EvalResult, task: str, target: str) -> dict[str, Any]:
    """mteb's TaskResult as JSON, with those of its scores that dcclip measures."""
    scores = {
        MAIN_SCORES[name]: value for name, value in result.metrics.items() if name in MAIN_SCORES
    }
    # what the rank of the first right one decides: hit rates, which CLIP's papers call recall, and
    # MRR
    if target:
        ranks = result.detail(f"{target}_ranks")
        assert ranks is not None
        ranks = ranks.astype(np.int64)
        scores = {f"hit_rate_at_{k}": float(np.mean(ranks < k)) for k in KS}
        scores |= {
            f"mrr_at_{k}": float(np.mean(np.where(ranks < k, 1 / (ranks + 1), 0))) for k in KS
        }
    attributes = {
        "hf_subset": "default",
        "languages": LANGUAGES,
        "main_score": scores[MAIN_SCORES[result.metric]],
    }
    return {
        "dataset_revision": NO_REVISION,
        "task_name": task,
        "mteb_version": None,  # mteb did not measure them
        "scores": {result.split: [attributes | scores]},
        "evaluation_time": result.seconds,
        "kg_co2_emissions": None,
        "date": result.date or None,
    }


def unfit(result: EvalResult) -> str:
    """Why mteb would not measure the same; empty if it does."""
    named = registry.find(result.dataset)
    if named is None or not tasks_of(result.dataset, result.language):
        return "no such task in mteb"
    if result.partial or result.limit:
        return "not all images were evaluated"
    dataset, language = named
    if dataset.classes:
        class_texts = prompts.read(registry.prompts_of(dataset))
        if result.task != ZERO_SHOT_TASK:
            return "not zero-shot classification"
        names, templates = (
            sha256_of(class_texts.names[language]),
            sha256_of(class_texts.templates[language]),
        )
        if result.class_names_sha256 != names or result.templates_sha256 != templates:
            return "class names or prompts differ from those of this version"
    if result.corrupt:
        return f"{len(result.corrupt):,} unreadable images"
    if result.replaced:
        pairs = ", ".join(
            f"{name} as {alternate}" for name, alternate in list(result.replaced.items())[:3]
        )
        return f"{len(result.replaced)} class names are replaced, unlike in mteb ({pairs})"
    return "classes with the same embedding, whose order decides in mteb" if result.lost else ""


# ---- the facts about a model that mteb's ModelMeta asks for, from the model's own files

_FRAMEWORKS = {
    "folder": ["PyTorch", "safetensors"],
    "open_clip": ["PyTorch"],
    "hf": ["PyTorch", "Transformers"],
    "bundle": ["ONNX"],
}
_ISO = {"zh": "zho-Hans", "en": "eng-Latn"}
_EMBEDDINGS = ("token_embedding.weight", "word_embeddings.weight", "embed_tokens.weight")
_ODD = re.compile(r"[^\w.-]+")
_LONG = "猫 " * 4_096  # more tokens than any text tower takes
_UNKNOWN = (
    "release_date", "languages", "n_parameters", "n_embedding_parameters", "memory_usage_mb", "max_tokens", "embed_dim",
    "license", "open_weights", "public_training_code", "public_training_data", "training_datasets",
)  # fmt: skip


def model_meta(name: str, fingerprint: str, owner: str | None = None) -> dict[str, Any]:
    """The fields of ModelMeta for a model that is known by name only: OWNER/NAME, or local/NAME."""
    return dict.fromkeys(_UNKNOWN) | {
        "loader": None,
        "name": f"{owner or 'local'}/{_ODD.sub('-', name)}",
        "revision": fingerprint,
        "framework": [],
        "similarity_fn_name": "cosine",
        "use_instructions": False,
        "modalities": ["image", "text"],
        "model_type": ["dense"],
    }


def model_meta_of(
    model: Encoder, reference: ModelSource, owner: str | None = None
) -> dict[str, Any]:
    """The fields of ModelMeta for a loaded model, None for all that its files do not say."""
    from safetensors import safe_open

    folder = reference.path if reference.kind != "open_clip" and reference.path.is_dir() else None
    record, card = (folder / RECORD, folder / "README.md") if folder else (None, None)
    languages, license, sizes = None, None, []
    if (
        record and record.is_file()
    ):  # dcclip made it: a bundle lists them, and every model that it trains knows both
        languages = json_object(record.read_text("utf-8"), str(record), "").get("languages", _ISO)
    for file in folder.glob("*.safetensors") if folder else ():
        with safe_open(file, "np") as weights:
            names = [name for name in weights.keys() if name.endswith(_EMBEDDINGS)]  # noqa: SIM118
            shapes = [weights.get_slice(name).get_shape() for name in names]
        sizes += [rows * width for rows, width in shapes]
    if card and card.is_file():
        head = re.match(r"---\n(.*?)\n---\n", card.read_text("utf-8", "replace"), re.S)
        license = re.search(r"^license: *([\w.-]+) *$", head[1], re.M) if head else None
    meta = model_meta(model.name, model.fingerprint, owner) | {
        "languages": [_ISO[language] for language in languages] if languages is not None else None,
        "n_parameters": model.parameters,
        "n_embedding_parameters": sum(sizes) or None,
        "memory_usage_mb": round(model.size_bytes / 2**20, 1),
        "max_tokens": model.tokenize([_LONG]).shape[1],
        "embed_dim": model.encode_texts(["猫"]).shape[1],
        "license": license[1].lower() if license else None,
        "framework": _FRAMEWORKS[reference.kind],
    }
    if reference.on_hub:
        meta["name"] = reference.location.partition("@")[0]  # OWNER/NAME
    return meta
