"""A teacher that is loaded when its weights are needed, and what is known of it without."""

from __future__ import annotations

import gc
import hashlib
import json
import os
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from dcclip_cli.errors import DcclipError
from dcclip_cli.files import cache_folder, read_cached, write_json
from dcclip_cli.machine import cpu_name
from dcclip_cli.model.precision import Choice, check_logits
from dcclip_cli.model.teachers import TREATMENT, OpenClipTeacher, Teacher
from dcclip_cli.model.towers import Towers
from dcclip_cli.model.weights import find_file
from dcclip_cli.progress import Progress
from dcclip_cli.train.feature_shapes import widths
from dcclip_cli.train.losses.base import Widths
from dcclip_cli.versions import versions

TEACHERS = "teachers"  # in the cache folder
_CONFIGS = ("config.json", "open_clip_config.json")


@dataclass(frozen=True)
class TeacherFacts:
    """What training needs to know of a teacher besides its features; `widths` with the layers that losses use."""

    name: str
    fingerprint: str
    logit_scale: float
    parameters: int
    widths: Widths
    precision: Choice


class LazyTeacher:
    """A teacher on a device. Its facts are kept in the cache folder, so that it need not be loaded for them.

    They are used as long as its files have the same sizes and times, or names in the hub's cache.
    """

    def __init__(self, options: Teacher, device: str, progress: Progress, layers: Sequence[int] = ()) -> None:
        self.options, self.device, self._progress, self._layers = options, device, progress, tuple(layers)
        self._towers: Towers | None = None

    @property
    def towers(self) -> Towers:
        """The teacher, loaded if it is not. Raises DcclipError if it cannot be loaded, or is another by now."""
        if self._towers is None:
            self._towers = self.options.load(self.device, self._progress)
            known = vars(self).get("facts")
            if known and known.fingerprint != self._towers.fingerprint:
                if self._record:
                    self._record.unlink(missing_ok=True)
                raise DcclipError("teacher {} changed while it was in use", "run the command again", self.options.model)
        return self._towers

    @property
    def known_facts(self) -> TeacherFacts | None:
        """Its facts if they are on record, for which it is not loaded."""
        return read_cached(self._record, _from_json, self._progress.say) if self._record else None

    @cached_property
    def facts(self) -> TeacherFacts:
        if (known := self.known_facts) is not None:
            return known
        towers = self.towers
        check_logits(towers.logit_scale, towers.logit_bias, towers.name)
        facts = TeacherFacts(
            towers.name,
            towers.fingerprint,
            towers.logit_scale,
            towers.parameters_count(),
            widths(towers, self._layers),
            towers.precision,
        )
        if self._record:
            with suppress(OSError):  # a folder that cannot be written
                self._record.parent.mkdir(parents=True, exist_ok=True)
                write_json(self._record, asdict(facts))
        return facts

    @property
    def is_loaded(self) -> bool:
        return self._towers is not None

    def free(self) -> None:
        """Give its memory back; it is loaded again if it is needed again."""
        if self._towers is None:
            return
        self._towers = None
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    @cached_property
    def _record(self) -> Path | None:
        """The file for its facts; None where nothing tells whether the teacher is still the same."""
        if (stamp := _stamp(self.options)) is None:
            return None
        kind = torch.device(self.device).type
        device = torch.cuda.get_device_name() if kind == "cuda" else cpu_name()
        backend = torch.backends.cpu.get_cpu_capability()
        about = [TREATMENT, self.options.model_dump(), stamp, kind, device, backend, self._layers, versions()]
        name = hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()[:32]
        return cache_folder() / TEACHERS / f"{name}.json"


def _from_json(facts: dict[str, Any]) -> TeacherFacts:
    shapes = facts.pop("widths")
    others = {int(layer): width for layer, width in shapes.pop("other_maps").items()}
    exact = {"widths": Widths(**shapes, other_maps=others), "precision": Choice(**facts["precision"])}
    return TeacherFacts(**facts | exact)


def _stamp(teacher: Teacher) -> list[Any] | None:
    """What changes whenever a file of the teacher does; None if its files are not known."""
    model = teacher.model.removeprefix("hf-hub:")
    if Path(model).is_dir():
        return _files(Path(model))
    if isinstance(teacher, OpenClipTeacher) and model == teacher.model:  # ARCH/TAG, which never changes
        return [model]
    for config in _CONFIGS:
        with suppress(OSError, ValueError):  # no network, or no name of a repository
            # Asks the hub for the latest revision, as loading does; the folder is named by it.
            if file := find_file(model, config):
                return _files(file.parent)
    return None


def _files(folder: Path) -> list[Any]:
    """Names, sizes and times of a folder's files; in the hub's cache, names are those of the content."""
    found = []
    for file in sorted(path for path in folder.rglob("*") if path.is_file()):
        stat = file.stat()
        version = os.readlink(file) if file.is_symlink() else stat.st_mtime_ns
        found.append([str(file.relative_to(folder)), stat.st_size, version])
    return [str(folder), found]
