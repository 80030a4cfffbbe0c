"""The formats that results are written in: dcclip's own, and those of leaderboards, a module each in LEADERBOARDS."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Protocol

from dcclip_cli.errors import DcclipError, Message
from dcclip_cli.eval import report
from dcclip_cli.eval.dataset import DataSet
from dcclip_cli.eval.evaluate import EvalOptions
from dcclip_cli.eval.leaderboards import hub, immich, mteb
from dcclip_cli.eval.result import EvalResult
from dcclip_cli.model.reference import ModelSource
from dcclip_cli.progress import Progress

_OWN = "dcclip"


class Leaderboard(Protocol):
    """What a module of this folder provides."""

    def check(self, options: EvalOptions | None, owner: str | None) -> None:
        """Raise the error that `write` would end in, as far as it is known without results; `options` may be too."""

    def write(
        self, results: Sequence[EvalResult], folder: Path, owner: str | None, models: Mapping[str, ModelSource]
    ) -> list[str]:
        """Write the files, with their folder, and return lines for the user. Raises DcclipError if no result is fit.

        `owner` is a user or organisation of the hub; `models` are those that were measured just now, by fingerprint.
        """


LEADERBOARDS: dict[str, Leaderboard] = {"hub": hub, "mteb": mteb, "immich": immich}


def check_formats(names: Sequence[str], owner: str | None, options: EvalOptions | None = None) -> None:
    """Raise the error that writing these formats would end in, as far as it is known before measuring."""
    for name in names:
        if name in LEADERBOARDS:
            LEADERBOARDS[name].check(options, owner)
        elif name != _OWN:
            raise DcclipError("{} is not a results format", "use one of: {}", name, ", ".join([_OWN, *LEADERBOARDS]))


def write_results(
    results: Sequence[EvalResult],
    out: Path,
    formats: Sequence[str],
    progress: Progress,
    owner: str | None = None,
    datasets: Sequence[DataSet] = (),
    models: Mapping[str, ModelSource] = MappingProxyType({}),
) -> None:
    """Write the results in each of the formats: dcclip's in the folder `out`, another in a folder of its name in it.

    The report shows wrong images of the `datasets`; `models` are as in Leaderboard.
    """
    for name in dict.fromkeys(formats):
        if name == _OWN:
            report.save_report(results, datasets, out, progress)
            progress.say(Message("results: {} (open {})", out, out / "report.html"))
        else:
            for line in LEADERBOARDS[name].write(results, out / name, owner, models):
                progress.say(line)
