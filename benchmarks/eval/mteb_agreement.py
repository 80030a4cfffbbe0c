"""Compare dcclip's evaluation with mteb's, on the same model and images, in both languages and both ways.

    python benchmarks/eval/mteb_agreement.py

Needs `pip install -e '.[mteb]'`. mteb loads images and texts, ranks and scores by itself; dcclip's are the model, and
the mean over templates, of which there is one here. Every number is printed, and a difference of more than 1e-6 fails.
mteb rounds hit rates to five decimals: compared are the means of its values for each query.
"""

import argparse
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import mteb

from dcclip_cli.api import evaluate
from dcclip_cli.data.pair import LANGUAGES, Language
from dcclip_cli.eval.dataset import DataSet
from dcclip_cli.eval.datasets import open_dataset
from dcclip_mteb import TASKS, RetrievalZh, ZeroShotZh, model_meta

QUICKSTART = Path(__file__).parents[2] / "recipes/quickstart"
_CODES = {"zh": "zho-Hans", "en": "eng-Latn"}


def task_on(file: Path, language: Language, name: str) -> Any:
    """mteb's task on pairs in a file; `name` is that of the task which has its metadata."""
    base: Any = TASKS[name]

    class OnFile(base):  # type: ignore[misc]
        metadata = base.metadata.model_copy(
            update={"name": f"{file.stem}-{language}", "eval_splits": ["test"], "eval_langs": [_CODES[language]]}
        )

        def open(self) -> DataSet:
            return replace(open_dataset(str(file), [language], retrieval=issubclass(base, RetrievalZh)), split="test")

    assert issubclass(base, RetrievalZh | ZeroShotZh)
    return OnFile()


def measured_by_mteb(meta: Any, file: Path, language: Language, name: str) -> dict[str, float]:
    task = task_on(file, language, name)
    [result] = mteb.evaluate(meta, [task], cache=None, co2_tracker=False, show_progress_bar=False).task_results
    [[scores]] = result.scores.values()
    return dict(scores)


def compare(model: str, file: Path, language: Language) -> Iterator[tuple[str, float, float]]:
    """Names of metrics with dcclip's value and mteb's."""
    meta, shared = (
        model_meta(model),
        {"model": model, "datasets": [str(file)], "languages": [language], "precision": "fp32"},
    )
    [classes] = evaluate(**shared)
    found = measured_by_mteb(meta, file, language, "CIFAR10ZeroShot-zh")
    yield "top-1", classes.metrics["top1"], found["accuracy"]
    yield "mean per class", classes.metrics["mean_per_class"], found["recall"]
    [both_ways] = evaluate(**shared, task="retrieval")
    for wanted, name in (("image", "Flickr30kCNT2IRetrieval"), ("text", "Flickr30kCNI2TRetrieval")):
        found = measured_by_mteb(meta, file, language, name)
        for k in (1, 5, 10):
            yield f"{wanted} R@{k}", both_ways.metrics[f"{wanted}_recall@{k}"], found[f"hit_rate_at_{k}"]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", action="append", help="as of dcclip eval; default: the demo teacher and the starter")
    parser.add_argument("--pairs", type=Path, action="append", help="Parquet or tar files; default: the quick start's")
    given = parser.parse_args()
    largest = 0.0
    for model in given.model or (str(QUICKSTART / "teacher"), "starter"):
        for file in given.pairs or (QUICKSTART / "validation.parquet", QUICKSTART / "unseen.parquet"):
            for language in LANGUAGES:
                for name, own, other in compare(model, file, language):
                    largest = max(largest, abs(own - other))
                    where = f"{Path(model).name:<8} {file.stem:<10} {language} {name:<14}"
                    print(f"{where} dcclip {own:.7f}  mteb {other:.7f}  difference {abs(own - other):.1e}")
    print(f"largest difference {largest:.1e}")
    if largest > 1e-6:
        raise SystemExit("they differ")


if __name__ == "__main__":
    main()
