"""The formats that results are written in: dcclip's own, and those of leaderboards."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from dcclip_cli.errors import DcclipError, Message
from dcclip_cli.eval import report
from dcclip_cli.eval.dataset import DataSet
from dcclip_cli.eval.evaluate import EvalOptions
from dcclip_cli.eval.leaderboards import hub, mteb
from dcclip_cli.eval.result import EvalResult
from dcclip_cli.model.reference import ModelReference
from dcclip_cli.progress import Progress, Silent


@dataclass(frozen=True)
class Written:
    """What is written: results, the data sets that a report shows wrong images of, and the owner of repositories.

    `references` are the models that were measured, by fingerprint.
    """

    results: Sequence[EvalResult]
    datasets: Sequence[DataSet] = ()
    owner: str | None = None  # a user or an organisation of the hub
    progress: Progress = field(default_factory=Silent)
    references: Mapping[str, ModelReference] = field(default_factory=dict)


def _dcclip(written: Written, folder: Path) -> None:
    report.save_report(written.results, written.datasets, folder, written.progress)
    written.progress.say(Message("results: {} (open {})", folder, folder / "report.html"))


def _hub(written: Written, folder: Path) -> None:
    for line in hub.save_repositories(written.results, folder, hub.check_owner(written.owner)):
        written.progress.say(line)


def _mteb(written: Written, folder: Path) -> None:
    for line in mteb.save_mteb(written.results, folder, written.references, written.owner):
        written.progress.say(line)


FORMATS: dict[str, Callable[[Written, Path], None]] = {"dcclip": _dcclip, "hub": _hub, "mteb": _mteb}


def check_formats(names: Sequence[str], owner: str | None, options: EvalOptions | None = None) -> None:
    """Raise the error that writing these formats would end in, as far as it is known before measuring."""
    if unknown := [name for name in names if name not in FORMATS]:
        raise DcclipError("{} is not a format of results", "use one of: {}", unknown[0], ", ".join(FORMATS))
    if "hub" in names:
        hub.check_owner(owner)
        if options:
            hub.check_options(options)
    if "mteb" in names and options:
        mteb.check_options(options)


def write_results(written: Written, out: Path, formats: Sequence[str]) -> None:
    """Write the results in each of the formats: dcclip's in the folder `out`, another in a folder of its name in it."""
    for name in dict.fromkeys(formats):
        FORMATS[name](written, out if name == "dcclip" else out / name)
