"""`dcclip run`, `collect`, `index`, `distill`, `align` and `export`: the stages of a recipe, and
indexes of data.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from typer import Argument, BadParameter, Context, Option, launch

from dcclip_cli.cli import console, flags
from dcclip_cli.core.errors import Message, joined
from dcclip_cli.core.machine import cores
from dcclip_cli.core.text import split
from dcclip_cli.exporters import FormatName, Precision, Preprocess

if TYPE_CHECKING:
    from dcclip_cli.api import SweepResult
    from dcclip_cli.curation.collect import CollectResult
    from dcclip_cli.recipe.load import LoadedRecipe
    from dcclip_cli.recipe.summary import ModelSummary


def _tasks(context: Context, number: int | None) -> int | None:
    """Refuses numbers of tasks that only cost where this machine does them."""
    engine = context.params["engine"]
    on_cluster = engine == "slurm" or (engine == "ray" and "RAY_ADDRESS" in os.environ)
    return number if on_cluster else flags.at_a_time(number)


# --engine is eager, because the limit of --workers depends on it.
_ENGINE = Option(
    "--engine", is_eager=True, help="Where tasks run. The key collect.cluster configures slurm."
)
_WORKERS = Option(
    "--workers", min=1, callback=_tasks, help="Number of parallel tasks. Default: one per core."
)
_LIMIT = Option(
    "--limit",
    min=1,
    max=10**9,
    metavar="N",
    help="Try the recipe on about N pairs, in a separate folder.",
)
_MOST_DIGITS = 10  # of a seed, which is below 2**32
_SEEDS = Option(
    "--seeds",
    metavar="0 1 2",
    help="Run the recipe and its variants once with each of these seeds.",
)
_AT_A_TIME = Option(
    "--at-a-time",
    min=1,
    metavar="N",
    callback=flags.at_a_time,
    help="Number of parallel runs with --seeds or variants. Default: one for each GPU.",
)


def run(
    recipe: flags.RecipeFile,
    sets: flags.Sets = None,
    seeds: Annotated[str, _SEEDS] = "",
    out: flags.Out = None,
    fresh: flags.Fresh = False,
    check: flags.Check = False,
    device: flags.Where = "auto",
    processes: flags.Processes = "1",
    at_a_time: Annotated[int | None, _AT_A_TIME] = None,
    quiet: flags.Quiet = False,
    verbose: flags.Verbose = False,
) -> None:
    """Run all stages of a recipe in order.

    Finished stages are skipped. Ends with a table of teacher, student and bundle: size, memory,
    speed, and accuracy on the recipe's test sets or validation pairs; without these, the agreement
    with the teacher. With --seeds or variants, writes each run to OUT/[VARIANT/]seed-N, prints
    means and standard deviations, and writes table.csv, table.tex, runs.csv and sweep.svg to OUT.
    """
    flags.out(out)
    loaded = flags.open_recipe(recipe, sets)
    if seeds or loaded.recipe.variants:
        chosen = _seed_numbers(seeds)
        if check:
            root = out or Path("runs") / loaded.recipe.name
            count = len(loaded.recipe.variants or [""])
            console.show_now(Message("{} runs in {}", count * max(1, len(set(chosen))), root))
            variants = _variants(loaded, root, chosen[0] if chosen else loaded.recipe.seed)
            talk = console.talk(quiet)
            for folder, variant in console.counted(
                talk, Message("variants"), variants, count, at_once=True
            ):
                stages = variant.recipe.stages
                flags.show_checked(variant, stages, device, folder, fresh, processes)
            return None
        from dcclip_cli.api import sweep

        talk = console.talk(quiet, verbose)
        options: dict[str, Any] = {"processes": processes, "at_a_time": at_a_time, "fresh": fresh}
        return _show_sweep(sweep(loaded, chosen, out=out, device=device, progress=talk, **options))
    if check:
        return flags.show_checked(loaded, loaded.recipe.stages, device, out, fresh, processes)

    from dcclip_cli.api import open_run
    from dcclip_cli.curation.collect import CollectResult

    job = open_run(loaded, out, device, fresh, console.talk(quiet, verbose), processes)
    job.begin_all()
    for _, result in job.run_all():
        if isinstance(result, CollectResult):
            _show_collected(result)
    if models := job.summary():
        steps = " + ".join(map(str, job.steps().values()))
        title = Message(
            "{} after {} steps, measured on one CPU thread of this machine", job.dir.root, steps
        )
        _show_models(title, models)


def _seed_numbers(seeds: str) -> list[int]:
    numbers = split(",".join(seeds.split()))
    if not all(number.isdecimal() and len(number) <= _MOST_DIGITS for number in numbers):
        raise BadParameter(Message("{} is not a list of integers such as 0 1 2", seeds[:80]))
    return [int(number) for number in numbers]


def _variants(loaded: LoadedRecipe, root: Path, seed: int) -> Iterator[tuple[Path, LoadedRecipe]]:
    """The folder and the recipe of each variant, with one seed: what others take is the same."""
    from dcclip_cli.recipe.load import varied

    for name in loaded.recipe.variants or [""]:
        yield root / name / f"seed-{seed}", varied(loaded, name, seed)


def collect(
    recipe: flags.RecipeFile,
    sets: flags.Sets = None,
    out: flags.Out = None,
    fresh: flags.Fresh = False,
    check: flags.Check = False,
    engine: Annotated[Literal["local", "ray", "slurm"], _ENGINE] = "local",
    workers: Annotated[int | None, _WORKERS] = None,
    limit: Annotated[int | None, _LIMIT] = None,
    quiet: flags.Quiet = False,
    verbose: flags.Verbose = False,
) -> None:
    """Collect image-caption pairs, filter them, and write them as shards.

    Writes shards, report.html, and the dropped pairs with reasons to runs/NAME/collect, and prints
    the counts. With --limit, writes to runs/NAME/collect-limit and opens the report in a browser.
    With --check, prints the amount of input data.
    """
    flags.out(out)
    if engine == "local" and not check and (workers or cores()) > 1:
        from dcclip_cli.core.processes import preload
        from dcclip_cli.curation import IMPORTS

        preload(IMPORTS)
    loaded = flags.open_recipe(recipe, sets, "collect")
    if check:
        from dcclip_cli.curation.executors import Engine
        from dcclip_cli.curation.work import plan

        assert loaded.recipe.collect is not None
        Engine(engine, workers, loaded.recipe.collect.cluster).check()
        flags.show_checked(loaded, ["collect"], out=out, fresh=fresh)
        slices = plan(loaded.recipe.collect)
        for number, source in enumerate(loaded.recipe.collect.sources):
            estimates = [part.estimate for part in slices if part.source == number]
            counts = (source.label, source.kind, sum(estimates), _slices(len(estimates)))
            console.show(Message("{} ({}): about {:,} pairs, {}", *counts))
        total = sum(part.estimate for part in slices)
        return console.show(
            Message("collect would read about {:,} pairs in {}", total, _slices(len(slices)))
        )

    from dcclip_cli import api
    from dcclip_cli.core.machine import keep_pandas_out

    keep_pandas_out()
    talk = console.talk(quiet, verbose)
    result = api.collect(
        loaded, out=out, fresh=fresh, engine=engine, workers=workers, limit=limit, progress=talk
    )
    _show_collected(result)
    if limit is not None and console.has_screen():
        launch(str(result.folder / "report.html"))


_DATA = Argument(metavar="PATH", help="Tar and Parquet files, or folders, globs or URLs of them.")
_VERIFY = Option("--verify", help="Read all data and compare it with the existing indexes.")
_FRESH = Option("--fresh", help="Rebuild existing indexes.")
_KEY = Option("--key", metavar="NAME", help="Column with the keys (recipe: data.columns.key).")
_IMAGE = Option(
    "--image",
    metavar="NAME",
    help="Column with the images, as bytes or as structs with a bytes field.",
)
_ZH = Option("--zh", metavar="NAME", help="Column with Chinese captions.")
_EN = Option("--en", metavar="NAME", help="Column with English captions.")
_CAPTION = Option("--caption", metavar="NAME", help="Column with captions in either language.")


def index(
    data: Annotated[list[str], _DATA],
    verify: Annotated[bool, _VERIFY] = False,
    fresh: Annotated[bool, _FRESH] = False,
    key: Annotated[str | None, _KEY] = None,
    image: Annotated[str | None, _IMAGE] = None,
    zh: Annotated[str | None, _ZH] = None,
    en: Annotated[str | None, _EN] = None,
    caption: Annotated[str | None, _CAPTION] = None,
    quiet: flags.Quiet = False,
    verbose: flags.Verbose = False,
) -> None:
    """Index training data from other programs, so that training on it starts at once.

    Writes FILE.index.arrow next to each tar or Parquet file, skips files whose index is up to
    date, and prints the counts. Without these files, training creates the same index in the cache
    folder when it first starts. Output of collect is already indexed.
    """
    from dcclip_cli import api

    options = {"key": key, "image": image, "zh": zh, "en": en, "caption": caption}
    columns = {name: column for name, column in options.items() if column is not None}
    indexed = api.index(
        data, verify=verify, fresh=fresh, columns=columns, progress=console.talk(quiet, verbose)
    )
    uncaptioned = indexed.images - indexed.pairs
    alone = Message(", {:,} images without captions", uncaptioned) if uncaptioned else ""
    counted = Message("1 file") if indexed.files == 1 else Message("{:,} files", indexed.files)
    console.show(Message("{:,} pairs in {}{}", indexed.pairs, counted, alone))


def _training(stage: Literal["distill", "align"], summary: str) -> Callable[..., None]:
    def train(
        recipe: flags.RecipeFile,
        sets: flags.Sets = None,
        out: flags.Out = None,
        fresh: flags.FreshOrResume = None,
        check: flags.Check = False,
        device: flags.Where = "auto",
        processes: flags.Processes = "1",
        quiet: flags.Quiet = False,
        verbose: flags.Verbose = False,
    ) -> None:
        flags.out(out)
        loaded = flags.open_recipe(recipe, sets, stage)
        if check:
            return flags.show_checked(loaded, [stage], device, out, bool(fresh), processes)

        from dcclip_cli import api

        train_stage = {"distill": api.distill, "align": api.align}[stage]
        options: dict[str, Any] = {
            "processes": processes,
            "fresh": bool(fresh),
            "resume": fresh is False,
        }
        talk = console.talk(quiet, verbose)
        console.show_path(
            train_stage(loaded, out=out, device=device, progress=talk, **options).model
        )

    train.__name__ = stage
    train.__doc__ = (
        f"{summary}\n\nWrites a model directory to runs/NAME/{stage}/model and prints its path."
    )
    return train


distill = _training("distill", "Train the student on the teacher's features (stage 1).")
align = _training("align", "Train the student contrastively on images and captions (stage 2).")


def _slices(count: int) -> Message:
    return Message("1 slice") if count == 1 else Message("{:,} slices", count)


def _show_collected(result: CollectResult) -> None:
    """Print how many pairs and captions were kept, and how many were dropped for each reason."""
    captions = {
        Message("{} captions", language): count for language, count in result.captions.items()
    }
    counts = {Message("pairs"): result.pairs} | captions
    reasons = sorted({reason for count in counts.values() for reason in count.dropped})
    rows: list[tuple[str, ...]] = [
        (Message("read"), *(f"{count.read:,}" for count in counts.values()))
    ]
    rows += [
        (reason, *(f"{count.dropped.get(reason, 0):,}" for count in counts.values()))
        for reason in reasons
    ]
    rows.append((Message("kept"), *(f"{count.kept:,}" for count in counts.values())))
    console.show_table(Message("{}, shards: {}", result.folder, result.shards), ("", *counts), rows)
    console.show(str(result.folder / "report.html"))


_MODELS = {
    "teacher": Message("teacher"),
    "student": Message("student"),
    "bundle": Message("bundle"),
}
_SIZES = (  # what is shown, the field of ModelSummary, its unit, and how it is written
    (Message("parameters"), "parameters", 1e6, "{:.2f} M"),
    (Message("size of the weights"), "size_bytes", 1e6, "{:.1f} MB"),
    (Message("memory"), "memory_bytes", 1e6, "{:.0f} MB"),
    (Message("one image"), "image_ms", 1, "{:.1f} ms"),
    (Message("one text"), "text_ms", 1, "{:.1f} ms"),
)


def _written(value: float, text: str) -> str:
    """A value in a table; empty for a cost of 0, which is not known."""
    return text.format(value) if value or "%" in text else ""


def _show_models(title: str, models: list[ModelSummary]) -> None:
    from dcclip_cli.eval.result import METRIC_NAMES

    agreement = {on: Message("agreement with the teacher, {}", on) for on in models[0].agreement}
    lines: list[tuple[str, list[float], str]] = [
        *(
            (
                joined(" ", (METRIC_NAMES[metric], on)),
                [model.scores[metric][on] for model in models],
                "{:.1%}",
            )
            for metric, scores in models[0].scores.items()
            for on in scores
        ),
        *(
            (name, [model.agreement[on] for model in models], "{:.1%}")
            for on, name in agreement.items()
        ),
        *(
            (name, [getattr(model, field) / unit for model in models], text)
            for name, field, unit, text in _SIZES
        ),
    ]
    columns = ["", *(_MODELS[model.name] for model in models)]
    table = []
    for name, values, text in lines:
        table.append([name, *(_written(value, text) for value in values)])
        if models[0].name == "teacher":
            table[-1].append(f"{values[1] / values[0]:.0%}" if values[0] else "")
    if models[0].name == "teacher":
        columns.append(Message("student / teacher"))
    console.show_table(title, columns, table)


def _show_sweep(result: SweepResult) -> None:
    """Print a table for each test set with models as rows, and one of sizes and times."""
    from dcclip_cli.eval.result import METRIC_NAMES
    from dcclip_cli.recipe.sweep import per_cent

    rows = result.rows
    first = result.rows[0].variant if result.rows else ""
    labels = [
        joined(" ", (row.variant, _MODELS[row.model]) if row.variant else (_MODELS[row.model],))
        for row in rows
    ]
    tests = dict.fromkeys(
        (metric, on.rpartition(" ")[0]) for row in rows for metric, on in row.scores()
    )
    for metric, test in tests:
        of = {f"{test} {language}": language for language in ("en", "zh")}
        used = {
            on: language
            for on, language in of.items()
            if any((metric, on) in row.scores() for row in rows)
        }
        differences = [
            {f"{pair.dataset} {pair.language}": pair for pair in row.differences} for row in rows
        ]
        compared = [on for on in used if any(on in by_set for by_set in differences)]
        lines = []
        for row, label, by_set in zip(rows, labels, differences, strict=True):
            cells = [per_cent(row.scores().get((metric, on), ())) for on in used]
            for on in compared:
                pair = by_set.get(on)
                cells.append(
                    f"{100 * pair.value:+z.1f} ({100 * pair.low:+z.1f} to {100 * pair.high:+z.1f})"
                    if pair
                    else ""
                )
            lines.append((label, *cells))
        against = (Message("{} minus {} (95 %)", used[on], first) for on in compared)
        metric_name = METRIC_NAMES.get(metric) or Message("agreement with the teacher")
        console.show_table(
            joined(", ", (test, Message("{} in %", metric_name))),
            ("", *used.values(), *against),
            lines,
        )
    sizes = []
    for row, label in zip(result.rows, labels, strict=True):
        costs = ((getattr(row.runs[0], field) / unit, text) for _, field, unit, text in _SIZES)
        sizes.append((label, *(_written(cost, text) for cost, text in costs)))
    runs = max((len(row.runs) for row in result.rows), default=0)
    title = Message(
        "{}: {} runs each; times on one CPU thread of this machine", result.folder, runs
    )
    console.show_table(title, ("", *(name for name, *_ in _SIZES)), sizes)


_MODEL = Option("--model", metavar="MODEL", help=flags.EXPORTED_HELP)
_FORMAT = Option("--format", help="Format of the export. Default: from the recipe, else onnx.")
_PRECISION = Option(
    "--precision",
    help="Precision of the weights; int8 needs calibration images. Default: from the "
    "recipe, else fp32.",
)
_PREPROCESS = Option(
    "--preprocess",
    help="Where images are resized: outside (by the caller) or graph (in image.onnx). "
    "Default: from the recipe, else "
    "outside.",
)
_CALIBRATION = Option(
    "--calibration", metavar="DIR", help="Calibration images for int8. Default: from the recipe."
)
_DIMS = Option(
    "--dims",
    min=8,
    metavar="N",
    help="Keep the first N dimensions of embeddings, for models trained with `dims`. "
    "Default: from the recipe, else "
    "all.",
)
_OUT = Option("--out", metavar="DIR", help="Folder for the export. Default: runs/NAME/export.")


def export(
    recipe: flags.OptionalRecipe = None,
    model: Annotated[str | None, _MODEL] = None,
    format: Annotated[FormatName | None, _FORMAT] = None,
    precision: Annotated[Precision | None, _PRECISION] = None,
    preprocess: Annotated[Preprocess | None, _PREPROCESS] = None,
    calibration: Annotated[Path | None, _CALIBRATION] = None,
    dims: Annotated[int | None, _DIMS] = None,
    sets: flags.Sets = None,
    out: Annotated[Path | None, _OUT] = None,
    trust_remote_code: flags.TrustRemoteCode = False,
    fresh: flags.Fresh = False,
    check: flags.Check = False,
    quiet: flags.Quiet = False,
    verbose: flags.Verbose = False,
) -> None:
    """Export a model to run without torch: on a server, on a phone or in a browser.

    Compares the export with the model. If they differ too much, the command fails and writes
    nothing. Prints the path of the export.
    """
    if recipe is None and (sets or check or out is None):
        raise BadParameter(
            Message("without a recipe, --out is required, and --set and --check have no effect")
        )
    flags.out(out)
    loaded = flags.open_recipe(recipe, sets) if recipe else None
    if loaded and check:
        return flags.show_checked(loaded, ["export"], fresh=True)
    talk = console.talk(quiet, verbose)

    from dcclip_cli import api

    options: dict[str, Any] = {
        "format": format,
        "precision": precision,
        "preprocess": preprocess,
        "dims": dims,
    }
    options = {
        key: value for key, value in (options | {"calibration": calibration}).items() if value
    }
    options["trust_remote_code"] = trust_remote_code
    result = api.export(loaded, model=model, out=out, fresh=fresh, progress=talk, **options)
    console.show(str(result.folder))
