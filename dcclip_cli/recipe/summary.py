"""The table that a run ends with: size, memory, latency, accuracy or agreement with the teacher;
kept in the run.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dcclip_cli.core.errors import Message
from dcclip_cli.core.files import cache_folder, read_cached
from dcclip_cli.core.progress import Progress
from dcclip_cli.data.pair import LANGUAGES, PairDataset
from dcclip_cli.eval.dataset import Images, ImageTransform
from dcclip_cli.eval.embedding import Embedder, FeatureCache
from dcclip_cli.exporters.parity import same_best
from dcclip_cli.exporters.samples import images_and_captions
from dcclip_cli.inference.encoder import load_encoder
from dcclip_cli.model.reference import ModelSource

SUMMARY = "summary.json"
COSTS = (
    "parameters",
    "size_bytes",
    "memory_bytes",
    "image_ms",
    "text_ms",
)  # of a model, by `bench`
_SAMPLES = 128  # images, and texts per language: some seconds with the starter as teacher


@dataclass(frozen=True)
class ModelSummary:
    """Accuracy of one model of a run, and its size, peak memory and latency as `bench` measures
    them.

    `scores` are 0..1, by metric, then by test set and language. `agreement` is there where nothing
    could be tested: the fraction of images with the same best text as the teacher's, by data and
    language. It says how well a student copies, not whether either is right.
    """

    name: str
    scores: dict[str, dict[str, float]]
    agreement: dict[str, float]
    pairs: int = 0  # that it was trained on, and the samples of all its steps; 0 for a teacher
    samples: int = 0
    parameters: int = 0
    size_bytes: int = 0
    memory_bytes: int = 0  # 0: not known
    image_ms: float = 0.0
    text_ms: float = 0.0


def kept_summary(run: Path, identity: str, progress: Progress) -> list[ModelSummary]:
    """The summary in a run directory, if it is of the models and test sets with this `identity`;
    else an empty list.
    """

    def rows(content: dict[str, Any]) -> list[ModelSummary]:
        return [ModelSummary(**row) for row in content["rows"]] if content["of"] == identity else []

    return read_cached(run / SUMMARY, rows, progress.say) or []


def agreements(
    models: Mapping[str, ModelSource], given: PairDataset, device: str, progress: Progress
) -> dict[str, dict[str, float]]:
    """How often (0..1) each model finds the same best text as the model "teacher", by data and
    language.

    On the images and texts that an export is checked on; empty where these have no texts.
    Embeddings are kept in the cache, so that a large teacher is run once for all its students.
    """
    lazy, captions = images_and_captions(given, _SAMPLES)
    texts = {
        language: texts_in
        for language, texts_in in zip(LANGUAGES, captions, strict=True)
        if len(texts_in) > 1
    }
    if not texts or not lazy:
        return {}
    source = Path(given.path).name
    cache = FeatureCache(cache_folder(), progress.say)
    images = Images(
        [str(number) for number in range(len(lazy))], lazy.__getitem__, given.fingerprint
    )
    among = ", ".join(f"{len(texts_in)} ({language})" for language, texts_in in texts.items())
    counts = len(images), source, among
    line = Message(
        "agreement: how often a model chooses the same text as the teacher, on {} images "
        "of {}, among {}",
        *counts,
    )
    progress.say(line)
    cosines = {}
    for name, reference in models.items():
        embedder = Embedder(load_encoder(reference, device), cache, progress)
        vectors = embedder.images(images, ImageTransform(), source, None).vectors
        cosines[name] = {
            f"{source} {language}": vectors @ embedder.texts(texts_in).T
            for language, texts_in in texts.items()
        }
    return {
        name: {
            on: same_best(cosines["teacher"][on], cosine.argmax(axis=1))
            for on, cosine in by_language.items()
        }
        for name, by_language in cosines.items()
    }
