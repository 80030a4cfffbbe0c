"""Python API: each stage of a recipe as a function, with the keys, checks and results of the
command of that name.
"""

import difflib
import inspect
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal, get_args

from dcclip_cli.core import extensions
from dcclip_cli.core.errors import DcclipError, Message
from dcclip_cli.core.files import atomic_write, cache_folder, several
from dcclip_cli.core.machine import set_library_defaults, use_launcher
from dcclip_cli.core.progress import Progress, ProgressChoice, progress_for
from dcclip_cli.core.run_dir import RunDir, StageName, TrainResult
from dcclip_cli.core.text import split
from dcclip_cli.curation.collect import CollectResult
from dcclip_cli.curation.executors import Engine
from dcclip_cli.data import prompts
from dcclip_cli.data.dataset import shards_at
from dcclip_cli.data.index import find_indexes, own_place, verify_files
from dcclip_cli.data.pair import LANGUAGES
from dcclip_cli.data.remote import local_copies
from dcclip_cli.data.shards import Columns
from dcclip_cli.eval import registry
from dcclip_cli.eval.card import update_card
from dcclip_cli.eval.compare import Comparison, compare_results, read_results, read_variants
from dcclip_cli.eval.compare import compare_variants as compare_all
from dcclip_cli.eval.dataset import DataSet
from dcclip_cli.eval.datasets import layout_of
from dcclip_cli.eval.embedding import FeatureCache
from dcclip_cli.eval.evaluate import check_complete, open_datasets, say_alike
from dcclip_cli.eval.evaluate import evaluate as evaluate_models
from dcclip_cli.eval.registry import KnownSet
from dcclip_cli.eval.report import save_report
from dcclip_cli.eval.result import EvalResult, load_several
from dcclip_cli.exporters.export import ExportOptions, ExportResult
from dcclip_cli.fitting.report import write_report
from dcclip_cli.fitting.search import Fit, FitOptions, FitResult
from dcclip_cli.model.reference import resolve
from dcclip_cli.model.trim import TrimResult, trimmable
from dcclip_cli.model.trim import trim as trim_model
from dcclip_cli.publish import push as publish
from dcclip_cli.publish.push import Pushed
from dcclip_cli.recipe import new as recipes
from dcclip_cli.recipe.load import LoadedRecipe, RecipeSource
from dcclip_cli.recipe.load import load as load_recipe
from dcclip_cli.recipe.new import DataKind, Size
from dcclip_cli.recipe.run import RecipeRun, StageResult
from dcclip_cli.recipe.schema import Recipe
from dcclip_cli.recipe.summary import ModelSummary
from dcclip_cli.recipe.sweep import Sweep, SweepRow, fitting
from dcclip_cli.train.launch import Processes, process_number
from dcclip_cli.train.metrics_log import MetricsListener

PathLike = str | os.PathLike[str]
AnyRecipe = RecipeSource | LoadedRecipe
Sets = Mapping[str, Any] | Sequence[str]


@dataclass(frozen=True)
class RunResult:
    """A run directory, the result of each stage in order, and a summary of teacher, student and
    bundle.
    """

    folder: Path
    stages: dict[StageName, StageResult]
    models: list[ModelSummary]


@dataclass(frozen=True)
class SweepResult:
    """The folder of a sweep, with runs.csv, tables and sweep.svg, and a row for each model of each
    variant.
    """

    folder: Path
    rows: list[SweepRow]


@dataclass(frozen=True)
class NewResult:
    """A recipe that `new` wrote, and lines with estimates of its time and space or the `problem`
    that it has yet.
    """

    file: Path
    estimates: list[str]
    problem: DcclipError | None


@dataclass(frozen=True)
class IndexResult:
    """Numbers of indexed files, of images in them, and of those that have captions."""

    files: int
    images: int
    pairs: int


def collect(
    recipe: AnyRecipe,
    *,
    sets: Sets | None = None,
    out: PathLike | None = None,
    fresh: bool = False,
    engine: Literal["local", "ray", "slurm"] = "local",
    workers: int | None = None,
    limit: int | None = None,
    progress: ProgressChoice = False,
    **options: Any,
) -> CollectResult:
    """Collect image-caption pairs, filter them and write them as shards; returns what was kept and
    dropped.

    `options` are keys of the recipe's section `collect`. `workers` tasks run at a time (default:
    one per core). `limit` tries the recipe on about so many pairs, in a folder of their own. For
    the rest see `distill`.
    """
    job = open_run(
        open_recipe(recipe, "collect", options, sets), out, fresh=fresh, progress=progress
    )
    if limit is None:
        job.begin("collect")
    assert job.loaded.recipe.collect is not None
    return job.collect(Engine(engine, workers, job.loaded.recipe.collect.cluster), limit)


def distill(
    recipe: AnyRecipe,
    *,
    sets: Sets | None = None,
    out: PathLike | None = None,
    device: str = "auto",
    processes: Processes = 1,
    fresh: bool = False,
    resume: bool = False,
    progress: ProgressChoice = False,
    on_metrics: MetricsListener | None = None,
    **options: Any,
) -> TrainResult:
    """Train the student on the teacher's features (stage 1); returns its model directory and
    metrics.

    `recipe` is a YAML file, a mapping or a Recipe. `options` are keys of its section `distill`; a
    mapping changes only the keys in it: `distill("recipe.yaml", steps=300, optimizer={"lr":
    1e-3})`. `sets` are values by dotted key for anything else: `{"student.image.size": 64}`. `out`
    is the run directory, by default runs/NAME.

    A finished stage is returned as it is, an interrupted one resumes; `fresh` starts over,
    `resume` requires a saved state. `progress` is True for bars on stderr, a function that
    receives lines, or a Progress. `processes` train together on GPUs or the CPU, "auto": one for
    each GPU; those that are started show progress on stderr, if any. `on_metrics` is called in
    this process with the stage, the step and each entry of metrics.jsonl; an exception in it ends
    the run, which resumes from its last checkpoint. Raises DcclipError.
    """
    loaded = open_recipe(recipe, "distill", options, sets)
    job = open_run(loaded, out, device, fresh, progress, processes)
    return replace(job, listener=on_metrics).train_alone("distill", resume)


def align(
    recipe: AnyRecipe,
    *,
    sets: Sets | None = None,
    out: PathLike | None = None,
    device: str = "auto",
    processes: Processes = 1,
    fresh: bool = False,
    resume: bool = False,
    progress: ProgressChoice = False,
    on_metrics: MetricsListener | None = None,
    **options: Any,
) -> TrainResult:
    """Train both towers on image-caption pairs (stage 2); returns the model directory and metrics.

    `options` are keys of the recipe's section `align`. For the rest see `distill`.
    """
    loaded = open_recipe(recipe, "align", options, sets)
    job = open_run(loaded, out, device, fresh, progress, processes)
    return replace(job, listener=on_metrics).train_alone("align", resume)


def evaluate(
    recipe: AnyRecipe | None = None,
    *,
    model: PathLike | Sequence[PathLike] | None = None,
    sets: Sets | None = None,
    out: PathLike | None = None,
    device: str = "auto",
    cache: bool = True,
    trust_remote_code: bool = False,
    progress: ProgressChoice = False,
    **options: Any,
) -> list[EvalResult]:
    """Evaluate models on test sets; returns a result for each model, data set and language.

    `options` are keys of the recipe's section `eval`; without a recipe `datasets=[...]` is needed.
    `model` is what `load` takes, or several; by default the recipe's run. `out`: folder for the
    results, tables and report.html (default: that of the run, whose model's card then receives
    them). `cache`: keep embeddings for the next call. `trust_remote_code`: code in the models'
    repositories (FG-CLIP2) may run. Images that cannot be read are an error, which has `results`
    without them, unless `partial="all"` or `"present"` is among the options.
    """
    if recipe is None and not options.get("datasets"):
        raise DcclipError(
            "no data set given", "choose one with --dataset NAME or PATH (see: dcclip datasets)"
        )
    loaded = open_recipe({"name": "eval"} if recipe is None else recipe, "eval", options, sets)
    chosen = loaded.recipe.eval
    talk = progress_for(progress)
    assert chosen is not None
    card = False  # whether the results go into the run, and so into its model's card
    if recipe is None or model is not None:
        names = [model] if model is None or isinstance(model, str | os.PathLike) else model
        resolved = [resolve(None if name is None else os.fspath(name)) for name in names]
        distinct = {named.target: named for named in resolved}.values()
        references = [replace(named, trust_remote_code=trust_remote_code) for named in distinct]
    else:
        job = open_run(loaded, None, device, progress=talk)
        references = [job.trained_model()]
        card = not out
        out = out or job.dir.stage("eval")
    for reference in references:
        talk.say(Message("model: {}", reference.description))
    datasets = open_datasets(chosen)
    features = FeatureCache(cache_folder() if cache else None, talk.say)
    results = evaluate_models(
        references, datasets, chosen, device=device, cache=features, progress=talk
    )
    say_alike(results, talk)
    if out:
        _save_report(results, datasets, Path(out), talk)
    check_complete(results, chosen)
    if card:
        update_card(references[0].path, results)
    return results


def merge_results(
    results: PathLike | Sequence[PathLike],
    out: PathLike,
    *,
    progress: ProgressChoice = False,
) -> list[EvalResult]:
    """Write results that `evaluate` wrote, files or folders, into one report in the folder `out`;
    returns them.
    """
    loaded = load_several([Path(path) for path in several(results)])
    _save_report(loaded, (), Path(out), progress_for(progress))
    return loaded


def _save_report(
    results: Sequence[EvalResult], datasets: Sequence[DataSet], out: Path, progress: Progress
) -> None:
    save_report(results, datasets, out, progress)
    progress.say(Message("results: {} (open {})", out, out / "report.html"))


def export(
    recipe: AnyRecipe | None = None,
    *,
    model: PathLike | None = None,
    sets: Sets | None = None,
    out: PathLike | None = None,
    fresh: bool = False,
    trust_remote_code: bool = False,
    progress: ProgressChoice = False,
    **options: Any,
) -> ExportResult:
    """Export a model to a format that runs without torch; returns its folder, size and parity with
    the model.

    `options` are keys of the recipe's section `export`. `model` is what `load` takes, of a run its
    model directory; by default that of the recipe's run. Without a recipe `out` is needed.
    `trust_remote_code`: code in the model's repository (FG-CLIP2) may run.
    """
    if recipe is None and out is None:
        raise DcclipError(
            "no folder given for the export", "give one with --out DIR, or give a recipe"
        )
    loaded = open_recipe(
        {"name": "export", "export": {}} if recipe is None else recipe, None, {}, sets
    )
    if options:
        loaded = open_recipe(loaded, "export", options)
    job = open_run(loaded, None, fresh=fresh, progress=progress)
    if model is not None or recipe is None:
        named = resolve(None if model is None else os.fspath(model), trained=True)
        named = replace(named, trust_remote_code=trust_remote_code)
    else:
        named = job.trained_model()
    job.progress.say(Message("model: {}", named.description))
    return job.export(
        loaded.recipe.export or ExportOptions(), named, Path(out or job.dir.stage("export"))
    )


def push(
    model: PathLike,
    repository: str,
    *,
    license: str | None = None,
    bundles: Sequence[PathLike] = (),
    data: Sequence[PathLike] = (),
    private: bool = False,
    pull_request: bool = False,
    overwrite: bool = False,
    yes: bool = False,
    progress: ProgressChoice = False,
) -> Pushed:
    """Upload a model to the hub's repository ORG/NAME in one commit; without `yes` only say what
    that would be.

    `model` is a model directory, an export, a run, or a recipe whose run's model is meant.
    `license`: by default that of the model's card. `bundles` are exports of the model, `data`
    folders that `collect` wrote, besides its run's own. The repository is created where there is
    none, `private` or public. Files of it change with `overwrite`, or in a `pull_request`. The
    token is huggingface_hub's: HF_TOKEN, or `hf auth login`.
    """
    is_recipe = Path(model).is_file()
    run = open_run(load_recipe(Path(model)), None).dir.root if is_recipe else model
    named = resolve(os.fspath(run), trained=True)
    plan = publish.plan_push(named, repository, license, [*map(Path, bundles)], [*map(Path, data)])
    if not yes:
        return Pushed(plan)
    return publish.push(plan, private, pull_request, overwrite)


def trim(
    model: PathLike,
    *,
    languages: Sequence[str] = ("zh", "en"),
    out: PathLike | None = None,
    texts: Sequence[str] | None = None,
    progress: ProgressChoice = False,
) -> TrimResult:
    """Cut a multilingual model's vocabulary to the pieces that languages use; returns the new
    directory and sizes.

    `model` is what `load` takes, but no export, with a Unigram tokenizer such as XLM-R's. With
    `texts` only pieces that these and the package's own class names use are kept, and single
    characters. `out` is by default NAME-zh-en in the current directory.
    """
    chosen = tuple(language for language in LANGUAGES if language in languages)
    if unknown := [language for language in languages if language not in LANGUAGES]:
        raise DcclipError("unknown language {}", "use zh, en or both", ", ".join(unknown))
    if not chosen:
        raise DcclipError("no language given", "use zh, en or both")
    set_library_defaults()
    named = resolve(os.fspath(model))
    folder = trimmable(named)
    target = (
        Path(out) if out is not None else Path(f"{named.name or folder.name}-{'-'.join(chosen)}")
    )
    sample = [text for language in chosen for text in prompts.texts(language)]
    return trim_model(folder, target, chosen, sample, texts, progress_for(progress))


def run(
    recipe: AnyRecipe,
    *,
    sets: Sets | None = None,
    out: PathLike | None = None,
    device: str = "auto",
    processes: Processes = 1,
    fresh: bool = False,
    progress: ProgressChoice = False,
    on_metrics: MetricsListener | None = None,
) -> RunResult:
    """Run all stages of a recipe in order; returns their results and a summary of teacher, student
    and bundle.

    Finished stages are skipped; the recipe's variants are for `sweep`. For the parameters see
    `distill`.
    """
    job = open_run(open_recipe(recipe, None, {}, sets), out, device, fresh, progress, processes)
    job = replace(job, listener=on_metrics)
    job.begin_all()
    return RunResult(job.dir.root, dict(job.run_all()), job.summary())


def sweep(
    recipe: AnyRecipe,
    seeds: Sequence[int] | None = None,
    *,
    sets: Sets | None = None,
    out: PathLike | None = None,
    device: str = "auto",
    processes: Processes = 1,
    at_a_time: int | None = None,
    fresh: bool = False,
    progress: ProgressChoice = False,
) -> SweepResult:
    """Run a recipe's `variants` with several seeds; returns means and deviations, and compares
    variants with the first.

    Each run is in OUT/[VARIANT/]seed-N and has the weights of the recipe with these values alone.
    `seeds` is by default the recipe's own. So many runs are trained `at_a_time`: by default one
    for each GPU. For the rest see `distill`.
    """
    loaded = open_recipe(recipe, None, {}, sets)
    job = open_run(loaded, out, device, fresh, progress, processes)
    number = at_a_time or fitting(job.device, job.processes)
    runs = Sweep(
        loaded, job.dir.root, tuple(dict.fromkeys(seeds or [loaded.recipe.seed])), job, number
    )
    runs.begin()
    runs.run()
    rows = runs.rows()
    runs.save(rows)
    return SweepResult(job.dir.root, rows)


def new(
    file: PathLike,
    data: PathLike,
    *,
    teacher: str = "altclip",
    kind: DataKind | None = None,
    texts: PathLike | None = None,
    size: Size | None = None,
    trust_remote_code: bool = False,
    force: bool = False,
) -> NewResult:
    """Write a commented recipe from a few choices; returns the file with estimates, or what it
    still lacks.

    `data` is a folder of photographs or of class folders, pairs or a table, of the `kind` that it
    looks like. `texts` are learned with photographs: by default class names and prompts, written
    next to FILE. `force` overwrites.
    """
    file = Path(file)
    if file.exists() and not force:
        raise DcclipError("{} exists", "choose another file, or overwrite it with --force", file)
    chosen = recipes.choose_teacher(teacher)
    chosen_data = recipes.choose_data(os.fspath(data), kind)
    chosen_size: Any = size or next(iter(recipes.sizes_for(chosen)))
    if chosen_size not in recipes.SIZES:
        raise DcclipError(
            "unknown size {}", "choose one of {}", chosen_size, ", ".join(recipes.SIZES)
        )
    words = None if texts is None else Path(texts)
    if chosen_data.kind == "photos" and words is None:
        words = file.with_suffix(".texts.txt")
        if words.exists() and not force:
            raise DcclipError(
                "{0} exists", "use it with --texts {0}, or overwrite it with --force", words
            )
        atomic_write(words, recipes.own_texts())
    student = recipes.student_for(chosen) if chosen_size == "XS" else None
    recipe = recipes.NewRecipe(
        file, chosen, chosen_data, chosen_size, words, trust_remote_code, student
    )
    atomic_write(file, recipes.recipe_text(recipe))
    job = open_run(load_recipe(file), None, "cpu")
    try:
        stages = job.preflight(job.loaded.recipe.stages)
        from dcclip_cli.train.estimate import lines, measure, time_lines

        measured = [(stage, measure(stage)) for stage in stages]
    except DcclipError as error:
        return NewResult(file, [], error)
    takes = [line for stage, times in measured for line in time_lines(stage, times)]
    atomic_write(file, recipes.recipe_text(recipe, takes))
    return NewResult(
        file, [line for stage, times in measured for line in lines(stage, times)], None
    )


def fit(
    data: PathLike,
    *,
    out: PathLike = "runs/fit",
    device: str = "auto",
    progress: ProgressChoice = False,
    **options: Any,
) -> FitResult:
    """Find and train the best student for a budget of file size and latency; returns it, and what
    was compared.

    `data` is a folder of photographs or of class folders, or pairs. `options` are the fields of
    FitOptions: `max_mb`, `max_ms`, `labels` (a list, or "猫,dog"), `teacher` (by default the
    starter), `time_s`, `threads`, `kind`, `trust_remote_code`. A search in `out` that was stopped
    resumes. Raises DcclipError where no student fits.
    """
    set_library_defaults()
    labels = options.get("labels", ())
    labels = split(labels) if isinstance(labels, str) else map(str.strip, labels)
    options["labels"] = tuple(dict.fromkeys(labels))
    result = Fit(
        FitOptions(os.fspath(data), **options), Path(out), device, progress_for(progress)
    ).run()
    write_report(result)
    return result


def index(
    data: PathLike | Sequence[PathLike],
    *,
    verify: bool = False,
    fresh: bool = False,
    columns: Mapping[str, str] | None = None,
    progress: ProgressChoice = False,
) -> IndexResult:
    """Index tar and Parquet files written by others, so that training on them starts at once;
    returns the counts.

    `data` are files, folders, globs or URLs. `columns` are names by `key`, `image`, `zh`, `en` and
    `caption`, as data.columns in a recipe. `verify` reads all data and compares it with the
    indexes, `fresh` indexes again.
    """
    named = [os.fspath(path) for path in several(data)]
    files = local_copies([file for source in named for file in shards_at(source)])
    if not files:
        raise DcclipError(
            "{} contains no tar or Parquet file",
            "give tar or Parquet files, or folders",
            " ".join(named),
        )
    find = verify_files if verify else partial(find_indexes, fresh=fresh, place=own_place)
    indexes = find(files, Columns(**(columns or {})), progress_for(progress))
    pairs = sum(sum(index.metadata.captioned) for index in indexes)
    return IndexResult(len(indexes), sum(sum(index.metadata.rows) for index in indexes), pairs)


def datasets(data_root: PathLike | None = None) -> list[KnownSet]:
    """The data sets that `evaluate` knows by name; with `data_root` those that are in this folder."""
    root = None if data_root is None else Path(data_root)
    return [
        known_set for known_set in registry.SETS.values() if not root or layout_of(known_set, root)
    ]


def compare(
    first: str, second: str, *, force: bool = False, progress: ProgressChoice = False
) -> Comparison:
    """Compare the results of two models: `second` minus `first` with 95 % intervals.

    Each is a results file or folder that `evaluate` wrote, FILE@MODEL where it contains several
    models. `force` compares results with different class names or prompts.
    """
    first_results = read_results(str(first))
    second_results = read_results(str(second))
    differences = compare_results(
        first_results, second_results, force, progress=progress_for(progress)
    )
    names = first_results[0].label, second_results[0].label
    return Comparison(*(names if names[0] != names[1] else (str(first), str(second))), differences)


def compare_variants(sweep: str | Path, *, progress: ProgressChoice = False) -> list[Comparison]:
    """Compare all pairs of variants in a sweep's folder, each over all of its seeds, with 95 %
    intervals.
    """
    return compare_all(read_variants(Path(sweep)), progress_for(progress))


def open_recipe(
    recipe: AnyRecipe,
    stage: StageName | None,
    options: Mapping[str, Any] | None = None,
    sets: Sets | None = None,
) -> LoadedRecipe:
    """The validated recipe with `options` as keys of the section `stage`, which it must have.

    A key that the section does not have, and that is near an argument of the stage's function, is
    refused as that; what is near a key of the section is refused as in a recipe.
    """
    if options and stage:
        function = {"eval": evaluate}.get(stage) or globals()[stage]
        [section] = [
            kind
            for kind in get_args(Recipe.model_fields[stage].annotation)
            if kind is not type(None)
        ]
        arguments = [name for name in inspect.signature(function).parameters if name != "options"]
        for key in (key for key in options if key not in section.model_fields):
            near = difflib.get_close_matches(key, [*section.model_fields, *arguments], 1)
            if near and near[0] in arguments:
                problem = Message(
                    "{}: unknown argument {}, did you mean '{}'?", function.__name__, key, near[0]
                )
                raise DcclipError(
                    problem, "list all arguments with: help(dcclip.{})", function.__name__
                )
    values = {f"{stage}.{key}": value for key, value in (options or {}).items()}
    if isinstance(sets, Mapping):
        values = {**sets, **values}
        sets = ()
    if isinstance(recipe, LoadedRecipe):
        loaded = recipe
        if sets or values:
            changed = load_recipe(recipe.recipe, sets or (), values)
            loaded = replace(changed, path=recipe.path, text=recipe.text, sha256=recipe.sha256)
    else:
        loaded = load_recipe(recipe, sets or (), values)
    if stage and stage not in loaded.recipe.stages:
        stages = ", ".join(loaded.recipe.stages) or Message("none")
        raise DcclipError(
            "{} has no section {}",
            "add this section; the recipe has: {}",
            loaded.path,
            stage,
            stages,
        )
    return loaded


def open_run(
    loaded: LoadedRecipe,
    out: PathLike | None,
    device: str = "auto",
    fresh: bool = False,
    progress: ProgressChoice = False,
    processes: Processes = 1,
) -> RecipeRun:
    """The run of a recipe in the directory `out`, by default runs/NAME; its training stages in so
    many `processes`.

    Raises DcclipError where this machine cannot start them.
    """
    set_library_defaults()
    use_launcher()
    folder = Path(out) if out is not None else Path("runs") / loaded.recipe.name
    number = process_number(processes, device)
    talk = progress_for(progress)
    for line in extensions.import_notices():
        talk.say(line)
    return RecipeRun(loaded, RunDir(folder), device, fresh, talk, number)
