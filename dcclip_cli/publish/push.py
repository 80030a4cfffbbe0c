"""Pushing a model to the Hugging Face Hub: what its repository contains, and the one commit that uploads it."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from dcclip_cli.checksums import FILES, Record, read_record
from dcclip_cli.errors import DcclipError, Message
from dcclip_cli.eval.card import CARD
from dcclip_cli.eval.compare import unfit
from dcclip_cli.eval.leaderboards.hub import model_files
from dcclip_cli.eval.result import EvalResult, load_results
from dcclip_cli.files import file_sha256, json_text
from dcclip_cli.model.hub_models import TRANSFORMERS_CONFIG
from dcclip_cli.model.model_dir import PROVENANCE, model_fingerprint
from dcclip_cli.model.reference import ModelReference, resolve
from dcclip_cli.model.weights import CONFIG
from dcclip_cli.progress import Progress, Silent
from dcclip_cli.publish.card import MANIFEST, CardFacts, complete_card
from dcclip_cli.run_dir import RESOLVED, STAGES

if TYPE_CHECKING:
    from huggingface_hub.hf_api import ModelInfo, RepoSibling

_NAME = re.compile(r"(?!.*(\.\.|--|\.git$))[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}", re.ASCII)
_COPY = "copy the whole directory again, or make it again"
_FORMATS = {"bundle": "onnx"}  # by the kind in a record; others have the same name


@dataclass(frozen=True)
class PushOptions:
    """What is pushed with a model. `bundles` are exports of it, `data` folders of `collect`, besides its run's."""

    license: str | None = None
    bundles: Sequence[Path] = ()
    data: Sequence[Path] = ()


@dataclass(frozen=True)
class PushPlan:
    """The files of a repository by their names in it, and `notes` for the user on what is missing or left out."""

    repository: str
    files: Mapping[str, Path | bytes]
    notes: tuple[str, ...]

    @property
    def sizes(self) -> dict[str, int]:
        """The size of each file in bytes."""
        return {name: len(one) if isinstance(one, bytes) else one.stat().st_size for name, one in self.files.items()}

    @property
    def card(self) -> str:
        card = self.files[CARD]
        assert isinstance(card, bytes)
        return card.decode()


@dataclass(frozen=True)
class Pushed:
    """A plan, where its push can be seen (empty for a dry run), and how many files the push changed."""

    plan: PushPlan
    url: str = ""
    changed: int = 0


def find_model(name: str) -> ModelReference:
    """The model to push; of a run the one that was trained last, not its export. Raises DcclipError if it has none."""
    folders = [Path(name) / stage.name / str(stage.model) for stage in reversed(STAGES) if stage.trains]
    return resolve(str(next((one for one in folders if (one / PROVENANCE).is_file()), name)))


def plan_push(model: ModelReference, repository: str, options: PushOptions) -> PushPlan:
    """What a push of a model directory or an export uploads; asks nobody and writes nothing.

    From the run that a model is in come its results, its export and what its data was collected from. Raises
    DcclipError for a damaged model, for one that is not here, and if no license is named.
    """
    if not _NAME.fullmatch(repository):
        raise DcclipError("{} is no name of a repository", "write ORG/NAME; ORG may be your user name", repository)
    folder = model.path
    if model.kind == "open_clip" or not folder.is_dir():
        raise DcclipError("{} is a model on a hub already", "name a run, a model directory or an export", model.target)
    record = _checked(folder)
    run = _run_of(folder)
    notes: list[str] = []
    files = _model_files(folder, record, repository)
    bundles = _bundles(folder, record, run, options, notes)
    for name, bundle in bundles.items():
        files |= {f"{name}/{inner}": bundle / inner for inner in _listed(bundle, _checked(bundle))}
    results = _results(folder, record, run)
    fit = [one for one in results if not unfit(one)]
    boards = model_files(fit, repository.partition("/")[0])
    files |= {benchmark.file: text.encode() for benchmark, text in boards.items()}
    recipe = _recipe(run)
    data = [*_collections(run, recipe), *options.data]
    names = [] if data else _data_names(recipe)
    library = "open_clip" if CONFIG in files else None
    facts = CardFacts(repository, options.license, library, _base_model(recipe), results, list(bundles), data, names)
    files[CARD] = str(complete_card(folder / CARD, facts)).encode()
    notes = [*(f"the card: {one}" for one in facts.missing), *notes]
    return PushPlan(repository, dict(sorted(files.items())), tuple(notes))


def push(
    plan: PushPlan,
    private: bool = False,
    pull_request: bool = False,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> Pushed:
    """Upload a plan's files in one commit, to a repository that is created where there is none.

    Files of the repository that are not in the plan stay. Raises DcclipError where others would change without
    `overwrite`, and if the hub cannot be reached or refuses it; a second call uploads what the first one did not.
    """
    from huggingface_hub import CommitOperationAdd, HfApi

    talk, api, name = progress or Silent(), HfApi(library_name="dcclip"), plan.repository
    with _uploading(name):
        if not pull_request:
            api.create_repo(name, private=private or None, exist_ok=True)
        info = api.model_info(name, files_metadata=True)
        changed = _changed(plan, info)
        replaced = [one for one in changed if one in {sibling.rfilename for sibling in info.siblings or ()}]
        if replaced and not (overwrite or pull_request):
            what = Message(
                "{} exists, and {} of its files would change: {}",
                name,
                len(replaced),
                ", ".join(replaced[:8]) + (", ..." if len(replaced) > 8 else ""),
            )
            hint = Message("look at it; then add --overwrite, or --pull-request, or name another repository")
            raise DcclipError(what, hint)
        if private and not info.private:
            talk.say(Message("{} exists and is public: --private has no effect", name))
        if not changed:
            return Pushed(plan, f"{api.endpoint}/{name}")
        done = api.create_commit(
            name,
            [CommitOperationAdd(one, plan.files[one]) for one in changed],
            commit_message=f"Push {len(changed)} files with dcclip",
            create_pr=pull_request,
            parent_commit=info.sha,
        )
    url = done.pr_url if pull_request else f"{api.endpoint}/{name}"
    return Pushed(plan, str(url), len(changed))


def _changed(plan: PushPlan, info: ModelInfo) -> list[str]:
    """The files of a plan that the repository does not have, or with another content."""
    there = {one.rfilename: one for one in info.siblings or ()}
    return [name for name, one in plan.files.items() if name not in there or not _is_same(one, there[name])]


def _is_same(file: Path | bytes, there: RepoSibling) -> bool:
    from huggingface_hub.utils.sha import git_hash

    if there.lfs and isinstance(file, Path):  # may be large
        return file_sha256(file) == there.lfs.sha256
    content = file.read_bytes() if isinstance(file, Path) else file
    if there.lfs:
        return hashlib.sha256(content).hexdigest() == there.lfs.sha256
    return git_hash(content) == there.blob_id


_LOG_IN = Message("log in with: hf auth login, or set HF_TOKEN to a token that may write")
_AGAIN = Message("run the same command again: what is uploaded already is not uploaded twice")
_CHANGE = Message("change what it names, and push again")
_REFUSALS = {
    401: (Message("the hub accepts no token of yours"), _LOG_IN),
    403: (Message("your token must not write there"), _LOG_IN),
    404: (
        Message("the hub does not have it, or not for you"),
        Message("check the name; without --pull-request it is created"),
    ),
    413: (Message("a file is too large for the hub"), Message("export it in a smaller precision, or leave it out")),
}
_FOR_NOW = (409, 412, 429)  # another process changes it, or too many requests


@contextmanager
def _uploading(repository: str) -> Iterator[None]:
    """Whatever keeps huggingface_hub from writing to a repository becomes a DcclipError."""
    from huggingface_hub.errors import HfHubHTTPError

    # The HTTP library's own errors are no OSError; RuntimeError is that of a file, ValueError that of an answer.
    try:
        yield
    except (*HfHubHTTPError.__bases__, RuntimeError, ValueError) as error:  # type: ignore[misc]
        raise _refused(repository, error) from None


def _refused(repository: str, error: Any) -> DcclipError:
    from huggingface_hub.constants import HF_HUB_OFFLINE

    place = ""
    if type(error) is RuntimeError and error.__cause__:  # Error while uploading 'NAME' to the Hub.
        place, error = f"{str(error).split(chr(39))[1:2] or ['a file']}"[2:-2] + ": ", error.__cause__
    said = " ".join(str(getattr(error, "server_message", None) or error or type(error).__name__).split())[:300]
    if getattr(error, "response", None) is not None:
        status = int(error.response.status_code)
        hint = Message("wait, then {}", _AGAIN) if status >= 500 or status in _FOR_NOW else _CHANGE
        why, hint = _REFUSALS.get(status, (Message("the hub refuses it ({})", status), hint))
    elif HF_HUB_OFFLINE:
        why, said = Message("the hub cannot be reached"), Message("HF_HUB_OFFLINE is set")
        hint = Message("unset HF_HUB_OFFLINE")
    elif isinstance(error, ValueError):
        why, hint = Message("the hub refuses it"), _CHANGE
    else:
        why, hint = Message("the hub cannot be reached"), Message("check the network, then {}", _AGAIN)
    return DcclipError("{}: {}{}: {}", hint, repository, place, why, said)


def _checked(folder: Path) -> Record:
    """The record of a directory whose files are as it lists them; an empty one of another library's."""
    if not (folder / PROVENANCE).exists():
        return Record(folder / PROVENANCE, {"kind": "model"}, _COPY)
    record = read_record(folder / PROVENANCE, _COPY)
    record.check()
    return record


def _listed(folder: Path, record: Record) -> list[str]:
    """The names of a directory's files: those in its record; of one without checksums all that are not hidden."""
    there = (file.name for file in folder.iterdir() if file.is_file() and file.name[0] != "." and file.name != CARD)
    return sorted({*record.digests, PROVENANCE} if record.digests else there)


def _model_files(folder: Path, record: Record, repository: str) -> dict[str, Path | bytes]:
    """The files of a model directory, or of an export, at the top of the repository.

    open_clip finds the tokenizer and the text tower of a directory by themselves, those of a repository by its name,
    which its configuration, and so the record, then contain.
    """
    files: dict[str, Path | bytes] = {name: folder / name for name in _listed(folder, record)}
    if CONFIG not in files:
        return files
    config = json.loads((folder / CONFIG).read_text("utf-8"))
    text = config["model_cfg"]["text_cfg"]
    if "hf_tokenizer_name" in text:
        text["hf_tokenizer_name"] = repository
    if "hf_model_name" in text and (folder / TRANSFORMERS_CONFIG).is_file():
        text["hf_model_name"] = repository
    changed = json.dumps(config, indent=2, ensure_ascii=False).encode() + b"\n"
    files[CONFIG] = changed
    if record.digests:
        listed = {**record.digests, CONFIG: hashlib.sha256(changed).hexdigest()}
        files[PROVENANCE] = json_text({**record.content, FILES: listed})
    return files


def _run_of(folder: Path) -> Path | None:
    """The run directory that a model directory or an export is in."""
    return next((one for one in (folder.parent, folder.parent.parent) if (one / RESOLVED).is_file()), None)


def _bundles(folder: Path, record: Record, run: Path | None, options: PushOptions, notes: list[str]) -> dict[str, Path]:
    """The exports of a model by their folder in the repository: the one of its run, and those that the user names."""
    if record.content.get("kind") != "model":
        return {}
    own = run / "export" if run and (run / "export" / PROVENANCE).is_file() else None
    found: dict[str, Path] = {}
    for bundle in (*([own] if own else []), *options.bundles):
        about = read_record(bundle / PROVENANCE, Message("name the folder of an export")).content
        if about.get("model_fingerprint") == model_fingerprint(folder) and about.get("kind") != "model":
            found[f"{_FORMATS.get(about['kind'], about['kind'])}-{about['precision']}"] = bundle
            continue
        what = Message("{} is no export of this model as it is now", bundle)
        if bundle is not own:
            raise DcclipError(what, "export the model again, or leave out --bundle")
        notes.append(f"left out: {what}; export it again")
    return found


def _results(folder: Path, record: Record, run: Path | None) -> list[EvalResult]:
    """The results of the run that are of this model."""
    if run is None or not any((run / "eval").glob("*.json")):
        return []
    own = record.content.get("fingerprint") or model_fingerprint(folder)
    return [one for one in load_results(run / "eval") if one.model_fingerprint.partition("-")[0] == own]


def _recipe(run: Path | None) -> dict[str, Any]:
    content = yaml.safe_load((run / RESOLVED).read_text("utf-8")) if run else None
    return content if isinstance(content, dict) else {}


def _base_model(recipe: Mapping[str, Any]) -> str | None:
    """The teacher's repository on the hub; None for one of another name or in a directory."""
    teacher = recipe.get("teacher") or {}
    name, on_hub = str(teacher.get("model", "")), teacher.get("kind") != "open_clip"
    found = name.removeprefix("hf-hub:")
    return found if (on_hub or found != name) and _NAME.fullmatch(found) and not Path(found).exists() else None


def _collections(run: Path | None, recipe: Mapping[str, Any]) -> list[Path]:
    """The folders of the training data that `collect` wrote."""
    found = [Path(one) for one in _trained_on(recipe)]
    if run:
        found.append(run / "collect")
    return [one for one in dict.fromkeys(found) if (one / MANIFEST).is_file()]


def _data_names(recipe: Mapping[str, Any]) -> list[str]:
    return [Path(one).name for one in _trained_on(recipe)]


def _trained_on(recipe: Mapping[str, Any]) -> list[str]:
    data = recipe.get("data") or {}
    given = [data.get(key) for key in ("train", "images", "texts")]
    return [one for several in given for one in ([several] if isinstance(several, str) else several or ())]
