"""The named data sets; classes, sizes and metrics of the twenty are ELEVATER's (arXiv 2204.08790,
its toolkit).
"""

import difflib
from dataclasses import dataclass
from typing import Any, Literal

from dcclip_cli.core.errors import DcclipError, Message
from dcclip_cli.data import prompts
from dcclip_cli.data.pair import Language

Metric = Literal["top1", "mean_per_class", "map11", "roc_auc", "mean_recall", "overlap@10"]
Task = Literal["classification", "multi-label", "retrieval"]
SUFFIX: dict[Language, str] = {"en": "", "zh": "-cn"}  # NAME is English, NAME-cn is Chinese


@dataclass(frozen=True)
class KnownSet:
    """A data set with a name.

    `size` counts the images of the test split, `texts` its captions; None where the number could
    not be verified, and is not checked. `hub` is the name under `clip-benchmark/wds_*`, None where
    that is another split. `languages` are those of the captions; class names have the languages of
    their file in prompts/.
    """

    name: str
    size: int | None
    classes: int = 0
    task: Task = "classification"
    metric: Metric = "top1"
    split: str = "test"
    hub: str | None = None
    texts: int | None = None
    languages: tuple[Language, ...] = ()
    squash: bool = (
        False  # resize the whole image to a square: a centre crop would cut away what is asked for
    )
    border: int = 0  # pixels to crop at each side
    own_order: bool = True  # whether the hub numbers the classes as prompts/ does
    extra_folders: bool = (
        False  # whether the published folders include further classes, which are left out
    )
    images_of: str = (
        ""  # the data set with the same images in the other language, where it has another name
    )
    both_ways: bool = True  # whether retrieval is measured from image to text too
    prompts: str = ""  # the file in prompts/ with the class names, where it has another name
    remark: str = ""

    @property
    def label(self) -> str:
        """The name as it is typed: with hyphens."""
        return self.name.replace("_", "-")


_PROBE = Message("use ELEVATER's own split, downloaded as class folders")
ELEVATER = (
    KnownSet("caltech101", 6_084, 102, metric="mean_per_class", hub="vtab-caltech101"),
    KnownSet("cifar10", 10_000, 10, hub="vtab-cifar10"),
    KnownSet("cifar100", 10_000, 100, hub="vtab-cifar100"),
    KnownSet("country211", 21_100, 211, hub="country211"),
    KnownSet("dtd", 1_880, 47, hub="vtab-dtd"),
    KnownSet("eurosat", 5_000, 10, remark=Message("5,000 of the 27,000 images; {}", _PROBE)),
    KnownSet(
        "fer2013", 3_589, 7, own_order=False, remark=Message("only the private test half; {}", _PROBE)
    ),
    KnownSet("fgvc_aircraft", 3_333, 100, metric="mean_per_class", hub="fgvc_aircraft"),
    KnownSet("food101", 25_250, 101),
    KnownSet("gtsrb", 12_630, 43, hub="gtsrb"),
    KnownSet("hateful_memes", 500, 2, metric="roc_auc", split="dev", remark=Message("has its own license")),
    KnownSet(
        "kitti_distance", 711, 4, hub="vtab-kitti_closest_vehicle_distance",
        squash=True, remark=Message("without centre crop"),
    ),
    KnownSet("mnist", 10_000, 10, hub="mnist"),
    KnownSet("flowers102", 6_149, 102, metric="mean_per_class", hub="vtab-flowers"),
    KnownSet("pets", 3_669, 37, metric="mean_per_class", hub="vtab-pets"),
    KnownSet("pcam", 32_768, 2, hub="vtab-pcam"),
    KnownSet("rendered_sst2", 1_821, 2, hub="renderedsst2"),
    KnownSet("resisc45", 25_200, 45, remark=Message("25,200 of the 31,500 images; {}", _PROBE)),
    KnownSet("stanford_cars", 8_041, 196, hub="cars"),
    KnownSet("voc2007", 4_952, 20, task="multi-label", metric="map11", hub="voc2007_multilabel"),
)  # fmt: skip
IMAGENETS = (
    KnownSet("imagenet", 50_000, 1_000, split="val", hub="imagenet1k"),
    KnownSet("imagenet_v2", 10_000, 1_000, hub="imagenetv2", prompts="imagenet", remark=Message("matched frequency")),
    KnownSet("imagenet_sketch", 50_889, 1_000, hub="imagenet_sketch", prompts="imagenet"),
    KnownSet("imagenet_a", 7_500, 200, hub="imagenet-a"),
    KnownSet("imagenet_r", 30_000, 200, hub="imagenet-r"),
    KnownSet(
        "objectnet", 18_574, 113, hub="objectnet", border=2, extra_folders=True, prompts="objectnet113",
        remark=Message("the 113 classes shared with ImageNet; the red border is cropped"),
    ),
)  # fmt: skip


def _captioned(
    name: str, size: int | None, languages: tuple[Language, ...], **options: Any
) -> KnownSet:
    return KnownSet(
        name, size, task="retrieval", metric="mean_recall", languages=languages, **options
    )


RETRIEVAL = (
    _captioned(
        "flickr30k",
        1_000,
        ("en",),
        texts=5_000,
        hub="flickr30k",
        remark=Message("Karpathy's split"),
    ),
    _captioned(
        "flickr30k_cn",
        1_000,
        ("zh",),
        texts=5_000,
        images_of="flickr30k",
        remark=Message("human translations"),
    ),
    _captioned(
        "coco",
        5_000,
        ("en",),
        texts=25_010,
        hub="mscoco_captions",
        remark=Message("Karpathy's split"),
    ),
    # 1,053 texts: https://github.com/OFA-Sys/Chinese-CLIP/issues/175
    _captioned(
        "coco_cn", 1_000, ("zh",), texts=1_053, remark=Message("written by Chinese speakers")
    ),
    # Published sizes are rounded: 5 thousand texts, 30 thousand images.
    _captioned(
        "muge_cn",
        None,
        ("zh",),
        split="valid",
        both_ways=False,
        remark=Message("the test captions are not public"),
    ),
)
OTHERS: tuple[KnownSet, ...] = ()  # data sets of no group: append yours
SETS = {known_set.name: known_set for known_set in (*ELEVATER, *IMAGENETS, *RETRIEVAL, *OTHERS)}

GROUPS = {
    "elevater": ELEVATER,
    "imagenet-family": IMAGENETS,
    "retrieval": RETRIEVAL,
    "all": tuple(SETS.values()),
}
ALL = ("all",)  # the group that has both languages


def languages_of(known_set: KnownSet) -> list[Language]:
    """The languages of a data set's captions or class names."""
    if known_set.task == "retrieval":
        return list(known_set.languages)
    return prompts.languages(prompts_of(known_set))


def prompts_of(known_set: KnownSet) -> str:
    """The file in prompts/ with the data set's class names, without its suffix."""
    return known_set.prompts or known_set.name


def name_in(known_set: KnownSet, language: Language) -> str:
    """The data set's name in a language, as `--dataset` takes it."""
    return (
        known_set.label if known_set.label.endswith("-cn") else known_set.label + SUFFIX[language]
    )


def group_names() -> list[str]:
    """The names of groups: GROUP in English, GROUP-cn in Chinese, `all` in both."""
    return [
        *(group + suffix for group in GROUPS if group not in ALL for suffix in SUFFIX.values()),
        *ALL,
    ]


def expand(name: str) -> list[str]:
    """The names of a group's data sets; any other name alone."""
    group = name.lower().replace("_", "-")
    if group in ALL:
        return list(by_name())
    base = group.removesuffix("-cn")
    language: Language = "en" if base == group else "zh"
    if base not in GROUPS or base in ALL:
        return [name]
    return [
        name_in(dataset, language) for dataset in GROUPS[base] if language in languages_of(dataset)
    ]


def find(name: str) -> tuple[KnownSet, Language] | None:
    """The data set and language of a name, typed with hyphens or underscores; None for an unknown
    name.
    """
    return by_name().get(name.lower().replace("_", "-"))


def by_name() -> dict[str, tuple[KnownSet, Language]]:
    """The data sets with their language, by each name that `--dataset` takes; no groups."""
    return {
        name_in(entry, language): (entry, language)
        for entry in SETS.values()
        for language in languages_of(entry)
    }


def base_name(dataset: str) -> str:
    """The data set's name without its language, the same for every language of the same images."""
    key = dataset.replace("-", "_")
    named = SETS.get(key) or SETS.get(key.removesuffix("_cn"))
    return (named.images_of or named.label) if named else dataset


def classes_of(dataset: str) -> prompts.Prompts | None:
    """The classes of a named data set, which has its name in any language; None for others."""
    named = SETS.get(base_name(dataset).replace("-", "_"))
    return prompts.read(prompts_of(named)) if named and named.classes else None


def has_twins(dataset: str) -> bool:
    """Whether a class of the named data set has different names in English and Chinese."""
    names = classes.names if (classes := classes_of(dataset)) else {}
    return any(
        len({*map(prompts.normalized, twin)}) > 1 for twin in zip(*names.values(), strict=False)
    )


def unknown(name: str) -> DcclipError:
    """The error for a name that is neither a data set nor a path, with the nearest name."""
    valid_names = [*by_name(), *group_names()]
    near = difflib.get_close_matches(name.lower().replace("_", "-"), valid_names, n=1)
    hint = (
        Message("did you mean {}?", near[0])
        if near
        else Message("list the data sets with: dcclip datasets")
    )
    return DcclipError("unknown data set {}: neither a known name nor an existing path", hint, name)
