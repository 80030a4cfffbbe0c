"""Results in mteb's form: a folder that its ResultCache reads, written without mteb.

mteb is the Massive Text Embedding Benchmark. Its own zero-shot image tasks are in English; the Chinese tasks named here
are in `integrations/mteb`, and give the same numbers for the same model and images.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import numpy as np

from dcclip_cli.data.pair import Language
from dcclip_cli.errors import DcclipError, Message
from dcclip_cli.eval import comparable, registry
from dcclip_cli.eval.model_meta import model_meta, model_meta_of
from dcclip_cli.eval.result import EvalResult, save_json
from dcclip_cli.model.reference import ModelReference
from dcclip_cli.predict.encoder import load_encoder

if TYPE_CHECKING:
    from dcclip_cli.eval.evaluate import EvalOptions

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


@dataclass(frozen=True)
class MtebTask:
    """A task of `integrations/mteb`: its name, and for retrieval what is searched for, `image` or `text`."""

    name: str
    wanted: str = ""


def task_names(dataset: str, language: Language) -> list[str]:
    """The tasks that results on a data set are of: one, for retrieval one each way; none for most data sets."""
    return [task.name for task in _tasks(dataset, language)]


def _tasks(dataset: str, language: Language) -> list[MtebTask]:
    known, own = registry.find(dataset) or (None, language)
    if known is None or language != "zh" or own != "zh":
        return []
    if name := ZERO_SHOT.get(known.name):
        return [MtebTask(f"{name}ZeroShot-zh")]
    if name := RETRIEVAL.get(known.name):
        ways = [("image", "T2I"), *([("text", "I2T")] if known.both_ways else [])]
        return [MtebTask(f"{name}{way}Retrieval", wanted) for wanted, way in ways]
    return []


def check_options(options: EvalOptions) -> None:
    """Raise DcclipError where no result of these options would have a form in mteb."""
    comparable.check_options(options, "mteb", Message("no task of mteb measures that"))
    names = [name for given in options.datasets for name in registry.expand(given)]
    if not any(_tasks(name, "zh") for name in names):
        raise _no_task(Message("none of the data sets ({names}) has a task", names=", ".join(names)))


def save_mteb(
    results: Sequence[EvalResult],
    folder: Path,
    references: Mapping[str, ModelReference] = MappingProxyType({}),
    owner: str | None = None,
) -> list[str]:
    """Write results/MODEL/REVISION/TASK.json and model_meta.json; returns lines for the user on what is left out.

    `references` are models by fingerprint: of others model_meta.json has only name and revision. `owner` is the first
    half of the names of models that are not on the hub. Raises DcclipError if nothing is left.
    """
    reasons = [(result, _unfit(result)) for result in results]
    lines = [f"left out: {one.dataset} {one.language} of {one.model} {why}" for one, why in reasons if why]
    if not (fit := [one for one, why in reasons if not why]):
        raise _no_task(
            Message("none of the results is of a task ({lines})", lines=lines[0])
            if lines
            else Message("there are no results")
        )
    places: dict[str, Path] = {}
    for result in fit:
        revision = result.model_fingerprint
        if revision not in places:
            meta = model_meta(result.model, revision, owner)
            if reference := references.get(revision):
                loaded = load_encoder(reference, "cpu", "fp32")
                meta = model_meta_of(loaded, reference, owner) | {"revision": revision}  # of the precision measured
            places[revision] = folder / "results" / meta["name"].replace("/", "__").replace(" ", "_") / revision
            places[revision].mkdir(parents=True, exist_ok=True)
            save_json(places[revision] / "model_meta.json", meta)
        for task in _tasks(result.dataset, result.language):
            save_json(places[revision] / f"{task.name}.json", task_result(result, task))
    return [*lines, f"mteb reads its results with: mteb.ResultCache('{folder}').load_results()"]


def task_result(result: EvalResult, task: MtebTask) -> dict[str, Any]:
    """mteb's TaskResult as JSON, with those of its scores that dcclip measures."""
    scores = _recalls(result, task.wanted) if task.wanted else _classification(result)
    about = {"hf_subset": "default", "languages": LANGUAGES, "main_score": scores[MAIN_SCORES[result.metric]]}
    return {
        "dataset_revision": NO_REVISION,
        "task_name": task.name,
        "mteb_version": None,  # mteb did not measure them
        "scores": {result.split: [about | scores]},
        "evaluation_time": result.seconds,
        "kg_co2_emissions": None,
        "date": result.date or None,
    }


def _classification(result: EvalResult) -> dict[str, float]:
    return {MAIN_SCORES[name]: value for name, value in result.metrics.items() if name in MAIN_SCORES}


def _recalls(result: EvalResult, wanted: str) -> dict[str, float]:
    """What the rank of the first right image or text decides: hit rates, which CLIP's papers call recall, and MRR."""
    ranks = result.detail(f"{wanted}_ranks")
    assert ranks is not None
    ranks = ranks.astype(np.int64)
    hits = {f"hit_rate_at_{k}": float(np.mean(ranks < k)) for k in KS}
    return hits | {f"mrr_at_{k}": float(np.mean(np.where(ranks < k, 1 / (ranks + 1), 0))) for k in KS}


def _unfit(result: EvalResult) -> str:
    """Why mteb would not measure the same; empty if it does."""
    if not _tasks(result.dataset, result.language):
        return "has no task"
    if reason := comparable.unfit(result):
        return reason
    if result.corrupt:
        return f"lacks {len(result.corrupt):,} images that cannot be read"
    if result.replaced:
        pairs = ", ".join(f"{name} as {other}" for name, other in list(result.replaced.items())[:3])
        return f"was asked for {len(result.replaced)} names by alternates ({pairs}), which its task does not do"
    return ""


def _no_task(what: str) -> DcclipError:
    known = (registry.SETS[name] for name in (*ZERO_SHOT, *RETRIEVAL))
    names = ", ".join(registry.name_in(one, "zh") for one in known)
    return DcclipError("--format mteb: {what}", "those that have one, in Chinese: {names}", what=what, names=names)
