"""The card of a published model: its own README.md, completed with what dcclip knows of the model and its data."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dcclip_cli.errors import DcclipError, Message
from dcclip_cli.eval.card import add_results, read_card
from dcclip_cli.eval.result import METRIC_NAMES
from dcclip_cli.files import read_json

if TYPE_CHECKING:
    from huggingface_hub import ModelCard

    from dcclip_cli.eval.result import EvalResult

MANIFEST = "manifest.json"  # of a folder that `collect` wrote
_LOCAL = "local-dir:PATH"  # in the card of a model directory
_LICENSES = Message("name one of the hub's: --license apache-2.0 (or mit, cc-by-4.0, cc-by-nc-4.0, other, ...)")
_DATA, _USE, _RESULTS = "Training data", "Use", "Results"


@dataclass(frozen=True)
class CardFacts:
    """What is added to a card. `bundles` are folders of exports in the repository, `data` folders of `collect`."""

    repository: str
    license: str | None = None
    library: str | None = None
    base_model: str | None = None
    results: Sequence[EvalResult] = ()
    bundles: Sequence[str] = ()
    data: Sequence[Path] = ()
    data_names: Sequence[str] = ()  # of training data that collect did not write
    missing: list[str] = field(default_factory=list)  # what the card does not say in the end


def complete_card(file: Path, facts: CardFacts) -> ModelCard:
    """The card in a file with the facts. What its author wrote stays: keys of the header, and sections by their title.

    Raises DcclipError if no license is named.
    """
    from huggingface_hub import ModelCard

    title = f"---\n{{}}\n---\n# {facts.repository.rpartition('/')[2]}\n"
    card = read_card(file) if file.is_file() else ModelCard(title)
    collected = [_collected(folder) for folder in facts.data]
    _complete_header(card, facts, collected)
    add_results(card, facts.results)
    card.text = card.text.replace(_LOCAL, f"hf-hub:{facts.repository}").rstrip() + "\n"
    _add_section(card, _USE, _use(facts))
    if facts.results:
        _add_section(card, _RESULTS, _table(("data set", "language", "metric", "value"), _result_rows(facts.results)))
    else:
        facts.missing.append("it has no results: evaluate with a recipe (dcclip eval RECIPE), and push again")
    if not _has_section(card, _DATA) and not collected:
        what = f'it does not say what the model was trained on: add a section "{_DATA}" to {file}'
        facts.missing.append(f"{what}, or name the folder that collect wrote with --data DIR")
    _add_section(card, _DATA, "\n".join(one.text for one in collected) or _unknown_data(facts.data_names))
    return card


def _complete_header(card: ModelCard, facts: CardFacts, collected: Sequence[_Collected]) -> None:
    license = facts.license or card.data.get("license")
    if not license:
        known = sorted({license for one in collected for license in one.licenses})
        of_data = Message("; that of its data: {}", ", ".join(known)) if known else ""
        raise DcclipError("no license is named for {}{}", _LICENSES, facts.repository, of_data)
    if facts.license and not re.fullmatch(r"[a-z0-9][a-z0-9.+-]*", facts.license):
        raise DcclipError("{!r} is no license of the hub", _LICENSES, facts.license)
    card.data["license"] = license
    tags = ["clip", "dcclip", *(["onnx"] if any(name.startswith("onnx") for name in facts.bundles) else [])]
    card.data["tags"] = list(dict.fromkeys([*(card.data.get("tags") or []), *tags]))
    datasets = sorted({name for one in collected for name in one.on_hub})
    added = {
        "library_name": facts.library,
        "pipeline_tag": "zero-shot-image-classification",
        "language": ["zh", "en"],
        "base_model": facts.base_model,
        "datasets": datasets,
    }
    for key, value in added.items():
        if value and not card.data.get(key):
            card.data[key] = value


@dataclass(frozen=True)
class _Collected:
    """What the manifest of a collection says for a card."""

    text: str
    licenses: frozenset[str]
    on_hub: frozenset[str]


def _collected(folder: Path) -> _Collected:
    """Sources, licenses, counts and rules of a folder that `collect` wrote; no paths. Raises DcclipError for others."""
    from dcclip_cli.curation.report import steps

    manifest = read_json(folder / MANIFEST, Message("name a folder that dcclip collect wrote"))
    known = {_label(source): source for source in manifest["options"]["sources"]}  # of any version
    rows = [
        (name, one.get("kind", ""), one.get("license") or "not recorded", *_counts(manifest["sources"].get(name)))
        for name in dict.fromkeys([*known, *manifest["sources"]])  # pairs may have the source that they had before
        for one in (known.get(name, {}),)
    ]
    rows.append(("all", "", "", *_counts(manifest["pairs"])))
    captions = ", ".join(f"{count['kept']:,} in {language}" for language, count in manifest["captions"].items())
    rules = [
        (row["text"], f"{row['pairs']:,}", f"{sum(row['captions'].values()):,}")
        for step in steps(manifest)
        for row in step["reasons"]
    ]
    text = [
        "Image-caption pairs, collected, filtered and deduplicated by `dcclip collect`:",
        _table(("source", "kind", "license", "pairs read", "kept"), rows),
        f"Captions kept: {captions}." + (" What was dropped, and why:" if rules else " Nothing was dropped."),
        *([_table(("rule", "pairs", "captions"), rules)] if rules else []),
    ]
    licenses = frozenset(source["license"] for source in known.values() if source.get("license"))
    hub = (str(source["path"]) for source in known.values() if source.get("kind") == "hub")
    on_hub = frozenset(name for name in hub if re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", name) and not Path(name).exists())
    return _Collected("\n\n".join(text), licenses, on_hub)


def _label(source: Mapping[str, Any]) -> str:
    """The name of a source, without the folders that it is in."""
    return source.get("name") or str(source.get("path", "")).rstrip("/").rpartition("/")[2]


def _counts(count: Mapping[str, Any] | None) -> tuple[str, str]:
    return (f"{count['read']:,}", f"{count['kept']:,}") if count else ("", "")


def _unknown_data(names: Sequence[str]) -> str:
    of = f" ({', '.join(names)})" if names else ""
    return f"Where the training data{of} is from is not recorded.\n"


def _result_rows(results: Sequence[EvalResult]) -> list[tuple[str, ...]]:
    whole = [one for one in results if not (one.limit or one.partial)]
    metrics = [(one, METRIC_NAMES.get(one.metric, one.metric)) for one in whole]
    return [(one.dataset, one.language, f"{name}, %", f"{100 * one.value:.2f}") for one, name in metrics]


def _use(facts: CardFacts) -> str:
    name = facts.repository
    lines = ["```sh", f"dcclip predict photo.jpg --labels 猫,dog --model hf-hub:{name}", "```", ""]
    for bundle in facts.bundles:
        local = name.rpartition("/")[2]
        download = f"hf download {name} --include '{bundle}/*' --local-dir {local}"
        lines += [f"`{bundle}/` needs no torch: `{download}`, then `--model {local}/{bundle}`.", ""]
    return "\n".join(lines)


def _table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join(f"| {' | '.join(cell.replace('|', '/') for cell in line)} |" for line in lines)


def _has_section(card: ModelCard, title: str) -> bool:
    return bool(re.search(rf"^#+ {title}\s*$", card.text, re.M | re.I))


def _add_section(card: ModelCard, title: str, text: str) -> None:
    if not _has_section(card, title):
        card.text += f"\n## {title}\n\n{text.rstrip()}\n"
