"""The page of the Python API: a table of its functions, from signatures and docstrings, and what
the site adds.
"""

import inspect
from types import FunctionType

import dcclip_cli
from dcclip_cli.inference.model import Model
from docs.generate.markdown import MADE, code, escaped, table

HEAD = """\
# Python API

After `import dcclip_cli as dcclip`, each command is a function: the same keys, checks, files and results
([step by step](#step-by-step)). Options are keyword arguments named as the [recipe's keys](recipes.md) are. A mistake
that you can correct raises `dcclip.DcclipError`; all else is a bug. Importing the package imports no torch.
`help(dcclip.load)` prints the docstring of a function.

"""
STEPS = """\

## Step by step

These cells are for a notebook in a clone of the repository; a test runs them in order. The model is the starter;
`model=` names another.

```python
import dcclip_cli as dcclip

predictions = dcclip.predict("docs/images/cat.png", ["猫", "狗", "dog"])
print(predictions[0].labels[0])
result = dcclip.search("一只猫", "recipes/starter/photos", top_k=3)
print([(hit.image.name, round(hit.score, 2)) for hit in result.hits])
file = dcclip.embed("docs/images", out="embeddings.npy").file
```

A recipe is a file or a mapping. This student learns from the quick start's teacher for four steps. `progress=print`
shows lines, `progress=True` bars on stderr. `on_metrics` receives what is logged:

```python
tower = {"layers": 1, "width": 192, "heads": 3, "context_length": 32, "vocabulary": {"from": "teacher", "size": 2368}}
recipe = {
    "name": "notebook",
    "teacher": {"kind": "open_clip", "model": "./recipes/quickstart/teacher"},
    "student": {"image": {"timm": "test_resnet", "size": 64}, "text": tower},
    "data": {"train": "./recipes/quickstart/train.parquet"},
    "distill": {"losses": [{"kind": "embedding"}], "steps": 4, "batch_size": 32, "warmup_steps": 1},
    "eval": {"datasets": ["./recipes/quickstart/unseen.parquet"], "limit": 200},
}
curve = []
note = lambda stage, step, metrics: curve.append((step, metrics["loss"]))
student = dcclip.distill(recipe, log_every_steps=1, progress=print, on_metrics=note)
print(student.model, curve)
```

A misspelt argument or key is an error that names the nearest one. Several seeds, and variants of the recipe, are one
call:

```python
try:
    dcclip.evaluate(models=student.model, datasets=["./recipes/quickstart/unseen.parquet"])
except dcclip.DcclipError as error:
    print(error.what)
variants = {"small": {}, "faster": {"distill.optimizer.lr": 2e-3}}
swept = dcclip.sweep({**recipe, "variants": variants}, seeds=[0, 1])
for row in swept.rows:
    print(row.variant, row.model, row.scores())
```
"""
TYPES = {
    "AnyRecipe": "a YAML file, a mapping, or a recipe that is loaded already",
    "Sets": 'values by dotted key, `{"student.image.size": 64}`, or texts, '
    '`["student.image.size=64"]`',
    "PathLike": "`str` or `os.PathLike`",
    "Processes": 'a number, or `"auto"`: one for each GPU',
    "ProgressChoice": "`True` for bars on stderr, or a function that receives lines",
    "MetricsListener": "a function of stage, step and a mapping of metrics",
    "ImageInput": "a path, the bytes of a file, or a Pillow image",
}
RESULTS = """\
inference.model.Prediction photos.files.SearchResult photos.index.Hit inference.bench.Bench
photos.files.Embeddings api.NewResult api.IndexResult eval.registry.KnownSet api.SweepResult recipe.sweep.SweepRow
api.RunResult recipe.summary.ModelSummary curation.collect.CollectResult core.run_dir.TrainResult eval.result.EvalResult
eval.compare.Comparison eval.compare.Difference exporters.export.ExportResult model.trim.TrimResult
publish.push.Pushed
"""


def page() -> str:
    functions = {name: getattr(dcclip_cli, name) for name in sorted(dcclip_cli.__all__)}
    functions = {
        name: function for name, function in functions.items() if isinstance(function, FunctionType)
    }
    methods = {
        name: method for name, method in vars(Model).items() if isinstance(method, FunctionType)
    }
    types = table(("in signatures", "is"), ((code(name), text) for name, text in TYPES.items()))
    details = "\n".join(
        f"\n::: dcclip_cli.{name}" for name in ("inference.model.Model", *RESULTS.split())
    )
    return (
        f"{MADE}{HEAD}{summary(functions)}\n## A loaded model\n\n`dcclip.load(...)` "
        f"returns a `Model`:\n\n"
        f"{summary(methods)}\n{types}{STEPS}\n## Signatures, docstrings and "
        f"results\n\nThe site has them here.\n\n"
        "::: dcclip_cli\n    options:\n      show_root_heading: false\n      "
        "show_root_toc_entry: false\n"
        f"      members_order: __all__\n{details}\n"
    )


def summary(functions: dict[str, FunctionType]) -> str:
    """A table of public functions: how to call each, and the first line of its docstring."""
    rows = (
        (
            code(f"{name}({arguments(function)})"),
            escaped(_summary(function)),
        )
        for name, function in functions.items()
        if not name.startswith("_")
    )
    return table(("call", "what it does"), rows)


def arguments(function: FunctionType) -> str:
    """The parameters of a function with their defaults, `*` before those that are named only."""
    parts = []
    for parameter in inspect.signature(function).parameters.values():
        if parameter.kind is parameter.KEYWORD_ONLY and "*" not in parts:
            parts.append("*")
        prefix = "**" if parameter.kind is parameter.VAR_KEYWORD else ""
        default = "" if parameter.default is parameter.empty else f"={parameter.default!r}"
        parts += [] if parameter.name == "self" else [f"{prefix}{parameter.name}{default}"]
    return ", ".join(parts)


def _summary(function: object) -> str:
    """The first paragraph of a docstring in one line."""
    paragraph = (inspect.getdoc(function) or "").partition("\n\n")[0]
    return " ".join(paragraph.split())
