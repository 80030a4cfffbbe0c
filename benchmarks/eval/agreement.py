"""Compare dcclip's metrics and label orders with CLIP_benchmark's.

    python benchmarks/eval/agreement.py --clip-benchmark FOLDER

FOLDER is an unpacked clip_benchmark wheel. Its `accuracy` fails with numpy 2.4 (CLIP_benchmark issue 147): patched
here, in one line. Scores are random, without equal ones; every difference is printed, and more than 1e-6 fails.
"""

import argparse
import importlib
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch

from dcclip_cli.data import prompts
from dcclip_cli.data.prompts import ClassIndex
from dcclip_cli.errors import DcclipError
from dcclip_cli.eval import registry
from dcclip_cli.eval.metrics import score_classes, score_retrieval

# What CLIP_benchmark calls the lists that its tars were exported with.
LISTS = {
    "caltech101": "caltech101_vtab", "flowers102": "flowers", "imagenet": "imagenet1k",
    "kitti_distance": "kitti_closest_vehicle_distance",
}  # fmt: skip


def accuracy(output: torch.Tensor, target: torch.Tensor, topk: tuple[int, ...] = (1,)) -> list[float]:
    """CLIP_benchmark's, with `.item()` where numpy 2.4 refuses an array of one."""
    found = output.topk(max(topk), 1, True, True)[1].t()
    correct = found.eq(target.view(1, -1).expand_as(found))
    return [correct[:k].reshape(-1).float().sum().item() / len(target) for k in topk]


class Batches(list[Any]):
    """Batches of embeddings that say of themselves which classes there are."""

    def __init__(self, batches: list[Any], classes: int) -> None:
        super().__init__(batches)
        self.dataset = type("Data", (), {"classes": list(range(classes))})


class Identity:
    """A model whose inputs are embeddings already."""

    def encode_image(self, pixels: torch.Tensor) -> torch.Tensor:
        return pixels

    encode_text = encode_image


def classification(peer: Any, random: np.random.Generator) -> dict[str, tuple[float, float]]:
    images, texts = random.normal(size=(3000, 32)), random.normal(size=(100, 32))
    images /= np.linalg.norm(images, axis=1, keepdims=True)
    texts /= np.linalg.norm(texts, axis=1, keepdims=True)
    labels = (images @ texts.T + random.normal(scale=0.2, size=(3000, 100))).argmax(1)
    loader = Batches([(torch.from_numpy(images), torch.from_numpy(labels))], 100)
    peer.zero_shot_classifier = lambda *_, **__: torch.from_numpy(texts.T)
    peer_scores = peer.evaluate(Identity(), loader, None, None, None, "cpu", amp=False)
    own = score_classes(images @ texts.T, labels, "top1").metrics
    pairs = {"acc1": "top1", "acc5": "top5", "mean_per_class_recall": "mean_per_class"}
    found = {own_name: (peer_scores[name], own[own_name]) for name, own_name in pairs.items()}
    truth = random.random((3000, 100)) < 0.1
    loader = Batches([(torch.from_numpy(images), torch.from_numpy(truth))], 100)
    peer_scores = peer.evaluate(Identity(), loader, None, None, None, "cpu", amp=False)
    own = score_classes(images @ texts.T, truth, "map11").metrics
    return found | {"map": (peer_scores["mean_average_precision"], own["map"])}


def retrieval(peer: Any, random: np.random.Generator) -> dict[str, tuple[float, float]]:
    images = random.normal(size=(400, 32))
    about = [(image,) for image in range(400) for _ in range(1 + image % 5)]
    texts = images[[image for (image,) in about]] + random.normal(scale=1.5, size=(len(about), 32))
    images /= np.linalg.norm(images, axis=1, keepdims=True)
    texts /= np.linalg.norm(texts, axis=1, keepdims=True)
    written = [[number for number, (image,) in enumerate(about) if image == one] for one in range(400)]
    peer_scores = peer.evaluate(
        Identity(), [(torch.from_numpy(images), written)], lambda numbers: torch.from_numpy(texts[numbers]), "cpu",
        amp=False, recall_k_list=[1, 5, 10],
    )  # fmt: skip
    own = score_retrieval(images, texts, about).metrics
    return {
        f"{what}_recall@{k}": (peer_scores[f"{what}_retrieval_recall@{k}"], own[f"{what}_recall@{k}"])
        for what in ("image", "text")
        for k in (1, 5, 10)
    }


def orders(folder: Path) -> None:
    """Print of each data set whether the list that CLIP_benchmark exports has our order."""
    lists = json.loads((folder / "clip_benchmark/datasets/en_classnames.json").read_text("utf-8"))
    for known in registry.SETS.values():
        names = lists.get(LISTS.get(known.name, known.name))
        if names is None or not known.classes:
            continue
        keys = ClassIndex(prompts.read(registry.prompts_of(known)))
        try:
            keys.check_order(names, known.name)
            unknown = sum(keys.find(name) is None for name in names)
            print(f"order  {known.name:<18} the same, {len(names) - unknown} of {len(names)} names known")
        except DcclipError as error:
            print(f"order  {known.name:<18} another, told by the names: {not known.own_order} ({error.what})")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--clip-benchmark", type=Path, required=True)
    given = parser.parse_args()
    sys.path.insert(0, str(given.clip_benchmark))
    classes = importlib.import_module("clip_benchmark.metrics.zeroshot_classification")
    classes.accuracy = accuracy  # type: ignore[attr-defined]
    search = importlib.import_module("clip_benchmark.metrics.zeroshot_retrieval")
    random = np.random.default_rng(0)
    found = classification(classes, random) | retrieval(search, random)
    for name, (other, own) in found.items():
        print(f"metric {name:<18} CLIP_benchmark {other:.6f}  dcclip {own:.6f}  difference {abs(other - own):.1e}")
    orders(given.clip_benchmark)
    if any(abs(other - own) > 1e-6 for other, own in found.values()):
        raise SystemExit("they differ")


if __name__ == "__main__":
    main()
