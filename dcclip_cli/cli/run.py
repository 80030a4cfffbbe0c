"""`dcclip run RECIPE`: all of a recipe's stages in order, and a table of what they came to."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING

from dcclip_cli.cli import collect, console, eval, export, flags, stages
from dcclip_cli.errors import DcclipError

if TYPE_CHECKING:
    from dcclip_cli.eval.result import EvalResult
    from dcclip_cli.model.reference import ModelReference
    from dcclip_cli.model.teachers import Teacher

SUMMARY = "summary.json"


@dataclass(frozen=True)
class Row:
    """One model in the closing table; `top1` is by data set and language, in 0..1."""

    name: str
    parameters: int
    size_bytes: int
    image_ms: float
    text_ms: float
    top1: dict[str, float]


def run(
    recipe: flags.RecipeFile,
    sets: flags.Sets = None,
    out: flags.Out = None,
    fresh: flags.Fresh = False,
    check: flags.Check = False,
    device: flags.Where = "auto",
    quiet: flags.Quiet = False,
    verbose: flags.Verbose = False,
) -> None:
    """Do all stages of a recipe in order.

    Stages finished before are skipped.
    Ends with a table of what the run came to: teacher, student and bundle, how good, how big, how fast.
    """
    loaded = stages.open_recipe(recipe, sets)
    if check:
        return stages.check(loaded, device)
    if not loaded.recipe.stages:
        raise DcclipError(f"{recipe} names no stage", "give it a section, for example: distill")
    if os.environ.get("WORLD_SIZE", "1") != "1":
        raise DcclipError("dcclip run works in one process", "launch distill and align, each by itself")
    work = stages.Work(loaded, stages.open_run(loaded, out), device, fresh, console.talk(quiet, verbose))
    work.begin(*loaded.recipe.stages)
    results: dict[str, list[EvalResult]] = {}
    for stage in loaded.recipe.stages:
        if stage == "collect":
            collected = work.collect()
            collect.show(collected)
            changed = not collected.already_finished
        elif stage == "distill" or stage == "align":
            changed = work.train(stage)
        elif stage == "export":
            options = loaded.recipe.export
            assert options is not None
            folder = work.run.stage("export")
            changed = export.run(
                options, work.trained_model(), folder, work.data(), loaded.recipe.eval, work.fresh, work.progress
            )
        else:
            changed = work.fresh or not _measured(work)
            if changed:
                _evaluate(work, results, "teacher", "student")
        work = replace(work, fresh=work.fresh or changed)  # what was made from an older result is out of date
    if not {"distill", "align"} & set(loaded.recipe.stages):
        return
    rows = [] if work.fresh else _measured(work)
    if rows:
        work.progress.say("eval: finished before (--fresh does it again)")
    else:
        _evaluate(work, results, "teacher", "student", "bundle")
        rows = _measure(work, results)
    _show(f"{work.run.root} after {_steps(work)} steps, measured on one thread of this machine's CPU", rows)


def _measured(work: stages.Work) -> list[Row]:
    """The closing table's rows, if an earlier run measured them of the same recipe and the same weights."""
    summary = work.run.root / SUMMARY
    if not summary.is_file():
        return []
    content = json.loads(summary.read_text("utf-8"))
    return [Row(**row) for row in content["rows"]] if content["of"] == _identity(work) else []


def _identity(work: stages.Work) -> str:
    """A hash that changes with the recipe and with the weights that came of it."""
    from dcclip_cli.model.model_dir import model_fingerprint
    from dcclip_cli.recipe.load import resolved_yaml

    parts = resolved_yaml(work.loaded.recipe) + model_fingerprint(work.trained_model().path)
    return hashlib.sha256(parts.encode()).hexdigest()


def _models(work: stages.Work) -> dict[str, ModelReference]:
    """The models that the run is about, as far as they are there: teacher, student, bundle."""
    from dcclip_cli.model.reference import resolve

    found: dict[str, ModelReference] = {}
    if work.loaded.recipe.teacher is not None:
        found["teacher"] = resolve(_name_of(work.loaded.recipe.teacher))
    found["student"] = work.trained_model()
    if work.finished("export"):
        found["bundle"] = resolve(str(work.run.stage("export")))
    return found


def _name_of(teacher: Teacher) -> str:
    """The teacher as `--model` would name it."""
    if teacher.kind != "open_clip":
        return f"hf:{teacher.model}"
    return teacher.model if teacher.model.startswith(("/", "hf-hub:")) else f"open_clip:{teacher.model}"


def _evaluate(work: stages.Work, results: dict[str, list[EvalResult]], *names: str) -> None:
    """Add to `results` those that it lacks of the models `names`, on the recipe's test sets; the run keeps all."""
    options = work.loaded.recipe.eval
    if options is None:
        return
    from dcclip_cli.eval.evaluate import evaluate, open_datasets
    from dcclip_cli.eval.feature_cache import FeatureCache
    from dcclip_cli.eval.report import save_report
    from dcclip_cli.files import cache_folder

    datasets, cache = open_datasets(options), FeatureCache(cache_folder())
    for name, model in _models(work).items():
        if name in names and name not in results:
            results[name] = evaluate(
                [model], datasets, options, device=work.device, cache=cache, progress=work.progress
            )
    save_report([one for several in results.values() for one in several], datasets, work.run.stage("eval"))


def _measure(work: stages.Work, results: dict[str, list[EvalResult]]) -> list[Row]:
    """Size and speed of the run's models, beside their top-1; kept in the run."""
    from dcclip_cli.predict.encoder import load_encoder
    from dcclip_cli.predict.footprint import footprint

    rows = []
    for name, reference in _models(work).items():
        figures = footprint(load_encoder(reference, "cpu"))
        top1 = {f"{one.dataset} {one.language}": one.value for one in results.get(name, ())}
        rows.append(Row(name, figures.parameters, figures.size_bytes, figures.image_ms, figures.text_ms, top1))
    content = {"of": _identity(work), "rows": [asdict(row) for row in rows]}
    (work.run.root / SUMMARY).write_text(json.dumps(content, ensure_ascii=False, indent=2), encoding="utf-8")
    return rows


def _steps(work: stages.Work) -> str:
    """How long the student was trained, stage by stage: "2200 + 250"."""
    from dcclip_cli.files import read_json
    from dcclip_cli.model.model_dir import PROVENANCE

    models = [work.run.model(stage) for stage in ("distill", "align") if stage in work.loaded.recipe.stages]
    notes = [read_json(model / PROVENANCE, "do the stage again with --fresh") for model in models]
    return " + ".join(str(note["steps"]) for note in notes)


def _show(title: str, rows: list[Row]) -> None:
    """Print models side by side, and what the student is of its teacher."""
    lines: list[tuple[str, list[float], Callable[[float], str]]] = [
        *((f"top-1 {name}", [row.top1[name] for row in rows], eval.percent) for name in rows[0].top1),
        ("parameters", [row.parameters for row in rows], lambda value: f"{value / 1e6:.2f} M"),
        ("size of the weights", [row.size_bytes for row in rows], lambda value: f"{value / 1e6:.1f} MB"),
        ("one image", [row.image_ms for row in rows], lambda value: f"{value:.1f} ms"),
        ("one text", [row.text_ms for row in rows], lambda value: f"{value:.1f} ms"),
    ]
    names = [row.name for row in rows]
    compared = "teacher" in names
    columns = ["", *names, *(["student / teacher"] if compared else [])]
    table = [
        [what, *map(say, values), *([f"{values[1] / values[0]:.0%}" if values[0] else ""] if compared else [])]
        for what, values, say in lines
    ]
    console.show_table(title, columns, table)
