"""F1 of labels on held-out pictures: one threshold for all, and those of `dcclip calibrate`.

python benchmarks/eval/thresholds.py FOLDER_OF_CALTECH101 [PICTURES_A_LABEL]
"""

import sys
from pathlib import Path, PurePath

import numpy as np

from dcclip_cli.data import prompts
from dcclip_cli.inference.encoder import load_encoder
from dcclip_cli.inference.zero_shot import Labels
from dcclip_cli.model.reference import resolve
from dcclip_cli.photos.calibrate import best_thresholds
from dcclip_cli.photos.index import open_index

NONE = "BACKGROUND_Google"
encoder, random = load_encoder(resolve()), np.random.default_rng(0)
index = open_index(encoder, Path(sys.argv[1]))
most_images = int(sys.argv[2]) if len(sys.argv) > 2 else len(index.paths)
folders = np.array([PurePath(path).parts[0] for path in index.paths])
chosen, held_out = np.zeros(len(folders), bool), np.zeros(len(folders), bool)
for folder in np.unique(folders):
    places = random.permutation(np.flatnonzero(folders == folder))
    chosen[places[: len(places) // 2][:most_images]], held_out[places[len(places) // 2 :]] = (
        True,
        True,
    )
content = prompts.read("caltech101")
for language in ("zh", "en"):
    names = dict(zip(content.folders, content.names[language], strict=True))
    labelled = [name for name in names if name != NONE and name in folders]
    scores = Labels(encoder, [names[name] for name in labelled], multi_label=True).probabilities(
        index.embeddings
    )
    right = folders[:, np.newaxis] == np.array(labelled)
    grid = np.linspace(0.5, 0.9999, 500)
    f1 = [
        2
        * ((scores[chosen] >= t) & right[chosen]).sum()
        / ((scores[chosen] >= t).sum() + right[chosen].sum())
        for t in grid
    ]
    for kind, thresholds in (
        ("0.5 for all", 0.5), ("best one for all", grid[np.argmax(f1)]),
        ("calibrated", best_thresholds(scores[chosen], right[chosen])),
    ):  # fmt: skip
        shown, true = scores[held_out] >= thresholds, right[held_out]
        hits, both = (shown & true).sum(axis=0), shown.sum(axis=0) + true.sum(axis=0)
        none = 1 - shown[folders[held_out] == NONE].any(axis=1).mean()
        print(
            f"{language} {kind}: F1 {2 * hits.sum() / both.sum():.3f}, mean of labels "
            f"{(2 * hits / both).mean():.3f}, "
            f"{shown.sum(axis=1).mean():.2f} labels a picture, {none:.0%} of background without"
        )
