"""The tasks: names, metadata and classes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import mteb
from mteb.abstasks.abstask import AbsTask
from mteb.abstasks.task_metadata import TaskMetadata

from dcclip_cli.core.errors import DcclipError
from dcclip_cli.eval import registry
from dcclip_cli.eval.registry import KnownSet
from dcclip_mteb.results import LANGUAGES, MAIN_SCORES, NO_REVISION, RETRIEVAL, ZERO_SHOT, tasks_of
from dcclip_mteb.retrieval import RetrievalZh
from dcclip_mteb.zero_shot import ZeroShotZh

# mteb's own task on the same images, from which date, license and citation are.
_SAME_IMAGES = {
    "rendered_sst2": "RenderedSST2", "flowers102": "OxfordFlowersClassification", "voc2007": "VOC2007.v2",
    "hateful_memes": "HatefulMemesT2IRetrieval",
}  # fmt: skip
_KITTI: Mapping[str, Any] = {
    "reference": "https://www.cvlibs.net/datasets/kitti/",
    "date": ("2011-01-01", "2012-12-31"),
    "domains": ["Scene"],
    "task_subtypes": ["Scene recognition"],
    "license": "cc-by-nc-sa-3.0",
    "annotations_creators": "derived",
    "bibtex_citation": r"""
@inproceedings{geiger2012kitti,
  author = {Geiger, Andreas and Lenz, Philip and Urtasun, Raquel},
  booktitle = {2012 IEEE Conference on Computer Vision and Pattern Recognition},
  pages = {3354--3361},
  title = {Are we ready for autonomous driving? The KITTI vision benchmark suite},
  year = {2012},
}
""",
}
_CHINESE_CLIP = r"""
@article{yang2022chinese,
  author = {Yang, An and Pan, Junshu and Lin, Junyang and Men, Rui and Zhang, Yichang and others},
  journal = {arXiv preprint arXiv:2211.01335},
  title = {Chinese CLIP: Contrastive Vision-Language Pretraining in Chinese},
  year = {2022},
}
"""
_CAPTIONS: Mapping[str, Mapping[str, Any]] = {
    "flickr30k_cn": {
        "reference": "https://github.com/li-xirong/cross-lingual-cap",
        "date": ("2017-01-01", "2017-12-31"),
        "domains": ["Web", "Written"],
        "sample_creation": "human-translated",
        "bibtex_citation": r"""
@inproceedings{lan2017fluency,
  author = {Lan, Weiyu and Li, Xirong and Dong, Jianfeng},
  booktitle = {Proceedings of the 25th ACM International Conference on Multimedia},
  pages = {1549--1557},
  title = {Fluency-Guided Cross-Lingual Image Captioning},
  year = {2017},
}
""",
    },
    "coco_cn": {
        "reference": "https://github.com/li-xirong/coco-cn",
        "date": ("2018-01-01", "2018-12-31"),
        "domains": ["Web", "Written"],
        "sample_creation": "created",
        "bibtex_citation": r"""
@article{li2019coco,
  author = {Li, Xirong and Xu, Chaoxi and Wang, Xiaoxu and Lan, Weiyu and others},
  journal = {IEEE Transactions on Multimedia},
  number = {9},
  pages = {2347--2360},
  title = {COCO-CN for Cross-Lingual Image Tagging, Captioning and Retrieval},
  volume = {21},
  year = {2019},
}
""",
    },
    "muge_cn": {
        "reference": "https://github.com/OFA-Sys/Chinese-CLIP",
        "date": ("2021-01-01", "2022-12-31"),
        "domains": ["E-commerce", "Written"],
        "sample_creation": "found",
        "bibtex_citation": _CHINESE_CLIP,
    },
}


def _dataset(known: KnownSet) -> dict[str, str]:
    """Where the images are; without a data set on the hub they are read from a folder."""
    if known.hub is None:
        return {"path": f"not_on_the_hub/{known.label}", "revision": NO_REVISION}
    return {"path": f"clip-benchmark/wds_{known.hub}", "revision": "main"}


def _same_images(known: KnownSet) -> dict[str, Any]:
    if known.name == "kitti_distance":
        return dict(_KITTI)
    base = mteb.get_task(_SAME_IMAGES.get(known.name, f"{ZERO_SHOT[known.name]}ZeroShot")).metadata
    shared = (
        "reference",
        "date",
        "domains",
        "task_subtypes",
        "license",
        "annotations_creators",
        "bibtex_citation",
    )
    return {name: getattr(base, name) for name in shared} | {"adapted_from": [base.name]}


def _zero_shot(known: KnownSet) -> type[ZeroShotZh]:
    [name] = tasks_of(registry.name_in(known, "zh"), "zh")
    metadata = TaskMetadata(
        name=name,
        description=f"Zero-shot classification of {known.label} by Chinese class names, each in "
        f"several templates.",
        dataset=_dataset(known),
        type="ZeroShotClassification",
        category="i2t",
        # This order makes mteb ask the model for probabilities, which these two metrics rank.
        modalities=["text", "image"] if known.metric in ("map11", "roc_auc") else ["image", "text"],
        eval_splits=[known.split],
        eval_langs=LANGUAGES,
        main_score=MAIN_SCORES[known.metric],
        dialect=[],
        sample_creation="created",
        **_same_images(known),
    )
    own = {
        "metadata": metadata,
        "dataset_name": registry.name_in(known, "zh"),
        "__doc__": metadata.description,
    }
    return type(name.replace("-", ""), (ZeroShotZh,), own)


def _retrieval(known: KnownSet) -> list[type[RetrievalZh]]:
    classes = []
    for name in tasks_of(registry.name_in(known, "zh"), "zh"):
        by_text = "T2I" in name
        ways = "images by Chinese texts" if by_text else "Chinese texts by images"
        metadata = TaskMetadata(
            name=name,
            description=f"Retrieval of {ways} in {known.label}.",
            dataset=_dataset(known),
            type="Any2AnyRetrieval",
            category="t2i" if by_text else "i2t",
            modalities=["text", "image"] if by_text else ["image", "text"],
            eval_splits=[known.split],
            eval_langs=LANGUAGES,
            main_score=MAIN_SCORES[known.metric],
            task_subtypes=["Image Text Retrieval"],
            license="not specified",
            annotations_creators="human-annotated",
            dialect=[],
            **_CAPTIONS[known.name],
        )
        own = {
            "metadata": metadata,
            "dataset_name": registry.name_in(known, "zh"),
            "__doc__": metadata.description,
        }
        classes.append(type(name, (RetrievalZh,), own))
    return classes


_CLASSES: list[type[AbsTask]] = [
    *(_zero_shot(registry.SETS[name]) for name in ZERO_SHOT),
    *(task for name in RETRIEVAL for task in _retrieval(registry.SETS[name])),
]
TASKS: dict[str, type[AbsTask]] = {task.metadata.name: task for task in _CLASSES}


def get_tasks(
    names: Iterable[str] | None = None, data_root: Path | str | None = None
) -> list[AbsTask]:
    """The tasks of these names, or all, on the data sets in DATA_ROOT/NAME/ or, without a root, of
    the hub.
    """
    chosen = list(TASKS if names is None else names)
    for name in chosen:
        if name not in TASKS:
            raise DcclipError("there is no task {}", "choose from: {}", name, ", ".join(TASKS))
    return [TASKS[name](data_root=data_root) for name in chosen]
