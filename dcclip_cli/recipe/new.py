"""New recipes: the choices of teacher, data and size, and a commented YAML file made from them."""

import json
import math
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from dcclip_cli.core.errors import DcclipError, Message, translated
from dcclip_cli.data import prompts
from dcclip_cli.data.class_folders import images_by_class, kind_of_folder, no_pairs
from dcclip_cli.data.dataset import shards_at
from dcclip_cli.data.pair import LANGUAGES
from dcclip_cli.data.preview import preview_images, preview_pairs
from dcclip_cli.data.reading import TABLE_SUFFIXES
from dcclip_cli.model.hub_models import TRANSFORMERS_CONFIG, open_clip_config
from dcclip_cli.model.reference import STARTER, resolve, resolve_teacher
from dcclip_cli.model.students import PRESETS
from dcclip_cli.model.tokenizer import check_trimmable
from dcclip_cli.model.weights import CONFIG, stored_tensors

DataKind = Literal["photos", "pairs", "table", "classes"]
Size = Literal["S", "M", "RN50", "XS"]
SIZES: Mapping[
    Size, str
] = {  # with a shared space of 768; latency of an image in int8: docs/reference/students.md
    "S": Message("12 M parameters, for phones and small boards"),
    "M": Message("29 M parameters; an image takes three times as long as with S"),
    "RN50": Message("45 M parameters, a ResNet-50; an image takes ten times as long as with S"),
    "XS": Message("3 M parameters, for a teacher as small as the starter"),
}


@dataclass(frozen=True)
class TeacherChoice:
    """A teacher as a recipe names it; `text_width` is 0 unless a student's vocabulary can be
    trimmed from its own.

    `network` is timm's name of its image network, if it is known, `pixels` the side of its images.
    """

    kind: str
    model: str
    text_width: int = 0
    parameters: float = math.inf  # where it may be as small as a student
    network: str = ""
    pixels: int = 224


TEACHERS: Mapping[str, TeacherChoice] = {
    "altclip": TeacherChoice("altclip", "BAAI/AltCLIP", text_width=1024),
    "fgclip2": TeacherChoice("fgclip2", "qihoo360/fg-clip2-base"),
    "siglip2": TeacherChoice("transformers", "google/siglip2-base-patch16-224"),
    "xlm-roberta": TeacherChoice("open_clip", "xlm-roberta-base-ViT-B-32/laion5b_s13b_b90k"),
    "chinese-clip": TeacherChoice("transformers", "OFA-Sys/chinese-clip-vit-base-patch16"),
    "metaclip2": TeacherChoice("transformers", "facebook/metaclip-2-mt5-worldwide-s16"),
}


@dataclass(frozen=True)
class DataChoice:
    """Training data. `count` is about how many images or pairs there are, `classes` how many class
    folders.
    """

    kind: DataKind
    path: str
    count: int
    classes: int = 0
    links: bool = False  # among these and their images


@dataclass(frozen=True)
class StudentChoice:
    """Both towers of a student in place of a preset, for a teacher whose image network it may
    begin with.
    """

    network: str = "mnasnet_075"  # those of recipes/distill-photos.yaml
    pixels: int = 128
    layers: int = 1
    width: int = 64
    tokens: int = 2_400
    embed_dim: int = 128
    inherits: bool = True

    @property
    def name(self) -> str:
        """Its towers in short."""
        return f"{self.network}-{self.pixels}-{self.layers}x{self.width}-{self.tokens}-{self.embed_dim}"


@dataclass(frozen=True)
class NewRecipe:
    """All choices; `file` is the recipe's, `texts` those that the text tower learns where
    photographs have none.

    `student` is in place of the preset `size`. With `labelled`, photographs are in class folders,
    whose names the student learns. `fit` sets the last five; else the number of samples decides.
    """

    file: Path
    teacher: TeacherChoice
    data: DataChoice
    size: Size = "S"
    texts: Path | None = None
    trust_remote_code: bool = False
    student: StudentChoice | None = None
    steps: int | None = None
    hold_out: int | None = None
    augmentations: int | None = None
    threads: int | None = None
    labelled: bool = False

    @property
    def name(self) -> str:
        named = self.file.parent.name if self.file.name == "recipe.yaml" else ""
        return re.sub(r"[^\w.-]+", "-", named or self.file.stem).strip("-.")[:80] or "model"


def choose_teacher(name: str) -> TeacherChoice:
    """The teacher by its name in TEACHERS, or any model reference. Raises DcclipError if it names
    no model.
    """
    if choice := TEACHERS.get(name):
        return choice
    reference = resolve_teacher(STARTER, "open_clip") if name == STARTER else resolve(name)
    by_model = {choice.model: choice for choice in TEACHERS.values()}
    if reference.kind == "hf" and (choice := by_model.get(reference.target)):
        return choice  # also where the hub's files are not here yet
    if reference.kind == "bundle":
        hint = Message("give the model directory that it was exported from")
        raise DcclipError("{} is an export, which has no features to distill", hint, name)
    kind = "transformers" if reference.kind == "hf" else "open_clip"
    named = name if reference.name else reference.target
    config = dict[str, Any]()
    if kind == "transformers" and (folder := reference.folder()):
        from dcclip_cli.model.families import read_config

        config, _ = read_config(folder / TRANSFORMERS_CONFIG, named)
        kind = (
            "fgclip2" if config.get("model_type") == "fgclip2" else kind
        )  # which alone may run code
    if not reference.path.is_dir():
        return TeacherChoice(kind, named)
    stored = stored_tensors(sorted(reference.path.glob("*.safetensors"))).values()
    parameters = sum(math.prod(tensor.shape) for tensor in stored) or math.inf
    try:
        check_trimmable(reference.path)
    except DcclipError:  # the student's vocabulary cannot be the teacher's
        return TeacherChoice(kind, named, 0, parameters)
    if (reference.path / CONFIG).is_file():
        towers = open_clip_config(reference.path)["model_cfg"]
        network, side = (towers["vision_cfg"].get(key) for key in ("timm_model_name", "image_size"))
        pixels = side if isinstance(side, int) else 224
        return TeacherChoice(
            kind, named, int(towers["text_cfg"].get("width", 0)), parameters, network or "", pixels
        )
    text = config.get("text_config") or {}
    return TeacherChoice(kind, named, int(text.get("hidden_size", 0)), parameters)


def choose_data(path: str, kind: DataKind | None = None) -> DataChoice:
    """The data at a path, of the kind that it looks like unless given. Raises DcclipError if
    nothing is to train on.
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
    links = any(file.is_symlink() or file.parent.is_symlink() for file in images)
    return DataChoice(kind, path, len(images), len(folders), links)


def _kind_of_data(path: str) -> DataKind:
    folder = Path(path)
    if "://" in path or any(character in path for character in "*?["):
        return "pairs"
    if not folder.exists():
        hint = Message(
            "give a folder of photographs, pairs (tar or Parquet files, or a table), or "
            "a folder of class folders"
        )
        raise DcclipError("{} does not exist", hint, path)
    if folder.suffix.lower() in TABLE_SUFFIXES and folder.is_file():
        return "table"
    if shards_at(path):
        return "pairs"
    layout = kind_of_folder(folder)
    if layout is None:
        raise no_pairs(
            path,
            Message(
                "give photographs, tars or Parquet files, a table, or a folder of class folders"
            ),
        )
    return "classes" if layout == "classes" else "photos"


def sizes_for(teacher: TeacherChoice) -> dict[Size, str]:
    """The sizes of students that are smaller than half a teacher, or the smallest."""
    smaller = {
        size: text
        for size, text in SIZES.items()
        if float(text.split()[0]) * 2e6 < teacher.parameters
    }
    return smaller or {"XS": SIZES["XS"]}


def student_for(teacher: TeacherChoice) -> StudentChoice | None:
    """The student that begins with a teacher's image network; None where that is not an
    EfficientNet-Lite.
    """
    is_lite = teacher.network.startswith("efficientnet_lite")
    return StudentChoice(pixels=min(StudentChoice.pixels, teacher.pixels)) if is_lite else None


def own_texts() -> str:
    """Lines for a file of texts: the package's class names and prompts in both languages."""
    return "".join(f"{text}\n" for language in LANGUAGES for text in prompts.texts(language))


# ---- the file

# of a student that begins with its teacher's weights
_FEWEST_STEPS = 300
_PASSES = 32
_COMMENTS_AT = 31  # the column in which comments begin


def recipe_text(new: NewRecipe, takes: Sequence[str] = ()) -> str:
    """The recipe as commented YAML, from a template; `takes` are estimates of its time and space."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader(__package__, "."),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"quoted": _quoted, "translated": translated}
    environment.globals["_"] = lambda template, **fields: translated(Message(template, **fields))
    template = environment.get_template("new.yaml.j2")
    lines = [
        line.partition("\t")
        for line in template.render(vars(new), takes=takes, **_values(new)).splitlines()
    ]
    return "".join(
        f"{text:<{_COMMENTS_AT if tab else 0}}{'  ' * len(tab)}{comment}\n"
        for text, tab, comment in lines
    )


def _values(new: NewRecipe) -> dict[str, object]:
    """What the template needs besides the choices."""
    preset = PRESETS[new.size]
    student = new.student
    model = new.teacher.model
    count = new.data.count
    max_per_step = 256 if student is None else 64 if new.data.kind == "photos" else 128
    per_step = int(
        max(2, min(max_per_step, 2 ** int(math.log2(max(1, count / 8)))))
    )  # at most 1/8 of the samples
    steps = new.steps or (student and max(_FEWEST_STEPS, min(10_000, _PASSES * count // per_step)))
    aligned = min(
        per_step, max(2, new.data.classes or per_step)
    )  # one image of a class in each batch
    return {
        "name": new.name,
        "about": f"{student.network}, {student.pixels} px" if student else SIZES[new.size],
        "teacher_name": Path(model).name,
        "model": _place(model, new.file)
        if Path(model).is_dir() and model != STARTER
        else _quoted(model),
        "pixels": preset["image"].get("size", 224),
        "width": student.width if student else preset["text"]["width"],
        "tokens": student.tokens if student else min(20_000, preset["text"]["vocabulary"]["size"]),
        "keeps_network": student is not None
        and student.network == new.teacher.network
        and not new.labelled,
        "labelled": new.labelled,
        "steps": steps,
        "augmentations": new.augmentations or (6 if student else 2),
        "path": _place(new.data.path, new.file),
        "texts": _place(str(new.texts), new.file),
        "hold_out": min(1_000, count // 20) if new.hold_out is None else new.hold_out,
        "has_budget": new.hold_out is not None,
        "per_step": per_step,
        "epochs": _epochs(count, per_step),
        "warm_up": max(1, min(50, steps // 20)) if steps else _warm_up(count, per_step),
        "align_per_step": aligned,
        "align_epochs": max(2, _epochs(count, aligned) // 4),
        "align_warm_up": max(1, _warm_up(count, aligned) // 4),
    }


def _epochs(samples: int, size: int) -> int:
    """Ten, or as many as make about 1,000 steps, up to 100."""
    return max(10, min(100, 1_000 * size // max(1, samples)))


def _warm_up(samples: int, size: int) -> int:
    steps = _epochs(samples, size) * max(1, samples // size)
    return max(1, min(1_000, steps // 20))


def _place(path: str, file: Path) -> str:
    """A path relative to the recipe's folder, absolute if it is not below it; a URL as it is."""
    if "://" in path:
        return _quoted(path)
    target = Path(os.path.abspath(path))
    folder = Path(os.path.abspath(file)).parent
    return _quoted(
        f"./{target.relative_to(folder).as_posix()}"
        if target.is_relative_to(folder)
        else str(target)
    )


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)
