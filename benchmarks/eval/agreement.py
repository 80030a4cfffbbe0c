"""Compare dcclip's mAP, retrieval metrics and label orders with CLIP_benchmark's, on random scores
without ties.

    pip install --no-deps clip_benchmark
    python -m benchmarks.eval.agreement

Prints every difference; more than 1e-6 fails. For top-1, top-5 and mean per class see
against_open_clip.py.
"""

import json
from pathlib import Path
from types import SimpleNamespace

import clip_benchmark
import numpy as np
import torch
from clip_benchmark.metrics import zeroshot_classification, zeroshot_retrieval

from dcclip_cli.core.errors import DcclipError
from dcclip_cli.data import prompts
from dcclip_cli.data.prompts import ClassIndex
from dcclip_cli.eval import registry
from dcclip_cli.eval.metrics import score_classes, score_retrieval

# CLIP_benchmark's names of the lists that its tars were exported with.
LISTS = {
    "caltech101": "caltech101_vtab", "flowers102": "flowers", "imagenet": "imagenet1k",
    "kitti_distance": "kitti_closest_vehicle_distance",
}  # fmt: skip
RECALLS = [1, 5, 10]

encoder = SimpleNamespace(encode_image=lambda vectors: vectors, encode_text=lambda vectors: vectors)
random = np.random.default_rng(0)


def unit_vectors(vectors: np.ndarray) -> np.ndarray:
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


images, classes = (
    unit_vectors(random.normal(size=(3000, 32))),
    unit_vectors(random.normal(size=(100, 32))),
)
truth = random.random((3000, 100)) < 0.1
logits, target = zeroshot_classification.run_classification(
    encoder,
    torch.from_numpy(classes.T),
    [(torch.from_numpy(images), torch.from_numpy(truth))],
    "cpu",
    amp=False,
)
average_precision = (
    zeroshot_classification.average_precision_per_class(logits, target).mean().item()
)
pairs = {
    "map": (average_precision, score_classes(images @ classes.T, truth, "map11").metrics["map"])
}

images, image_of_text = (
    random.normal(size=(400, 32)),
    np.repeat(np.arange(400), 1 + np.arange(400) % 5),
)
texts = unit_vectors(
    images[image_of_text] + random.normal(scale=1.5, size=(len(image_of_text), 32))
)
texts_of_image = [np.flatnonzero(image_of_text == image).tolist() for image in range(400)]
expected = zeroshot_retrieval.evaluate(
    encoder, [(torch.from_numpy(images), texts_of_image)], lambda rows: torch.from_numpy(texts[rows]), "cpu",
    amp=False, recall_k_list=RECALLS,
)  # fmt: skip
retrieval = score_retrieval(unit_vectors(images), texts, image_of_text[:, None].tolist()).metrics
for name in (f"{target}_{{}}recall@{k}" for target in ("image", "text") for k in RECALLS):
    pairs[name.format("")] = expected[name.format("retrieval_")], retrieval[name.format("")]
for name, (value, ours) in pairs.items():
    print(
        f"metric {name:<18} CLIP_benchmark {value:.6f}  dcclip {ours:.6f}  difference "
        f"{abs(value - ours):.1e}"
    )

lists = json.loads(
    (Path(clip_benchmark.__file__).parent / "datasets/en_classnames.json").read_text("utf-8")
)
for dataset in registry.SETS.values():
    names = lists.get(LISTS.get(dataset.name, dataset.name))
    if names is None or not dataset.classes:
        continue
    index = ClassIndex(prompts.read(registry.prompts_of(dataset)))
    try:
        index.check_order(names, dataset.name)
        in_list = sum(index.find(name) is not None for name in names)
        print(f"order  {dataset.name:<18} the same, {in_list} of {len(names)} names are dcclip's")
    except DcclipError as error:
        print(
            f"order  {dataset.name:<18} another, told by the names: "
            f"{not dataset.own_order} ({error.what})"
        )
if any(abs(value - ours) > 1e-6 for value, ours in pairs.values()):
    raise SystemExit("they differ")
