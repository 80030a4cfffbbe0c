"""`dcclip fit`: find and train the best student for a budget of file size and latency."""

from __future__ import annotations

import re
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any, Literal

from typer import BadParameter, Option

from dcclip_cli.cli import console, flags
from dcclip_cli.cli.predict import LABELS, LABELS_FILE, read_labels
from dcclip_cli.errors import Message


def seconds(value: str) -> float:
    """The seconds of --time, as in 90s, 5m, 1h or 1h30m. Raises BadParameter for anything else."""
    match = re.fullmatch(r"(?:(\d{1,4})h)?(?:(\d{1,4})m)?(?:(\d{1,6})s)?", value)
    if not match or not any(map(int, filter(None, match.groups()))):
        raise BadParameter(Message("{}: expected a time such as 90s, 5m, 1h or 1h30m", value[:40]))
    return sum(int(number or 0) * unit for number, unit in zip(match.groups(), (3600.0, 60.0, 1.0), strict=True))


_DATA = Option("--data", metavar="PATH", help="Folder of photographs or of class folders, or image-caption pairs.")
_KIND = Option("--kind", help="Override the detected kind of --data.")
_MAX_MB = Option("--max-mb", min=0.001, metavar="MB", help="Maximum size of the export, all files together.")
_MAX_MS = Option("--max-ms", min=0.001, metavar="MS", help="Maximum latency per image on this machine.")
_TIME = Option(
    "--time", parser=seconds, metavar="5m", help="Total time budget. Default: depends on the amount of data."
)
_THREADS = Option("--threads", min=1, callback=flags.at_a_time, help="CPU threads for the --max-ms measurement.")


def fit(
    data: Annotated[str, _DATA],
    teacher: Annotated[str, Option("--teacher", metavar="MODEL", help="Teacher, as for dcclip new.")] = "starter",
    labels: Annotated[str, LABELS] = "",
    labels_file: Annotated[Path | None, LABELS_FILE] = None,
    kind: Annotated[Literal["photos", "pairs", "classes"] | None, _KIND] = None,
    max_mb: Annotated[float | None, _MAX_MB] = None,
    max_ms: Annotated[float | None, _MAX_MS] = None,
    time: Annotated[float | None, _TIME] = None,
    threads: Annotated[int, _THREADS] = 1,
    out: Annotated[Path, Option("--out", metavar="DIR", help="Run directory.")] = Path("runs/fit"),
    trust_remote_code: flags.TrustRemoteCode = False,
    device: flags.Where = "auto",
    as_json: Annotated[bool, Option("--json", help="Print a JSON object.")] = False,
    quiet: flags.Quiet = False,
    verbose: flags.Verbose = False,
) -> None:
    """Find and train the best student within a budget for file size and latency.

    Measures candidates, trains each briefly, compares them on held-out samples, trains and exports the best one, and
    checks that the export meets the budget. Writes recipe.yaml, the bundle, fit.html and frontier.svg to DIR. If it is
    stopped, run the same command again to resume; Ctrl-C exports the best student so far.
    Latency on another device, such as a phone, differs.
    """
    flags.out(out)
    options: dict[str, Any] = {"labels": read_labels(labels, labels_file), "kind": kind, "threads": threads}

    from dcclip_cli import api
    from dcclip_cli.fitting.report import summary, table

    options |= {"max_mb": max_mb, "max_ms": max_ms, "time_s": time, "teacher": teacher, "device": device}
    talk = console.talk(quiet, verbose)
    result = api.fit(data, out=out, progress=talk, trust_remote_code=trust_remote_code, **options)
    if as_json:
        return console.show_json(asdict(result) | {"folder": str(result.folder)})
    console.show_table(summary(result), *table(result))
    console.show(str(result.folder))
