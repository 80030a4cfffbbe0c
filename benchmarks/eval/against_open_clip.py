"""Zero-shot results of `dcclip eval` compared with those of open_clip, CLIP_benchmark and NumPy,
digit for digit.

    pip install --no-deps clip_benchmark
    dcclip export --model MODEL --format open_clip --out FOLDER
    python -m benchmarks.eval.against_open_clip FOLDER --data DIR --dataset cifar10 fer2013 gtsrb --language en zh

DIR has a test set's images in NAME/test/CLASS/, as benchmarks/eval/test_sets.py writes them;
--limit N takes the sample of `dcclip eval --limit N`. All programs get the class names, with
replacements, and the templates of dcclip's result; CLIP_benchmark has open_clip's image features.
For `starter` or another bundle, which open_clip does not read, CLIP_benchmark needs the patches of
integrations/clip_benchmark, and its image features are NumPy's too. Where dcclip lists
`indistinct` classes, the others order them by rounding errors: printed are then also their mean
and range over all orders of these classes. Fails if these means, or without indistinct classes the
metrics, differ from dcclip's, or if the accuracy of a class does.
"""

import argparse
from pathlib import Path

import numpy as np
import open_clip
import torch
from clip_benchmark.metrics import zeroshot_classification as clip_benchmark
from PIL import Image
from torch.nn.functional import normalize
from torch.utils.data import DataLoader, TensorDataset

import dcclip_cli as dcclip
from dcclip_cli.data import prompts
from dcclip_cli.eval import metrics
from dcclip_cli.eval.embedding import sample_indices

METRICS, BATCH_SIZE = ("top1", "top5", "mean_per_class"), 64


def over_orders(
    scores: np.ndarray, labels: np.ndarray, groups: list[list[int]]
) -> tuple[np.ndarray, np.ndarray]:
    """(3, 3) mean, lowest and highest METRICS over all orders of the classes of each group, which
    share their score.

    Then (C,) the mean accuracy of each class.
    """
    for group in groups:
        scores[:, group] = scores[:, group].mean(axis=1, keepdims=True)
    label_scores = np.take_along_axis(scores, labels[:, None], axis=1)
    places = (
        np.asarray([1, 5]) - (scores > label_scores).sum(axis=1)[:, None]
    )  # that the label and its ties share
    ties = (scores == label_scores).sum(axis=1)[:, None]
    hits = np.stack([np.clip(places / ties, 0, 1), places >= ties, places >= 1])  # (3, N, 2)
    per_class = np.stack([hits[:, labels == label, :1].mean(axis=1) for label in np.unique(labels)])
    return np.concatenate([hits.mean(axis=1), per_class.mean(axis=0)], axis=1), per_class[:, 0, 0]


parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
)
parser.add_argument("model")
parser.add_argument("--data", type=Path, required=True)
parser.add_argument("--dataset", nargs="+", required=True)
parser.add_argument("--language", nargs="+", choices=["en", "zh"], default=["en", "zh"])
parser.add_argument("--limit", type=int)
arguments = parser.parse_args()
torch.set_grad_enabled(False)
is_bundle = not Path(arguments.model, "open_clip_config.json").is_file()
if is_bundle:
    from clip_benchmark.models.dcclip import load_dcclip

    model, transform, tokenizer = load_dcclip(arguments.model)
else:
    model, _, transform = open_clip.create_model_and_transforms(
        f"local-dir:{Path(arguments.model).resolve()}"
    )
    model, tokenizer = (
        model.eval(),
        open_clip.get_tokenizer(f"local-dir:{Path(arguments.model).resolve()}"),
    )
encode_pixels, model.encode_image = (
    model.encode_image,
    lambda features: features,
)  # for CLIP_benchmark
numpy_model, differences = dcclip.load(arguments.model), 0
for dataset in arguments.dataset:
    folders = [arguments.data / dataset / "test" / name for name in prompts.read(dataset).folders]
    files = [
        (path, label) for label, folder in enumerate(folders) for path in sorted(folder.iterdir())
    ]
    files = [files[index] for index in sample_indices(len(files), arguments.limit)]
    paths, target = [path for path, _ in files], torch.tensor([label for _, label in files])
    features, vectors = [], []
    for start in range(0, len(paths), BATCH_SIZE):
        batch = [Image.open(path).convert("RGB") for path in paths[start : start + BATCH_SIZE]]
        pixels = torch.stack([transform(image) for image in batch])
        features.append(encode_pixels(pixels.to(memory_format=torch.channels_last)))
        vectors.append(features[-1].numpy() if is_bundle else numpy_model.embed_images(batch))
    images, numpy_images = torch.cat(features), np.concatenate(vectors)
    loader = DataLoader(TensorDataset(images, target), BATCH_SIZE)
    for name in [
        dataset if language == "en" else f"{dataset}-cn" for language in arguments.language
    ]:
        [result] = dcclip.evaluate(
            model=arguments.model,
            datasets=[name],
            data_root=str(arguments.data),
            limit=arguments.limit,
        )
        values_of_dcclip = np.asarray([result.metrics[metric] for metric in METRICS])
        print(
            f"\n{name}, {len(paths):,} images, replaced {result.replaced}, indistinct "
            f"{result.indistinct}"
        )
        print(f"{'dcclip eval':<16}{values_of_dcclip.tolist()}")
        credit = metrics.among_first(result.detail("ranks"), result.detail("ties"), 1)
        accuracies = metrics.per_class(credit, result.detail("labels"), len(result.class_names))
        groups = [
            [result.class_names.index(class_name) for class_name in group]
            for group in result.indistinct
        ]
        class_names = [
            result.replaced.get(class_name, class_name) for class_name in result.class_names
        ]
        texts = [
            [template.replace("{}", class_name) for template in result.templates]
            for class_name in class_names
        ]
        scores = {}
        if not is_bundle:
            classifier = open_clip.build_zero_shot_classifier(
                model, tokenizer, class_names, result.templates
            )  # (D, C)
            scores["open_clip"] = normalize(images, dim=-1) @ classifier  # (N, C)
        templates = [template.replace("{}", "{c}") for template in result.templates]
        classifier = clip_benchmark.zero_shot_classifier(
            model, tokenizer, class_names, templates, "cpu", amp=False
        )
        scores["CLIP_benchmark"], _ = clip_benchmark.run_classification(
            model, classifier, loader, "cpu", amp=False
        )
        vectors = np.stack([numpy_model.embed_texts(row).mean(axis=0) for row in texts])
        scores["NumPy"] = torch.from_numpy(
            numpy_images @ (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).T
        )
        for program, logits in scores.items():
            matches = (
                logits.topk(5).indices == target[:, None]
            ).numpy()  # as its accuracy(), but for NumPy 2.4
            recall = clip_benchmark.balanced_accuracy_score(target, logits.argmax(dim=1))
            values = np.asarray([matches[:, 0].mean(), matches.any(axis=1).mean(), recall])
            (means, lowest, highest), of_classes = over_orders(
                logits.numpy(), target.numpy(), groups
            )
            unequal_classes = int((np.abs(of_classes - accuracies) > 1e-12).sum())
            print(
                f"{program:<16}{values.tolist()}, other accuracy in {unequal_classes} of "
                f"{len(accuracies)} classes"
            )
            unequal = (
                np.abs((means if groups else values) - values_of_dcclip).max() > 1e-12
            )  # the same sums
            differences += bool(unequal or unequal_classes)
            if groups:
                print(f"  over orders   {means.tolist()}, {lowest.tolist()} to {highest.tolist()}")
raise SystemExit(f"{differences} results differ" if differences else 0)
