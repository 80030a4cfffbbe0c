"""`dcclip compare A B`: the difference between two models' results, with a confidence interval."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated

from typer import Argument, Option

from dcclip_cli.cli import console, flags
from dcclip_cli.cli.eval import percent

_RESULTS = "A results file or folder that eval --out wrote; FILE@MODEL chooses one of several models."


def compare(
    a: Annotated[str, Argument(metavar="A", help=_RESULTS, show_default=False)],
    b: Annotated[str, Argument(metavar="B", help="The same of the other model.", show_default=False)],
    force: Annotated[bool, Option("--force", help="Compare results with different class names or prompts.")] = False,
    as_json: Annotated[bool, Option("--json", help="Print the differences as JSON instead of a table.")] = False,
    quiet: flags.Quiet = False,
    verbose: flags.Verbose = False,
) -> None:
    """Compare two models' results: B minus A.

    The 95 % interval is from 1,000 bootstrap samples of the images, the same for both where both saw the same images.
    """
    from dcclip_cli.eval.compare import compare
    from dcclip_cli.eval.tables import METRIC_NAMES

    talk = console.talk(quiet, verbose)
    found = compare(a, b, force=force, progress=talk)
    if as_json:
        return console.show_json([asdict(one) | {"difference": one.value} for one in found.differences])
    for one in found.differences:
        if one.unlike:
            talk.say(f"{one.dataset} {one.language}: the {' and '.join(one.unlike)} differ")
        if not one.paired:
            talk.say(f"{one.dataset} {one.language}: not the same images in the same order, so the interval is wider")
    rows = [
        (
            f"{one.dataset} {one.language}",
            METRIC_NAMES.get(one.metric, one.metric),
            percent(one.first),
            percent(one.second),
            percent(one.value, signed=True),
            f"{percent(one.low, signed=True)} to {percent(one.high, signed=True)}",
            ("better" if one.value > 0 else "worse") if one.is_clear else "not clear",
        )
        for one in found.differences
    ]
    columns = ("data set", "metric", found.first, found.second, "difference", "95 % interval", "")
    console.show_table(f"{found.second} against {found.first}", columns, rows)
