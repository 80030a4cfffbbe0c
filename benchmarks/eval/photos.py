"""Local tars as clip_benchmark_export_wds writes them, of photographs in wnid folders, and a light model for them.

The photographs are for measuring only: they are read from PHOTOS and written into WORK, never into the project.
"""

import io
import json
import tarfile
from itertools import cycle, islice
from pathlib import Path

from dcclip_cli.data import prompts
from dcclip_cli.data.prompts import Prompts
from dcclip_cli.eval.dataset import Loaded, Location
from dcclip_cli.eval.loaders.files import WebDatasetTars
from dcclip_cli.eval.registry import KnownSet

TARS = 4
TEMPLATE = {"en": "a photo of a {}.", "zh": "一张{}的照片。"}


def class_names(photos: Path, own_templates: bool = False) -> Prompts:
    """The classes that there are photographs of, in the order of their wnids, named as in ImageNet."""
    imagenet = prompts.read("imagenet")
    wnids = sorted(folder.name for folder in photos.iterdir() if folder.is_dir())
    places = [imagenet.folders.index(wnid) for wnid in wnids]
    names = {language: [every[place] for place in places] for language, every in imagenet.names.items()}
    templates = imagenet.templates if own_templates else {language: [one] for language, one in TEMPLATE.items()}
    return Prompts(wnids, names, imagenet.alternates, templates)


def write_tars(photos: Path, folder: Path, images: int) -> int:
    """So many images, labelled, in TARS tars: the photographs, from the first again where there are fewer."""
    known = class_names(photos)
    files = [(file, label) for label, wnid in enumerate(known.folders) for file in sorted((photos / wnid).iterdir())]
    rows = list(islice(cycle(files), images))
    test = folder / "test"
    test.mkdir(parents=True, exist_ok=True)
    (folder / "classnames.txt").write_text("\n".join(known.names["en"]) + "\n")
    (folder / "zeroshot_classification_templates.txt").write_text(TEMPLATE["en"].replace("{}", "{c}") + "\n")
    (test / "nshards.txt").write_text(f"{TARS}\n")
    for number in range(TARS):
        with tarfile.open(test / f"{number}.tar", "w") as archive:
            for row, (file, label) in list(enumerate(rows))[number::TARS]:
                for name, content in ((f"s{row:07}.jpg", file.read_bytes()), (f"s{row:07}.cls", str(label).encode())):
                    about = tarfile.TarInfo(name)
                    about.size = len(content)
                    archive.addfile(about, io.BytesIO(content))
    return len(rows)


def load_tars(folder: Path, known: Prompts) -> Loaded:
    """The images and labels of those tars, by dcclip's own loader."""
    loader = WebDatasetTars.find(Location(KnownSet("photos", None, len(known.folders)), (folder,), "test", "en", known))
    assert loader is not None
    return loader.load()


def make_model(recipe: Path, folder: Path) -> Path:
    """A student of the recipe's preset after one step from scratch: its accuracy does not matter for its speed."""
    import subprocess
    import sys

    command = [sys.executable, "-m", "dcclip_cli", "align", str(recipe), "--out", str(folder), "--quiet"]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return folder / "align/model"


def random_model(arch: str, folder: Path) -> Path:
    """A directory of open_clip with random weights of one of its architectures."""
    import open_clip
    import torch
    from safetensors.torch import save_file

    torch.manual_seed(0)
    model = open_clip.create_model(arch)
    folder.mkdir(parents=True, exist_ok=True)
    weights = {name: value.contiguous() for name, value in model.state_dict().items()}
    save_file(weights, folder / "open_clip_model.safetensors")
    config = {"model_cfg": open_clip.get_model_config(arch), "preprocess_cfg": model.visual.preprocess_cfg}
    (folder / "open_clip_config.json").write_text(json.dumps(config))
    return folder


def write_recipe(folder: Path, pairs: Path, preset: str) -> Path:
    """A recipe for such a model."""
    recipe = {
        "name": "speed",
        "student": {"preset": preset, "text": {"vocabulary": {"from": "data", "size": 2000}}},
        "data": {"train": str(pairs.resolve())},
        "align": {"start": "scratch", "steps": 1, "batch_size": 8, "warmup_steps": 0, "workers": 0},
    }
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "speed.yaml"
    file.write_text(json.dumps(recipe))  # JSON is YAML
    return file
