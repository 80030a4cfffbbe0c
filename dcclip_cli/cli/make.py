"""`dcclip new`: a commented recipe from a few choices, and `dcclip fit`: the best student within a
budget.
"""

import re
import sys
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any, Literal

from typer import Argument, BadParameter, Option, prompt

from dcclip_cli.cli import console, flags
from dcclip_cli.cli.predict import LABELS, LABELS_FILE, read_labels
from dcclip_cli.core.errors import DcclipError, Message

_ABOUT = {  # of teachers
    "altclip": Message("864 M parameters, zh and en; the paper's teacher"),
    "fgclip2": Message("377 M, zh and en, Apache-2.0; needs --trust-remote-code"),
    "siglip2": Message("375 M, over 100 languages, Apache-2.0"),
    "xlm-roberta": Message("366 M, 100 languages, MIT (code)"),
    "chinese-clip": Message("188 M, Chinese only; see its card for the license"),
    "metaclip2": Message("139 M, over 300 languages, CC-BY-NC-4.0"),
}
_FILE = Argument(metavar="FILE", help="Recipe file to write; the model is named after it.")
_TEACHER = Option(
    "--teacher",
    metavar="MODEL",
    help="altclip, fgclip2, siglip2, xlm-roberta, chinese-clip, metaclip2, starter, a model "
    "directory, hf:ORG/NAME, hf-hub:ORG/NAME, ms:ORG/NAME or open_clip:ARCH/TAG. "
    "Default: altclip.",
)
_DATA = Option(
    "--data",
    metavar="PATH",
    help="Folder of photographs, image-caption pairs (tars, Parquet files, output of "
    "collect), a table (.tsv, .csv, "
    ".jsonl), or a folder of class folders.",
)
_KIND = Option(
    "--kind",
    help="Override the detected kind of --data, for example if its subfolders are not classes.",
)
_TEXTS = Option(
    "--texts",
    metavar="FILE",
    help="File with training texts for photographs without captions, one per line. "
    "Default: class names and prompts "
    "in both languages, written next to FILE.",
)
_SIZE = Option(
    "--size",
    help="Student size: S (12 M parameters), M (29 M), RN50 (45 M) or XS (3 M). Default: "
    "S, or XS if the "
    "teacher is smaller than S.",
)
_YES = Option("--yes", "-y", help="Ask no questions: use the default for each missing choice.")
_FORCE = Option("--force", help="Overwrite FILE.")


def new(
    file: Annotated[Path, _FILE] = Path("my-clip.yaml"),
    teacher: Annotated[str | None, _TEACHER] = None,
    data: Annotated[str | None, _DATA] = None,
    kind: Annotated[Literal["photos", "pairs", "table", "classes"] | None, _KIND] = None,
    texts: Annotated[Path | None, _TEXTS] = None,
    size: Annotated[Literal["S", "M", "RN50", "XS"] | None, _SIZE] = None,
    trust_remote_code: flags.TrustRemoteCode = False,
    yes: Annotated[bool, _YES] = False,
    force: Annotated[bool, _FORCE] = False,
) -> None:
    """Write a commented recipe from a few choices: teacher, data and size.

    Asks for missing choices, checks the recipe as --check does, adds time and disk estimates, and
    prints its path.
    """
    if not str(file).isprintable():
        raise DcclipError("{!r} contains control characters", "choose another file name", str(file))
    if file.exists() and not force:
        raise DcclipError("{} exists", "choose another file, or overwrite it with --force", file)
    if not yes and None in (teacher, data, size) and not _can_ask():
        raise DcclipError(
            "cannot ask: not running in a terminal",
            "give --teacher, --data and --size, or --data and --yes",
        )
    if data is None and yes:
        raise DcclipError("no data given", "give your data with --data PATH")
    flags.out(file, folder=False)

    from dcclip_cli import api
    from dcclip_cli.recipe import new as recipes

    teacher = teacher or _ask_teacher(yes)
    chosen_teacher = recipes.choose_teacher(teacher)
    if data is None:
        console.info_line(
            Message(
                "Data: a folder of photographs, pairs (tars, Parquet, a table) or class folders"
            )
        )
        data = str(prompt("Path", err=True))
    chosen_size: Any = size or _ask(
        Message("Size of the student"), recipes.sizes_for(chosen_teacher), yes
    )
    options: dict[str, Any] = {
        "teacher": teacher,
        "size": chosen_size,
        "kind": kind,
        "texts": texts,
    }
    result = api.new(file, data, trust_remote_code=trust_remote_code, force=force, **options)
    if result.problem:
        for line in result.problem.what.split("\n"):
            console.warning_line(Message("the recipe cannot run yet: {}", line))
        console.hint_line(result.problem.hint)
    for line in result.estimates:
        console.info_line(line)
    console.show(str(file))


def _ask_teacher(yes: bool) -> str:
    from dcclip_cli.recipe import new as recipes

    choices = {
        name: Message("{}: {}", choice.model, _ABOUT[name])
        for name, choice in recipes.TEACHERS.items()
    }
    choices["starter"] = Message(
        "included in dcclip: 16 M, zh and en, Apache-2.0; nothing to download"
    )
    question = Message("Teacher, the large model to distill (or a directory, hf:ORG/NAME, ...)")
    return _ask(question, choices, yes)


def _can_ask() -> bool:
    return sys.stdin.isatty() and sys.stderr.isatty()


def _ask(question: str, choices: Mapping[Any, str], yes: bool) -> str:
    """The choice that the user names, by number or name; the first by default, or if nothing is to
    be asked.
    """
    names = [str(name) for name in choices]
    if yes:
        return names[0]
    console.info_line(question)
    for number, (name, description) in enumerate(choices.items(), 1):
        console.info_line(Message("  {}  {:13} {}", number, name, description))
    answer = str(prompt("Choice", default="1", err=True)).strip()
    return (
        names[int(answer) - 1] if answer.isdecimal() and 0 < int(answer) <= len(names) else answer
    )


def seconds(value: str) -> float:
    """The seconds of --time, as in 90s, 5m, 1h or 1h30m. Raises BadParameter for anything else."""
    match = re.fullmatch(r"(?:(\d{1,4})h)?(?:(\d{1,4})m)?(?:(\d{1,6})s)?", value)
    if not match or not any(map(int, filter(None, match.groups()))):
        raise BadParameter(Message("{}: expected a time such as 90s, 5m, 1h or 1h30m", value[:40]))
    return sum(
        int(number or 0) * unit
        for number, unit in zip(match.groups(), (3600.0, 60.0, 1.0), strict=True)
    )


_SAMPLES = Option(
    "--data",
    metavar="PATH",
    help="Folder of photographs or of class folders, or image-caption pairs.",
)
_KIND_OF_SAMPLES = Option("--kind", help="Override the detected kind of --data.")
_MAX_MB = Option(
    "--max-mb", min=0.001, metavar="MB", help="Maximum size of the export, all files together."
)
_MAX_MS = Option(
    "--max-ms", min=0.001, metavar="MS", help="Maximum latency per image on this machine."
)
_TIME = Option(
    "--time",
    parser=seconds,
    metavar="5m",
    help="Total time budget. Default: depends on the amount of data.",
)
_THREADS = Option(
    "--threads", min=1, callback=flags.at_a_time, help="CPU threads for the --max-ms measurement."
)


def fit(
    data: Annotated[str, _SAMPLES],
    teacher: Annotated[
        str, Option("--teacher", metavar="MODEL", help="Teacher, as for dcclip new.")
    ] = "starter",
    labels: Annotated[str, LABELS] = "",
    labels_file: Annotated[Path | None, LABELS_FILE] = None,
    kind: Annotated[Literal["photos", "pairs", "classes"] | None, _KIND_OF_SAMPLES] = None,
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

    Measures candidates, trains each briefly, compares them on held-out samples, trains and exports
    the best one, and checks that the export meets the budget. Writes recipe.yaml, the bundle,
    fit.html and frontier.svg to DIR. If it is stopped, run the same command again to resume;
    Ctrl-C exports the best student so far. Latency on another device, such as a phone, differs.
    """
    flags.out(out)
    options: dict[str, Any] = {
        "labels": read_labels(labels, labels_file),
        "kind": kind,
        "threads": threads,
    }

    from dcclip_cli import api
    from dcclip_cli.fitting.report import summary, table

    options |= {
        "max_mb": max_mb,
        "max_ms": max_ms,
        "time_s": time,
        "teacher": teacher,
        "device": device,
    }
    talk = console.talk(quiet, verbose)
    result = api.fit(data, out=out, progress=talk, trust_remote_code=trust_remote_code, **options)
    if as_json:
        return console.show_json(asdict(result) | {"folder": str(result.folder)})
    console.show_table(summary(result), *table(result))
    console.show(str(result.folder))
