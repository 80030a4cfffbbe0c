"""Pushing a model to the Hugging Face Hub: what its repository and its card contain, and the
commit that uploads it.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from dcclip_cli.core.checksums import FILES, Record, read_record
from dcclip_cli.core.errors import DcclipError, Message
from dcclip_cli.core.files import json_text, read_json, several
from dcclip_cli.core.hub import OPEN_CLIP_SCHEME
from dcclip_cli.core.run_dir import RESOLVED
from dcclip_cli.curation.report import steps
from dcclip_cli.eval.card import CARD, add_results, read_card
from dcclip_cli.eval.result import METRIC_NAMES, EvalResult, load_results
from dcclip_cli.model.hub_models import TRANSFORMERS_CONFIG
from dcclip_cli.model.model_dir import PROVENANCE, model_fingerprint
from dcclip_cli.model.reference import ModelSource, parse
from dcclip_cli.model.weights import CONFIG

if TYPE_CHECKING:
    from huggingface_hub import CommitOperationAdd, ModelCard
    from huggingface_hub.hf_api import RepoSibling

_NAME = re.compile(
    r"(?!.*(\.\.|--|\.git$))[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}", re.ASCII
)
_COPY = Message("copy or create the whole directory again")
MANIFEST = "manifest.json"  # of a folder that `collect` wrote
_LOCAL = "local-dir:PATH"  # in the card of a model directory
_LICENSES = Message(
    "use a hub license id: --license apache-2.0 (or mit, cc-by-4.0, cc-by-nc-4.0, other, ...)"
)
_DATA = "Training data"  # a section of a card


@dataclass(frozen=True)
class PushPlan:
    """The files of a repository by their names in it, and `notes` for the user on what is missing
    or left out.
    """

    repository: str
    files: Mapping[str, Path | bytes]
    notes: tuple[str, ...]

    @property
    def card(self) -> str:
        card = self.files[CARD]
        assert isinstance(card, bytes)
        return card.decode()


@dataclass(frozen=True)
class Pushed:
    """A plan, where its push can be seen (empty for a dry run), and how many files the push
    changed.
    """

    plan: PushPlan
    url: str = ""
    changed: int = 0


def plan_push(
    model: ModelSource,
    repository: str,
    license: str | None = None,
    bundles: Sequence[Path] = (),
    data: Sequence[Path] = (),
) -> PushPlan:
    """What a push of a model directory or an export uploads; asks nobody and writes nothing.

    The model's run gives results, its export and what its data was collected from; `bundles` are
    further exports, `data` further folders of `collect`. Raises DcclipError for a damaged or
    missing model, and without a license.
    """
    if not _NAME.fullmatch(repository):
        raise DcclipError(
            "{} is not a repository name", "write ORG/NAME; ORG can be your user name", repository
        )
    folder = model.path
    if model.kind == "open_clip" or not folder.is_dir():
        raise DcclipError(
            "{} is already a hub model", "give a run, a model directory or an export", model.target
        )
    run = _find_run(folder)
    recipe = (yaml.safe_load((run / RESOLVED).read_text("utf-8")) if run else None) or {}
    record = _checked(folder)
    notes = list[str]()

    files = _model_files(folder, record, repository)
    exports = _exports(folder, record, run, bundles, notes)
    for name, bundle in exports.items():
        files |= {f"{name}/{inner}": bundle / inner for inner in _listed(bundle, _checked(bundle))}

    results = _load_results(folder, record, run)
    trained_on = _training_paths(recipe)
    manifests = _read_manifests(run, trained_on, data)

    card = _read_card(folder, repository)
    tags = ["clip", "dcclip"]
    if any(name.startswith("onnx") for name in exports):
        tags.append("onnx")
    header = {
        "tags": tags,
        "library_name": "open_clip" if CONFIG in files else None,
        "base_model": _base_model(recipe.get("teacher") or {}),
    }
    _complete_header(card, repository, license, header, manifests)
    add_results(card, results)
    reference = f"{OPEN_CLIP_SCHEME}:{repository}"
    sections = {
        "Use": _use_text(repository, reference, exports),
        "Results": _results_text(results),
        _DATA: _origin_text(trained_on, manifests),
    }
    card.text = card.text.replace(_LOCAL, reference)
    added = _add_sections(card, sections)
    files[CARD] = str(card).encode()

    has_data_section = bool(manifests) or _DATA not in added
    lacking = _card_notes(folder / CARD, bool(results), has_data_section)
    return PushPlan(repository, dict(sorted(files.items())), (*lacking, *notes))


def push(
    plan: PushPlan,
    private: bool = False,
    pull_request: bool = False,
    overwrite: bool = False,
) -> Pushed:
    """Upload a plan in one commit, creating its repository.

    Raises DcclipError where other files would change, and if a `private` repository exists and is
    public.
    """
    from huggingface_hub import CommitOperationAdd, HfApi
    from huggingface_hub.utils.sha import git_hash

    def is_same(file: CommitOperationAdd, on_hub: RepoSibling | None) -> bool:
        if on_hub is None:
            return False
        if on_hub.lfs:
            return file.upload_info.sha256.hex() == on_hub.lfs.sha256
        with file.as_file() as stream:
            return git_hash(stream.read()) == on_hub.blob_id

    api = HfApi(library_name="dcclip")
    name = plan.repository
    with _uploading(name):
        if not pull_request:
            api.create_repo(name, private=private or None, exist_ok=True)
        info = api.model_info(name, files_metadata=True)
        if private and not info.private:
            raise DcclipError(
                "{} exists and is public", "make it private on the hub, or omit --private", name
            )
        existing = {file.rfilename: file for file in info.siblings or ()}
        added = [CommitOperationAdd(path, file) for path, file in plan.files.items()]
        changed = [file for file in added if not is_same(file, existing.get(file.path_in_repo))]
        replaced = [file.path_in_repo for file in changed if file.path_in_repo in existing]
        if replaced and not (overwrite or pull_request):
            raise DcclipError(
                "{} exists, and {} of its files would be replaced: {}",
                "check the repository, then add --overwrite or --pull-request; or choose "
                "another repository",
                name,
                len(replaced),
                ", ".join(replaced[:8]) + (", ..." if len(replaced) > 8 else ""),
            )
        url = f"{api.endpoint}/{name}"
        if changed:
            message = f"Push {len(changed)} files with dcclip"
            done = api.create_commit(
                name,
                changed,
                commit_message=message,
                create_pr=pull_request,
                parent_commit=info.sha,
            )
            url = str(done.pr_url) if pull_request else url
    return Pushed(plan, url, len(changed))


_LOG_IN = Message("log in with: hf auth login, or set HF_TOKEN to a token that may write")
_HINTS = {
    401: _LOG_IN,
    403: _LOG_IN,
    404: Message("check the name; --pull-request needs an existing repository"),
}
_AGAIN = Message(
    "fix the reported problem, or wait; then run the same command again: no file is uploaded twice"
)


@contextmanager
def _uploading(repository: str) -> Iterator[None]:
    """Whatever keeps huggingface_hub from writing to a repository becomes a DcclipError."""
    from huggingface_hub.errors import HfHubHTTPError

    # The HTTP library's own errors are no OSError; RuntimeError is that of a file, ValueError that
    # of an answer.
    try:
        yield
    except (*HfHubHTTPError.__bases__, RuntimeError, ValueError) as error:  # type: ignore[misc]
        cause: Any = (type(error) is RuntimeError and error.__cause__) or error
        detail = str(getattr(cause, "server_message", None) or cause) or type(cause).__name__
        detail = " ".join((detail if cause is error else f"{error} {detail}").split())[:300]
        status = getattr(getattr(cause, "response", None), "status_code", None)
        if status is None and not isinstance(cause, ValueError):
            hint = Message("check the network, then run the same command again")
            raise DcclipError(
                "{}: the hub cannot be reached: {}", hint, repository, detail
            ) from None
        detail = f"HTTP {status}: {detail}" if status else detail
        raise DcclipError(
            "{}: the hub rejected the upload: {}",
            _HINTS.get(status or 0, _AGAIN),
            repository,
            detail,
        ) from None


def _find_run(folder: Path) -> Path | None:
    """The run that a model directory or an export is part of."""
    for parent in (folder.parent, folder.parent.parent):
        if (parent / RESOLVED).is_file():
            return parent
    return None


def _checked(folder: Path) -> Record:
    """The record of a directory whose files are as it lists them; an empty one of another
    library's.
    """
    if not (folder / PROVENANCE).exists():
        return Record(folder / PROVENANCE, {"kind": "model"}, _COPY)
    record = read_record(folder / PROVENANCE, _COPY)
    record.check()
    return record


def _listed(folder: Path, record: Record) -> list[str]:
    """The names of a directory's files: those in its record; of one without checksums all that are
    not hidden.
    """
    visible = (
        file.name
        for file in folder.iterdir()
        if file.is_file() and file.name[0] != "." and file.name != CARD
    )
    return sorted({*record.digests, PROVENANCE} if record.digests else visible)


def _model_files(folder: Path, record: Record, repository: str) -> dict[str, Path | bytes]:
    """The files of a model directory, or of an export, at the top of the repository.

    open_clip finds the tokenizer and the text tower of a directory by themselves, those of a
    repository by its name, which its configuration, and so the record, then contain.
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
    files[CONFIG] = changed = json_text(config)
    if record.digests:
        listed = {**record.digests, CONFIG: hashlib.sha256(changed).hexdigest()}
        files[PROVENANCE] = json_text({**record.content, FILES: listed})
    return files


def _exports(
    folder: Path, record: Record, run: Path | None, bundles: Sequence[Path], notes: list[str]
) -> dict[str, Path]:
    """The exports of a model by their folder in the repository: the one of its run, and those that
    the user names.
    """
    if record.content.get("kind") != "model":
        return {}
    export_of_run = run / "export" if run and (run / "export" / PROVENANCE).is_file() else None
    exports: dict[str, Path] = {}
    for bundle in (*([export_of_run] if export_of_run else []), *bundles):
        content = read_record(bundle / PROVENANCE, Message("give the folder of an export")).content
        if (
            content.get("model_fingerprint") == model_fingerprint(folder)
            and content.get("kind") != "model"
        ):
            kind = "onnx" if content["kind"] == "bundle" else content["kind"]
            exports[f"{kind}-{content['precision']}"] = bundle
            continue
        reason = Message("{} is not an export of the current model", bundle)
        if bundle is not export_of_run:
            raise DcclipError(reason, "export the model again, or remove --bundle")
        notes.append(Message("not uploaded: {}; export it again", reason))
    return exports


def _load_results(folder: Path, record: Record, run: Path | None) -> list[EvalResult]:
    """The results in a run that are of this model."""
    if run is None or not any((run / "eval").glob("*.json")):
        return []
    fingerprint = record.content.get("fingerprint") or model_fingerprint(folder)
    rows = load_results(run / "eval")
    return [row for row in rows if row.model_fingerprint.partition("-")[0] == fingerprint]


def _training_paths(recipe: Mapping[str, Any]) -> list[Path]:
    """Where a recipe's training data is, without what its own `collect` wrote."""
    data = recipe.get("data") or {}
    paths = list[Path]()
    for key in ("train", "images", "texts"):
        paths += [Path(path) for path in several(data.get(key) or ()) if path != "collect"]
    return paths


def _read_manifests(
    run: Path | None, trained_on: Sequence[Path], data: Sequence[Path]
) -> list[dict[str, Any]]:
    """The manifests of the folders that `collect` wrote: those of a run, and those that the user
    names.
    """
    # relative paths mean this run's data where the run is in the current directory
    is_here = run is not None and run.resolve().is_relative_to(Path.cwd())
    candidates = [run / "collect"] if run else []
    candidates += [path for path in trained_on if path.is_absolute() or is_here]
    collections = [path for path in dict.fromkeys(candidates) if (path / MANIFEST).is_file()]
    hint = Message("give a folder that dcclip collect wrote")
    return [read_json(path / MANIFEST, hint) for path in (*collections, *data)]


def _read_card(folder: Path, repository: str) -> ModelCard:
    """The card of a directory; one with only a title if there is none."""
    from huggingface_hub import ModelCard

    if (folder / CARD).is_file():
        return read_card(folder / CARD)
    return ModelCard(f"---\n{{}}\n---\n# {repository.rpartition('/')[2]}\n")


def _add_sections(card: ModelCard, sections: Mapping[str, str]) -> list[str]:
    """Add the sections that a card lacks, and return their titles."""
    text = card.text.rstrip() + "\n"
    present = set(re.findall(r"^#+ (.+?)\s*$", text.lower(), re.M))
    added = [title for title, body in sections.items() if body and title.lower() not in present]
    for title in added:
        text += f"\n## {title}\n\n{sections[title].rstrip()}\n"
    card.text = text
    return added


def _on_hub(name: str) -> bool:
    """Whether a name means a repository of the hub, and no folder here."""
    return bool(_NAME.fullmatch(name)) and not Path(name).exists()


def _base_model(teacher: Mapping[str, Any]) -> str | None:
    """The hub's repository of a recipe's teacher; None for one of open_clip or in a directory."""
    scheme, name = parse(str(teacher.get("model", "")))
    is_repository = scheme in ("hf", "hf-hub") or (
        not scheme and teacher.get("kind") != "open_clip"
    )
    return name if is_repository and _on_hub(name) else None


def _complete_header(
    card: ModelCard,
    repository: str,
    license: str | None,
    additions: Mapping[str, Any],
    manifests: Sequence[Mapping[str, Any]],
) -> None:
    """Add to a card's header what its author did not say. Raises DcclipError if no license is
    named.
    """
    sources = [source for manifest in manifests for source in manifest["options"]["sources"]]
    if license and not re.fullmatch(r"[a-z0-9][a-z0-9.+-]*", license):
        raise DcclipError("{!r} is not a hub license id", _LICENSES, license)
    if not (license or card.data.get("license")):
        data_licenses = ", ".join(
            sorted({source["license"] for source in sources if source.get("license")})
        )
        of_data = Message("; that of its data: {}", data_licenses) if data_licenses else ""
        raise DcclipError("no license given for {}{}", _LICENSES, repository, of_data)
    card.data["license"] = license or card.data.get("license")
    card.data["tags"] = list(dict.fromkeys([*(card.data.get("tags") or []), *additions["tags"]]))
    hub_paths = (source["path"] for source in sources if source.get("kind") == "hub")
    added = {
        "library_name": additions["library_name"],
        "pipeline_tag": "zero-shot-image-classification",
        "language": ["zh", "en"],
        "base_model": additions["base_model"],
        "datasets": sorted({path for path in hub_paths if _on_hub(str(path))}),
    }
    for key, value in added.items():
        if value and not card.data.get(key):
            card.data[key] = value


def _card_notes(card: Path, has_results: bool, has_data: bool) -> list[Message]:
    """What the user should know about the lacks of a card."""
    notes = []
    if not has_results:
        lack = Message(
            "it has no results: evaluate with a recipe (dcclip eval RECIPE), and push again"
        )
        notes.append(Message("the card: {}", lack))
    if not has_data:
        lack = Message(
            'it does not say what the model was trained on: add a section "{}" to {}', _DATA, card
        )
        notes.append(
            Message("the card: {}, or give the folder that collect wrote with --data DIR", lack)
        )
    return notes


def _use_text(repository: str, reference: str, exports: Iterable[str]) -> str:
    """The card's section on how to use the model and its exports."""
    lines = ["```sh", f"dcclip predict photo.jpg --labels 猫,dog --model {reference}", "```", ""]
    local = repository.rpartition("/")[2]
    for name in exports:
        download = f"hf download {repository} --include '{name}/*' --local-dir {local}"
        lines += [f"`{name}/` needs no torch: `{download}`, then `--model {local}/{name}`.", ""]
    return "\n".join(lines)


def _results_text(results: Sequence[EvalResult]) -> str:
    """The card's table of results on full data sets; empty without results."""
    rows = []
    for result in results:
        if not (result.limit or result.partial):
            metric = METRIC_NAMES.get(result.metric, result.metric)
            rows.append(
                (result.dataset, result.language, f"{metric}, %", f"{100 * result.value:.2f}")
            )
    return _table(("data set", "language", "metric", "value"), rows) if results else ""


def _origin_text(trained_on: Sequence[Path], manifests: Sequence[Mapping[str, Any]]) -> str:
    """The card's section on the training data."""
    if manifests:
        return "\n".join(map(_data_text, manifests))
    names = f" ({', '.join(path.name for path in trained_on)})" if trained_on else ""
    return f"Where the training data{names} is from is not recorded."


def _data_text(manifest: Mapping[str, Any]) -> str:
    """Sources, licenses, counts and rules of what `collect` wrote; no paths."""
    sources = {
        source.get("name")
        or Path(str(source.get("path", ""))).name: source  # without the folders that it is in
        for source in manifest["options"]["sources"]
    }
    rows = [
        (
            name,
            source.get("kind", ""),
            source.get("license") or "not recorded",
            *_counts(manifest["sources"].get(name)),
        )
        for name in dict.fromkeys(
            [*sources, *manifest["sources"]]
        )  # pairs may have the source that they had before
        for source in (sources.get(name, {}),)
    ]
    rows.append(("all", "", "", *_counts(manifest["pairs"])))
    captions = ", ".join(
        f"{count['kept']:,} in {language}" for language, count in manifest["captions"].items()
    )
    rules = [
        (row["text"], f"{row['pairs']:,}", f"{sum(row['captions'].values()):,}")
        for step in steps(manifest)
        for row in step["reasons"]
    ]
    text = [
        "Image-caption pairs, collected, filtered and deduplicated by `dcclip collect`:",
        _table(("source", "kind", "license", "pairs read", "kept"), rows),
        f"Captions kept: {captions}."
        + (" What was dropped, and why:" if rules else " Nothing was dropped."),
        *([_table(("rule", "pairs", "captions"), rules)] if rules else []),
    ]
    return "\n\n".join(text)


def _counts(count: Mapping[str, Any] | None) -> tuple[str, str]:
    return (f"{count['read']:,}", f"{count['kept']:,}") if count else ("", "")


def _table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join(f"| {' | '.join(cell.replace('|', '/') for cell in line)} |" for line in lines)
