"""Resolution of `--model`: the model that a user names by path, hub name, run or not at all."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from dcclip_cli.checksums import read_record
from dcclip_cli.errors import DcclipError, Message
from dcclip_cli.hub import modelscope_folder
from dcclip_cli.model.model_dir import WEIGHTS
from dcclip_cli.model.weights import CONFIG, UFORM_WEIGHTS
from dcclip_cli.run_dir import RECORD, STAGES

Library = Literal["transformers", "open_clip"]
STARTER = "starter"  # the name of the model that comes with the package
_STARTER_BUNDLE = Path(__file__).parent.parent / STARTER
_HUB_NAME = re.compile(r"(?!.*(\.\.|--))([\w.-]{1,96}/)?[\w.-]{1,96}(@[\w./-]+)?", re.ASCII)
_HINT = Message("make a model with: dcclip run recipes/quickstart.yaml, or name one with --model")


@dataclass(frozen=True)
class ModelReference:
    """A model on disk, or a name on a hub. `target` is the path or hub name; `description` is shown to the user.

    `trust_remote_code`: the user allows code in the model's repository or directory to run; `resolve` never sets it.
    `teacher`: options of a recipe's own teacher, which loads its towers itself. `name`: the model's, if `target` is a
    path without it.
    """

    kind: Literal["folder", "bundle", "hf", "open_clip"]
    target: str
    description: str
    trust_remote_code: bool = False
    teacher: Any = None
    name: str = ""

    @property
    def path(self) -> Path:
        return Path(self.target)


def resolve(reference: str | None = None, trained: bool = False) -> ModelReference:
    """The model meant by `reference`, else by $DCCLIP_MODEL, else the starter; where runs are finished it names one.

    A run means its export, or with `trained` its model directory, if it has both. Raises DcclipError if `reference` or
    $DCCLIP_MODEL names no model.
    """
    if reference:
        return _named(reference, "", trained)
    if from_environment := os.environ.get("DCCLIP_MODEL"):
        return _named(from_environment, " ($DCCLIP_MODEL)", trained)
    finished = {folder.stat().st_mtime: run for run in Path("runs").glob("*/") if (folder := furthest_stage(run))}
    if not finished:
        return _named(STARTER, "")
    return _named(STARTER, Message("; the newest run is used with --model {}", finished[max(finished)]))


def downloaded(model: str) -> str:
    """The directory of a teacher ms:ORG/NAME[@REVISION], downloaded if missing; the name of any other as it is."""
    return resolve(model).target if model.startswith("ms:") else model


def _named(reference: str, why: str, trained: bool = False) -> ModelReference:
    scheme, _, rest = reference.partition(":")
    if scheme in ("hf", "open_clip", "hf-hub", "ms") and rest:
        if Path(rest).is_dir():
            return _directory(Path(rest), "transformers" if scheme == "hf" else "open_clip", why, trained)
        if scheme != "open_clip" and not _HUB_NAME.fullmatch(rest):
            raise DcclipError(
                "model {0} is neither a directory nor a name on the hub",
                "write {1}:ORG/NAME or {1}:DIR",
                *(reference, scheme),
            )
        if scheme == "ms":
            model = _directory(modelscope_folder(rest), "transformers", why)
            return replace(model, name=rest.rpartition("/")[2])
        if scheme == "hf":
            return ModelReference("hf", rest, Message("model: {} with transformers{}", rest, why))
        target = rest if scheme == "open_clip" else reference
        return ModelReference("open_clip", target, Message("model: {} with open_clip{}", target, why))
    if reference == STARTER:
        if Path(STARTER).exists():
            why = Message("{}, not the folder here, which is ./{}", why, STARTER)
        return ModelReference("bundle", str(_STARTER_BUNDLE), Message("model: starter, which comes with dcclip{}", why))
    if not Path(reference).is_dir():
        message = Message("model {} is not a directory", reference)
        raise DcclipError(
            message,
            "name a model directory, a bundle, a run, hf:ORG/NAME, open_clip:ARCH/TAG, hf-hub:ORG/NAME, ms:ORG/NAME "
            "or starter",
        )
    return _directory(Path(reference), "open_clip", why, trained)


def _directory(path: Path, preferred: Library, why: str, trained: bool = False) -> ModelReference:
    folder = path if _is_model(path) else furthest_stage(path, trained) or path
    target = str(folder.resolve())
    if (folder / "image.onnx").is_file():
        return ModelReference("bundle", target, Message("model: bundle {}{}", folder, why))
    if library_of(folder, preferred) == "transformers":
        return ModelReference("hf", target, Message("model: {} with transformers{}", folder, why))
    return ModelReference("folder", target, Message("model: {}{}", folder, why))


def library_of(folder: Path, preferred: Library) -> Library:
    """The library that reads a model directory, by its files; `preferred` if both do.

    Raises DcclipError if the directory contains no model.
    """
    libraries: list[Library] = []
    if any((folder / name).is_file() for name in (CONFIG, WEIGHTS)):
        libraries.append("open_clip")
    weights = ("model*.safetensors", "pytorch_model*.bin", *UFORM_WEIGHTS)
    if (folder / "config.json").is_file() and any(any(folder.glob(name)) for name in weights):
        libraries.append("transformers")
    if libraries:
        return preferred if preferred in libraries else libraries[0]
    if not folder.is_dir():
        raise DcclipError("{} is not a directory", "check the path, or give the name of a model on a hub", folder)
    if (folder / RECORD).is_file():  # a file that it lists is missing
        read_record(folder / RECORD, Message("copy the whole directory again"))
    names, hint = sorted(path.name for path in folder.iterdir()), _HINT
    if inner := [name for name in names if (folder / name / "config.json").is_file() or _is_model(folder / name)]:
        hint = Message("name the directory in it: {}", folder / inner[0])
    elif (folder / "image.onnx").is_file():
        hint = Message("name the model directory that the bundle was exported from")
    listing = ", ".join(names[:8]) + (", ..." if len(names) > 8 else "") or Message("nothing")
    raise DcclipError(
        "{} is no model directory of dcclip, open_clip or transformers, export bundle or finished run (found: {})",
        hint,
        *(folder, listing),
    )


def _is_model(folder: Path) -> bool:
    return any((folder / name).is_file() for name in ("image.onnx", CONFIG, WEIGHTS))


def furthest_stage(run: Path, trained: bool = False) -> Path | None:
    """The model that the last finished stage of a run wrote, or with `trained` the last one that trains, if any did."""
    stages = sorted(STAGES, key=lambda stage: stage.trains == trained)  # those of the wanted kind last
    for stage in reversed(stages):
        if stage.model and _is_model(run / stage.name / stage.model):
            return run / stage.name / stage.model
    return None
