"""References to models, as `--model` and a recipe's teacher name them, and the models that they
mean.
"""

from __future__ import annotations

import os
import re
from collections.abc import Collection
from contextlib import nullcontext, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from dcclip_cli.core.checksums import FILES, read_record
from dcclip_cli.core.errors import DcclipError, Message
from dcclip_cli.core.files import read_json
from dcclip_cli.core.hub import OPEN_CLIP_SCHEME, cached_folder, files_on_hub, modelscope_folder
from dcclip_cli.core.progress import Progress
from dcclip_cli.core.run_dir import RECORD, STAGES
from dcclip_cli.model.hub_models import (
    CHECK_NAME,
    COPY_AGAIN,
    TRANSFORMERS_CONFIG,
    check_directory,
    check_repository,
    library_errors,
    open_clip_config,
)
from dcclip_cli.model.model_dir import (
    PROVENANCE,
    RECORD_HINT,
    WEIGHTS,
    blank_model,
    load_model,
    load_named,
    read_provenance,
)
from dcclip_cli.model.tokenizer import tokenizer_errors
from dcclip_cli.model.weights import (
    CONFIG,
    OPEN_CLIP_WEIGHTS,
    TRANSFORMERS_WEIGHTS,
    find_file,
    find_weights,
    require_file,
)

if TYPE_CHECKING:
    from dcclip_cli.model.towers import Towers

Library = Literal["transformers", "open_clip"]
STARTER = "starter"  # the name of the model that comes with the package
_STARTER_BUNDLE = (
    Path(__file__).parent.parent / STARTER
)  # its folder `model` is the model directory, for teachers
_SCHEMES: dict[str, Library | None] = {
    "hf": "transformers",
    "open_clip": "open_clip",
    OPEN_CLIP_SCHEME: "open_clip",
    "ms": None,
}
_HUB_NAME = re.compile(r"(?!.*(\.\.|--))([\w.-]{1,96}/)?[\w.-]{1,96}(@[\w./-]+)?", re.ASCII)
_HINT = Message(
    "create a model with: dcclip run recipes/quickstart.yaml, or choose one with --model"
)


@dataclass(frozen=True)
class ModelSource:
    """A model and where its files are: a directory, a repository of the Hugging Face Hub, or
    open_clip's ARCH/TAG.

    `location` is its path or name; `description` is shown to the user. `trust_remote_code`: the
    user allows code in the model's repository or directory to run; `resolve` never sets it.
    `teacher`: options of a recipe's own teacher, which loads its towers itself. `name`: the
    model's, if `location` is a path without it.
    """

    kind: Literal["folder", "bundle", "hf", "open_clip"]
    location: str
    description: str
    on_hub: bool = False
    trust_remote_code: bool = False
    teacher: Any = None
    name: str = ""

    @property
    def path(self) -> Path:
        return Path(self.location)

    @property
    def library(self) -> Library:
        """What reads it; of a directory that both libraries read, what is preferred."""
        return "transformers" if self.kind == "hf" else "open_clip"

    @property
    def target(self) -> str:
        """The location as results, new recipes and open_clip have it."""
        return (
            f"{OPEN_CLIP_SCHEME}:{self.location}"
            if self.on_hub and self.library == "open_clip"
            else self.location
        )

    def folder(self) -> Path | None:
        """The directory with all its files: its own, or in the hub's local cache; None if there is
        none.
        """
        if self.path.is_dir():
            return self.path
        if self.path.is_absolute() or not self.on_hub:
            return None
        cached = cached_folder(self.location, CONFIG) or cached_folder(self.location)
        return (
            cached
            if cached and not _missing_files({file.name for file in cached.iterdir()})
            else None
        )

    def check(self) -> None:
        """Raise DcclipError for missing files, weights of ARCH/TAG too, or a hub that cannot be
        reached.
        """
        is_directory = self.path.is_dir()
        if not is_directory and self.path.is_absolute():
            hint = Message("check the path, or use a name on the Hugging Face hub")
            raise DcclipError("{} is not a directory", hint, self.location)
        if not is_directory and not self.on_hub:
            import open_clip

            architecture, _, tag = self.location.rpartition("/")
            if not architecture:
                hint = Message("write ARCH/TAG, for example ViT-B-32/laion2b_s34b_b79k")
                raise DcclipError("the open_clip model '{}' has no tag", hint, self.location)
            config = open_clip.get_pretrained_cfg(architecture, tag)
            if not config:
                tags = ", ".join(open_clip.list_pretrained_tags_by_model(architecture))
                tags = tags or Message("none (unknown architecture)")
                raise DcclipError(
                    "open_clip has no {}",
                    "choose one of the tags of {}: {}",
                    self.location,
                    architecture,
                    tags,
                )
            return check_repository(str(config.get("hf_hub", "")).rstrip("/"), OPEN_CLIP_WEIGHTS)
        folder = self.folder()
        files = (
            files_on_hub(self.location)
            if folder is None
            else {file.name for file in folder.iterdir()}
        )
        if missing := _missing_files(files):
            raise DcclipError(
                "{} has no {}",
                "copy or download the whole model again; use a directory written by "
                "save_pretrained or by dcclip",
                *(self.location, missing),
            )
        if folder is None:
            return
        if is_directory:
            check_directory(folder)
        if CONFIG in files:
            open_clip_config(folder, on_hub=not is_directory)
        else:
            from dcclip_cli.model.families import read_config

            read_config(folder / TRANSFORMERS_CONFIG, self.location)
        find_weights(
            str(folder), (*OPEN_CLIP_WEIGHTS, *TRANSFORMERS_WEIGHTS)
        )  # with all their parts

    def blank(self) -> Towers | None:
        """The towers without weights; None where files are absent, or a model cannot be built so.
        Raises as `load`.
        """
        folder = self.folder()
        if folder is None:
            return None
        if library_of(folder, self.library) == "open_clip":
            return blank_model(folder)
        from dcclip_cli.model.families import checked_family

        family = checked_family(str(folder), folder / TRANSFORMERS_CONFIG, self.trust_remote_code)
        with library_errors(
            Message("teacher {} cannot be built from its configuration", self.location), COPY_AGAIN
        ):
            return family.blank(folder)

    def load(self, progress: Progress) -> Towers:
        """The towers in fp32. Raises DcclipError if they cannot be loaded."""
        is_directory = self.path.is_dir() or self.path.is_absolute()
        library = library_of(self.path, self.library) if is_directory else self.library
        towers: Towers
        if library == "transformers":
            import transformers
            from huggingface_hub.utils.tqdm import are_progress_bars_disabled, enable_progress_bars

            from dcclip_cli.model.families import checked_family

            shows_downloads = not are_progress_bars_disabled()
            # of "Loading weights", and of downloads
            transformers.utils.logging.disable_progress_bar()
            if shows_downloads:
                enable_progress_bars()
            is_export = (self.path / PROVENANCE).exists()  # by dcclip
            message = Message("teacher {} cannot be loaded", self.location)
            with (
                read_provenance(self.path).checking() if is_export else nullcontext(),
                library_errors(message, CHECK_NAME),
                tokenizer_errors(f"{message}: its tokenizer"),
            ):
                file = require_file(self.location, TRANSFORMERS_CONFIG)
                family = checked_family(self.location, file, self.trust_remote_code)
                towers = family.load(self.location, file.parent, progress)
        elif folder := self.path if is_directory else self.download():
            if not is_directory and (folder / "image.onnx").is_file():
                hint = Message("use the model directory that it was exported from")
                raise DcclipError(
                    "{} is an exported bundle and cannot be a teacher", hint, self.target
                )
            towers = load_model(folder, progress=progress)
        else:
            towers = load_named(self.target, self.location if self.on_hub else "")
        towers.name = self.name or towers.name
        return towers

    def download(self) -> Path | None:
        """The folder in the hub's cache with a repository's model directory or export, downloaded
        if it is not there.

        None if there is no repository, or it has no record of dcclip that lists files: it is
        another library's.
        """
        if not self.on_hub or self.library != "open_clip":
            return None
        with library_errors(Message("model {} cannot be loaded", self.target), CHECK_NAME):
            record = find_file(self.location, PROVENANCE)
            files = (
                read_json(record, RECORD_HINT).get(FILES) if record else None
            )  # which are not here yet
            if not files:
                return None
            from huggingface_hub import snapshot_download

            return Path(snapshot_download(self.location, allow_patterns=[*files, PROVENANCE]))

    def fingerprint(self) -> list[Any] | None:
        """What changes whenever a file of the model does; None for unknown files. The hub's are
        known by content.
        """
        folder = self.path if self.path.is_dir() else None
        if folder is None and not self.on_hub:
            return [self.location]  # ARCH/TAG, which never changes
        for config in (TRANSFORMERS_CONFIG, CONFIG) if folder is None else ():
            with suppress(OSError, ValueError):  # no network, or no name of a repository
                # Asks the hub for the latest revision, as loading does; the folder is named by it.
                if file := find_file(self.location, config):
                    folder = file.parent
                    break
        if folder is None:
            return None
        files = []
        for file in sorted(path for path in folder.rglob("*") if path.is_file()):
            stat = file.stat()
            version = os.readlink(file) if file.is_symlink() else stat.st_mtime_ns
            files.append([str(file.relative_to(folder)), stat.st_size, version])
        return [str(folder), files]


def library_of(folder: Path, preferred: Library) -> Library:
    """The library that reads a model directory; `preferred` if both do. Raises DcclipError if none
    does.
    """
    libraries: list[Library] = []
    if any((folder / name).is_file() for name in (CONFIG, WEIGHTS)):
        libraries.append("open_clip")
    weights = ("model*.safetensors", "pytorch_model*.bin")
    if (folder / TRANSFORMERS_CONFIG).is_file() and any(any(folder.glob(name)) for name in weights):
        libraries.append("transformers")
    if libraries:
        return preferred if preferred in libraries else libraries[0]
    if not folder.is_dir():
        raise DcclipError(
            "{} is not a directory", "check the path, or use the name of a model on a hub", folder
        )
    if (folder / RECORD).is_file():  # a file that it lists is missing
        read_record(folder / RECORD, Message("copy the whole directory again"))
    names = sorted(path.name for path in folder.iterdir())
    hint = _HINT
    if inner := [
        name
        for name in names
        if (folder / name / "config.json").is_file() or _is_model(folder / name)
    ]:
        hint = Message("give its subdirectory {}", folder / inner[0])
    elif (folder / "image.onnx").is_file():
        hint = Message("give a model directory; for an export, the one that it was exported from")
    listing = ", ".join(names[:8]) + (", ..." if len(names) > 8 else "") or Message("nothing")
    raise DcclipError(
        "{} is not a model directory (dcclip, open_clip or transformers), export bundle "
        "or finished run (found: {})",
        hint,
        *(folder, listing),
    )


def _is_model(folder: Path) -> bool:
    return any((folder / name).is_file() for name in ("image.onnx", CONFIG, WEIGHTS))


def _missing_files(files: Collection[str]) -> str:
    """What a model with these files lacks: names of which one would do; empty if it lacks nothing."""
    present = {file.removesuffix(".index.json") for file in files}  # of weights in several files
    needed: Collection[Collection[str]] = ((CONFIG,), OPEN_CLIP_WEIGHTS)
    if CONFIG not in present:
        from dcclip_cli.model.families import FAMILIES

        families = [family for family in FAMILIES if not present.isdisjoint(family.weights)]
        needed = (families or FAMILIES)[0].required_files
    return next((" or ".join(names) for names in needed if present.isdisjoint(names)), "")


def parse(reference: str) -> tuple[str, str]:
    """The scheme of a reference (hf, hf-hub, ms or open_clip) and what follows it; ("", reference)
    if it has none.
    """
    scheme, _, name = reference.partition(":")
    return (scheme, name) if scheme in _SCHEMES and name else ("", reference)


def resolve(reference: str | None = None, trained: bool = False) -> ModelSource:
    """The model meant by `reference`, else by $DCCLIP_MODEL, else the starter; where runs are
    finished it names one.

    A run means its export, or with `trained` its model directory, if it has both. Raises
    DcclipError if `reference` or $DCCLIP_MODEL names no model.
    """
    if reference:
        return _named(reference, "", trained)
    if from_environment := os.environ.get("DCCLIP_MODEL"):
        return _named(from_environment, " ($DCCLIP_MODEL)", trained)
    finished = {
        folder.stat().st_mtime: run
        for run in Path("runs").glob("*/")
        if (folder := furthest_stage(run))
    }
    if not finished:
        return _named(STARTER, "")
    return _named(STARTER, Message("; use the newest run with --model {}", finished[max(finished)]))


def resolve_teacher(reference: str, library: Library) -> ModelSource:
    """As `resolve`, but what has no scheme is a name in `library` or a directory, which is not
    looked into.

    The starter's model directory is meant, not its bundle.
    """
    if reference == STARTER:
        why = Message("starter, included in dcclip{}", "")
        return ModelSource("open_clip", str(_STARTER_BUNDLE / "model"), why, name=STARTER)
    if parse(reference)[0]:
        return _named(reference, "", library=library)
    kind: Literal["hf", "open_clip"] = "hf" if library == "transformers" else "open_clip"
    on_hub = kind == "hf" and not Path(reference).is_dir()
    return ModelSource(kind, reference, Message("{} with {}{}", reference, library, ""), on_hub)


def _named(
    reference: str, why: str, trained: bool = False, library: Library = "transformers"
) -> ModelSource:
    scheme, name = parse(reference)
    if scheme:
        preferred = _SCHEMES[scheme] or library
        if Path(name).is_dir():
            return directory_source(Path(name), preferred, why, trained)
        if scheme != "open_clip" and not _HUB_NAME.fullmatch(name):
            raise DcclipError(
                "model {0} is neither a directory nor the name of a hub model",
                "write {1}:ORG/NAME or {1}:DIR",
                *(reference, scheme),
            )
        if scheme == "ms":
            return replace(
                directory_source(modelscope_folder(reference), preferred, why),
                name=name.rpartition("/")[2],
            )
        source = ModelSource(
            "hf" if scheme == "hf" else "open_clip", name, "", on_hub=scheme != "open_clip"
        )
        return replace(
            source, description=Message("{} with {}{}", source.target, source.library, why)
        )
    if reference == STARTER:
        if Path(STARTER).exists():
            why = Message("{} (for the folder of this name, use ./{})", why, STARTER)
        return ModelSource(
            "bundle", str(_STARTER_BUNDLE), Message("starter, included in dcclip{}", why)
        )
    if not Path(reference).is_dir():
        message = Message("model {} is not a directory", reference)
        raise DcclipError(
            message,
            "give a model directory, bundle, run, hf:ORG/NAME, open_clip:ARCH/TAG, "
            "hf-hub:ORG/NAME, ms:ORG/NAME or "
            "starter",
        )
    return directory_source(Path(reference), "open_clip", why, trained)


def directory_source(
    path: Path, preferred: Library, why: str = "", trained: bool = False
) -> ModelSource:
    """The model in a directory or run. Raises DcclipError if it has none."""
    folder = path if _is_model(path) else furthest_stage(path, trained) or path
    location = str(folder.resolve())
    if (folder / "image.onnx").is_file():
        return ModelSource("bundle", location, Message("bundle {}{}", folder, why))
    if library_of(folder, preferred) == "transformers":
        return ModelSource("hf", location, Message("{} with {}{}", folder, "transformers", why))
    return ModelSource("folder", location, Message("{}{}", folder, why))


def furthest_stage(run: Path, trained: bool = False) -> Path | None:
    """The model that the last finished stage of a run wrote, or with `trained` the last one that
    trains, if any did.
    """
    stages = sorted(
        STAGES, key=lambda stage: stage.trains == trained
    )  # those of the wanted kind last
    for stage in reversed(stages):
        if stage.model and _is_model(run / stage.name / stage.model):
            return run / stage.name / stage.model
    return None
