"""New recipes: the choices of teacher, data and size, and a commented YAML file made from them."""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from dcclip_cli.data import prompts
from dcclip_cli.data.class_folders import images_by_class, kind_of_folder, no_pairs
from dcclip_cli.data.dataset import shards_at
from dcclip_cli.data.pair import LANGUAGES
from dcclip_cli.data.preview import preview_images, preview_pairs
from dcclip_cli.errors import DcclipError, Message
from dcclip_cli.model.hub_models import TRANSFORMERS_CONFIG, open_clip_config, transformers_config
from dcclip_cli.model.reference import STARTER, resolve
from dcclip_cli.model.students import PRESETS
from dcclip_cli.model.tokenizer import check_trimmable
from dcclip_cli.model.weights import CONFIG, stored_tensors

DataKind = Literal["photos", "pairs", "table", "classes"]
Size = Literal["S", "M", "RN50", "XS"]
TABLES = (".tsv", ".csv", ".jsonl", ".ndjson")
SIZES: Mapping[Size, str] = {  # with a shared space of 768; latency of an image in int8: docs/reference/students.md
    "S": "12 M parameters, for phones and small boards",
    "M": "29 M parameters, three times the time of S for an image",
    "RN50": "45 M parameters, a ResNet-50, ten times the time of S for an image",
    "XS": "3 M parameters, for a teacher as small as the starter",
}
CLONE_STARTER = Path(__file__).parents[2] / "recipes/starter/model"  # the package has its int8 export alone


@dataclass(frozen=True)
class TeacherChoice:
    """A teacher as a recipe names it.

    `text_width`: of its text tower, if a student's vocabulary can be trimmed from its own; else 0.
    """

    kind: str
    model: str
    about: str
    text_width: int = 0
    parameters: float = math.inf  # where it may be as small as a student


TEACHERS: Mapping[str, TeacherChoice] = {
    "altclip": TeacherChoice(
        "altclip", "BAAI/AltCLIP", Message("864 M parameters, zh and en; the paper's teacher"), 1024
    ),
    "fg-clip2": TeacherChoice(
        "fgclip2", "qihoo360/fg-clip2-base", Message("377 M, zh and en, Apache-2.0; needs --trust-remote-code")
    ),
    "siglip2": TeacherChoice(
        "transformers", "google/siglip2-base-patch16-224", Message("375 M, over 100 languages, Apache-2.0")
    ),
    "xlm-roberta": TeacherChoice(
        "open_clip", "xlm-roberta-base-ViT-B-32/laion5b_s13b_b90k", Message("366 M, 100 languages, MIT (code)")
    ),
    "chinese-clip": TeacherChoice(
        "transformers",
        "OFA-Sys/chinese-clip-vit-base-patch16",
        Message("188 M, Chinese only; see its card for the license"),
    ),
    "metaclip2": TeacherChoice(
        "transformers", "facebook/metaclip-2-mt5-worldwide-s16", Message("139 M, over 300 languages, CC-BY-NC-4.0")
    ),
}


@dataclass(frozen=True)
class DataChoice:
    """Training data. `count` is about how many images or pairs there are, `classes` how many class folders."""

    kind: DataKind
    path: str
    count: int
    classes: int = 0
    links: bool = False  # among these and their images


@dataclass(frozen=True)
class NewRecipe:
    """All choices; `file` is the recipe's, `texts` those that the text tower learns where photographs have none."""

    file: Path
    teacher: TeacherChoice
    data: DataChoice
    size: Size = "S"
    texts: Path | None = None
    trust_remote_code: bool = False

    @property
    def name(self) -> str:
        """The model's name, from the file's."""
        return re.sub(r"[^\w.-]+", "-", self.file.stem).strip("-.")[:80] or "model"


def choose_teacher(name: str) -> TeacherChoice:
    """The teacher by its name in TEACHERS, or any model reference. Raises DcclipError if it names no model."""
    if known := TEACHERS.get(name):
        return known
    found = resolve(str(CLONE_STARTER) if name == STARTER and CLONE_STARTER.is_dir() else name)
    if found.kind == "bundle":
        hint = Message("name a model directory; the starter's is recipes/starter/model in a clone of the repository")
        raise DcclipError("{} is an export, which has no features to learn from", hint, name)
    kind = "transformers" if found.kind == "hf" else "open_clip"
    if not found.path.is_dir():
        return TeacherChoice(kind, found.target, "")
    stored = stored_tensors(sorted(found.path.glob("*.safetensors"))).values()
    parameters = sum(math.prod(one.shape) for one in stored) or math.inf
    return TeacherChoice(kind, found.target, "", _text_width(found.path), parameters)


def _text_width(folder: Path) -> int:
    """The width of a model's text tower; 0 if its vocabulary cannot be trimmed."""
    try:
        check_trimmable(folder)
    except DcclipError:
        return 0
    if (folder / CONFIG).is_file():
        return int(open_clip_config(folder)["model_cfg"]["text_cfg"].get("width", 0))
    text = transformers_config(folder / TRANSFORMERS_CONFIG, folder.name).get("text_config") or {}
    return int(text.get("hidden_size", 0))


def choose_data(path: str, kind: DataKind | None = None) -> DataChoice:
    """The data at a path, of the kind that it looks like unless `kind` is given.

    Raises DcclipError where nothing is there, or nothing to train on.
    """
    kind = kind or _kind_of_data(path)
    if kind == "photos":
        return DataChoice(kind, path, preview_images(path).samples)
    if kind == "pairs":
        return DataChoice(kind, path, preview_pairs(path).samples)
    if kind == "table":
        with Path(path).open("rb") as lines:
            return DataChoice(kind, path, sum(1 for _ in lines))
    folders = images_by_class(Path(path))
    images = [file for files in folders.values() for file in files]
    links = any(one.is_symlink() for one in (*images, *(file.parent for file in images)))
    return DataChoice(kind, path, len(images), len(folders), links)


def _kind_of_data(path: str) -> DataKind:
    folder = Path(path)
    if "://" in path or any(character in path for character in "*?["):
        return "pairs"
    if not folder.exists():
        hint = Message("name a folder of photographs, pairs (tars, Parquet, a table) or a folder of class folders")
        raise DcclipError("{} does not exist", hint, path)
    if folder.suffix.lower() in TABLES and folder.is_file():
        return "table"
    if shards_at(path):
        return "pairs"
    found = kind_of_folder(folder)
    if found is None:
        raise no_pairs(path, Message("name photographs, tars or Parquet files, a table, or a folder of class folders"))
    return "classes" if found == "classes" else "photos"


def sizes_for(teacher: TeacherChoice) -> dict[Size, str]:
    """The sizes of students that are smaller than a teacher, or the smallest."""
    smaller = {size: about for size, about in SIZES.items() if float(about.split()[0]) * 1e6 < teacher.parameters}
    return smaller or {"XS": SIZES["XS"]}


def choose_size(name: str) -> Size:
    """The size of that name. Raises DcclipError if there is none."""
    for size in SIZES:
        if size == name:
            return size
    raise DcclipError("there is no size {}", "the sizes are {}", name, ", ".join(SIZES))


def own_texts() -> str:
    """Lines for a file of texts: the package's class names and prompts in both languages."""
    return "".join(f"{text}\n" for language in LANGUAGES for text in prompts.texts(language))


# ---- the file


def recipe_text(new: NewRecipe, takes: Iterable[str] = ()) -> str:
    """The recipe as commented YAML; `takes` are estimates of its time and space."""
    stages = [_distill_photos(new)] if new.data.kind == "photos" else [_distill_pairs(new), _align(new)]
    parts = [_header(new, takes), _teacher(new), _student(new), _data(new), *stages, _export()]
    return "".join(parts)


def _header(new: NewRecipe, takes: Iterable[str]) -> str:
    what = {
        "photos": f"{new.data.count:,} photographs without captions, and texts",
        "pairs": f"about {new.data.count:,} pairs of images and captions",
        "table": f"about {new.data.count:,} rows of a table, filtered by collect",
        "classes": f"{new.data.count:,} photographs in {new.data.classes:,} class folders, filtered by collect",
    }[new.data.kind]
    first = "data.texts (the words that you will ask for), " if new.data.kind == "photos" else ""
    lines = [
        f"A small Chinese-English CLIP ({SIZES[new.size]}) that learns from {Path(new.teacher.model).name}.",
        "",
        f"Makes:   runs/{new.name}/, in the folder where it is run",
        f"On:      {what}",
        *(f"{'Takes:' if not number else '':8} {line}" for number, line in enumerate(takes)),
        f"Check:   dcclip run {new.file.name} --check      (looks at everything, estimates, runs nothing)",
        f"Run:     dcclip run {new.file.name}              (again after an interruption: it resumes)",
        f"Then:    dcclip predict IMAGE --model runs/{new.name} --labels 猫,dog",
        f"Change first: {first}distill.epochs, student.preset, teacher",
        f"All keys: docs/reference/recipes.md; with their defaults: dcclip recipe show {new.file.name}",
    ]
    seed = _line("seed: 0", "the same seed gives the same weights")
    top = [f"# {line}".rstrip() for line in lines]
    return _lines([*top, "format: 1", f"name: {_quoted(new.name)}", seed])


def _line(text: str, comment: str) -> str:
    return f"{text:<31}  # {comment}"


def _teacher(new: NewRecipe) -> str:
    model = new.teacher.model
    lines = [
        _line("teacher:", "the large model to learn from; it is not changed"),
        f"  kind: {new.teacher.kind}",
        f"  model: {_place(model, new.file) if Path(model).is_dir() else _quoted(model)}",
    ]
    if new.teacher.kind == "fgclip2":
        trusted = json.dumps(new.trust_remote_code)
        lines.append(
            _line(f"  trust_remote_code: {trusted}", "run the Python files in its repository; read them first")
        )
    return _lines(lines)


def _student(new: NewRecipe) -> str:
    preset = PRESETS[new.size]
    pixels, tokens = preset["image"].get("size", 224), min(20_000, preset["text"]["vocabulary"]["size"])
    size = "pixels; fewer take less time. With `weights: timm` it starts from ImageNet's"
    lines = [
        _line("student:", "the small model"),
        _line(f"  preset: {new.size}", "S, M, RN50 or XS: 12, 29, 45 or 3 M parameters"),
        _line(f"  image: {{size: {pixels}}}", size),
        "  text:",
    ]
    if new.teacher.text_width:
        lines += [
            _line("    vocabulary:", "the teacher's tokens that the captions use, and single characters"),
            f"      {{from: teacher, size: {tokens}, characters: true}}",
        ]
        if new.teacher.text_width >= preset["text"]["width"]:
            lines.append(_line("    inherit: embeddings", "start from the teacher's rows of these tokens"))
    else:
        lines += [_line("    vocabulary:", "tokens trained on the captions"), f"      {{from: data, size: {tokens}}}"]
    return _lines(lines)


def _data(new: NewRecipe) -> str:
    path = _place(new.data.path, new.file)
    if new.data.kind == "photos":
        assert new.texts is not None
        texts = f"  texts: {_place(str(new.texts), new.file)}"
        return _lines(["data:", f"  images: {path}", _line(texts, "one per line: what the model learns to read")])
    if new.data.kind == "pairs":
        return _lines(["data:", _line(f"  train: {path}", "tars, Parquet files, globs, URLs: docs/how-to/data.md")])
    kind = "table" if new.data.kind == "table" else "class_folders"
    about = "columns image, zh, en or caption" if kind == "table" else "names in both languages: classes.yaml in it"
    return _lines(
        [
            _line("collect:", "filters and deduplicates; its report says what was dropped"),
            _line("  sources:", about),
            f"    - {{kind: {kind}, path: {path}{', allow_outside: true' if new.data.links else ''}}}",
            "data: {train: collect}",
        ]
    )


def _per_step(samples: int, most: int = 256) -> int:
    """A power of two, at most an eighth of the samples."""
    return int(max(2, min(most, 2 ** int(math.log2(max(1, samples / 8))))))


def _epochs(samples: int, size: int) -> int:
    """Ten, or as many as make about 1,000 steps, up to 100."""
    return max(10, min(100, 1_000 * size // max(1, samples)))


def _warm_up(samples: int, size: int) -> int:
    steps = _epochs(samples, size) * max(1, samples // size)
    return max(1, min(1_000, steps // 20))


def _distill_photos(new: NewRecipe) -> str:
    size = _per_step(new.data.count)
    return _lines(
        [
            _line("distill:", "the student's towers learn the teacher's embeddings, each by itself"),
            "  losses: [{kind: embedding}]",
            *_shared(_epochs(new.data.count, size), _warm_up(new.data.count, size)),
            _line(f"  images_per_step: {size}", "less if memory is short"),
            "  texts_per_step: 256",
        ]
    )


def _distill_pairs(new: NewRecipe) -> str:
    size = _per_step(new.data.count)
    return _lines(
        [
            _line("distill:", "stage 1: the student's towers learn the teacher's embeddings"),
            "  losses:",
            _line("    - {kind: embedding}", "each embedding is near the teacher's of the same image or caption"),
            _line("    - {kind: interactive, weight: 0.5}", "and as near to all others of the batch as the teacher's"),
            *_shared(_epochs(new.data.count, size), _warm_up(new.data.count, size)),
            _line(f"  batch_size: {size}", "less if memory is short"),
        ]
    )


def _shared(epochs: int, warm_up: int) -> list[str]:
    return [
        _line(f"  epochs: {epochs}", "passes over the data: more help until the loss no longer falls"),
        _line(f"  warmup_steps: {warm_up}", "of rising learning rate; about a twentieth of all steps"),
        _line("  augmentations: 2", "random crops of each image; the teacher sees each once, and is then cached"),
        _line("  augment: {crop: 0.6}", "a crop keeps at least so much of the area"),
    ]


def _align(new: NewRecipe) -> str:
    size = _per_step(new.data.count)
    if new.data.classes:  # one image of a class in each batch
        size = min(size, max(2, new.data.classes))
    epochs = max(2, _epochs(new.data.count, size) // 4)
    return _lines(
        [
            _line("align:", "stage 2: both towers together, each image against the captions of the batch"),
            _line("  losses: [{kind: embedding, weight: 4}]", "what stage 1 taught stays"),
            _line(f"  epochs: {epochs}", "few: the captions of a small set are soon learnt by heart"),
            f"  warmup_steps: {max(1, _warm_up(new.data.count, size) // 4)}",
            _line(f"  batch_size: {size}", "captions that each image is contrasted with"),
            _line("  optimizer: {lr: 2e-4}", "a fifth of stage 1's, so as not to undo it"),
            "  augmentations: 2",
            _line("  augment: {crop: 0.6}", "as in stage 1, whose teacher's embeddings serve again"),
        ]
    )


def _export() -> str:
    return _lines(
        [
            _line("export:", "a bundle that runs without torch, compared with the model"),
            _line("  format: onnx", "also coreml, litert, openvino, executorch: docs/how-to/deploy.md"),
            _line("  precision: fp32", "int8: a quarter of the size, calibrated on your images"),
            "# To measure the model, add: eval: {datasets: [cifar10-cn], data_root: DIR}; see: dcclip datasets",
        ]
    )


def _lines(lines: Iterable[str]) -> str:
    return "".join(f"{line}\n" for line in lines)


def _place(path: str, file: Path) -> str:
    """A path as seen from the recipe's folder, absolute if it is not below it; a URL as it is."""
    if "://" in path:
        return _quoted(path)
    whole = Path(os.path.abspath(path))
    folder = Path(os.path.abspath(file)).parent
    return _quoted(f"./{whole.relative_to(folder).as_posix()}" if whole.is_relative_to(folder) else str(whole))


def _quoted(text: str) -> str:
    """A text in YAML, quoted where it could be something else."""
    return (
        text
        if re.fullmatch(r"[\w./][\w./@+-]*", text) and not re.fullmatch(r"[\d.+-]+|~|null|true|false", text)
        else (json.dumps(text, ensure_ascii=False))
    )
