"""The page of the Python API, from the signatures and docstrings of what the package exports."""

import inspect
from typing import Any

import dcclip_cli
from dcclip_cli import api
from dcclip_cli.curation.collect import CollectResult
from dcclip_cli.errors import DcclipError
from dcclip_cli.eval.compare import Comparison, Difference
from dcclip_cli.eval.registry import KnownSet
from dcclip_cli.eval.result import EvalResult
from dcclip_cli.exporters.export import ExportResult
from dcclip_cli.inference import files
from dcclip_cli.inference.bench import Bench
from dcclip_cli.inference.index import Hit
from dcclip_cli.inference.model import Model, Prediction
from dcclip_cli.model.trim import TrimResult
from dcclip_cli.publish.push import Pushed
from dcclip_cli.recipe.summary import ModelSummary
from dcclip_cli.recipe.sweep import SweepRow
from dcclip_cli.run_dir import TrainResult
from docs.generate.markdown import MADE, filled, members

HEAD = """\
# Python API

```python
import dcclip_cli as dcclip
```

Each command is a function: the same keys, checks, files and results ([examples](../getting-started.md)). Options are
keyword arguments named as the [recipe's keys](recipes.md) are. A mistake that you can correct raises
`dcclip.DcclipError`; all else is a bug. Importing the package imports no torch.

| in signatures | is |
|---|---|
| `AnyRecipe` | a YAML file, a mapping, or a recipe that is loaded already |
| `Sets` | values by dotted key, `{"student.image.size": 64}`, or texts, `["student.image.size=64"]` |
| `PathLike` | `str` or `os.PathLike` |
| `Processes` | a number, or `"auto"`: one for each GPU |
| `ProgressChoice` | `True` for bars on stderr, or a function that receives lines |
| `MetricsListener` | a function of stage, step and a mapping of metrics |
| `ImageInput` | a path, the bytes of a file, or a Pillow image |
"""
ORDER = (
    *("load", "predict", "search", "bench", "embed", "new", "run", "sweep", "collect", "index", "distill", "align"),
    *("evaluate", "datasets", "compare", "export", "trim", "push"),
)
METHODS = (Model.predict, Model.embed_images, Model.embed_texts)
RESULTS = (
    *(Prediction, files.SearchResult, Hit, Bench, files.Embeddings, api.NewResult, api.IndexResult),
    *(
        KnownSet,
        api.SweepResult,
        SweepRow,
        api.RunResult,
        ModelSummary,
        CollectResult,
        TrainResult,
        EvalResult,
        Comparison,
        Difference,
    ),
    *(ExportResult, TrimResult, Pushed),
)


def page() -> str:
    exported = {name for name in dcclip_cli.__all__ if name[0].islower()}
    assert exported == set(ORDER), f"ORDER and the package's functions differ: {exported ^ set(ORDER)}"
    functions = [function(f"dcclip.{name}", functions_of(name)) for name in ORDER]
    functions.insert(1, model())
    errors = f"\n## dcclip.DcclipError\n\n{inspect.getdoc(DcclipError)}\n"
    results = "".join(result(one) for one in RESULTS)
    return MADE + HEAD + "".join(functions) + errors + "\n## Results\n" + results


def functions_of(name: str) -> Any:
    """The function; `dcclip.predict` is a package that calls it."""
    return files.predict if name == "predict" else getattr(dcclip_cli, name)


def function(name: str, value: Any, level: int = 2) -> str:
    """A heading, the signature and the docstring."""
    return f"\n{'#' * level} {name}\n\n```python\n{signature(name, value)}\n```\n\n{inspect.getdoc(value)}\n"


def signature(name: str, value: Any) -> str:
    """The signature without `self`, in lines that fit a page."""
    found = inspect.signature(value)
    parameters = [one for one in found.parameters.values() if one.name != "self"]
    keywords = next((number for number, one in enumerate(parameters) if one.kind is one.KEYWORD_ONLY), None)
    shown = [parameter(one) for one in parameters]
    if keywords is not None:
        shown.insert(keywords, "*")
    name = name.rpartition(".")[2]
    return filled(f"def {name}(", shown, f") -> {found.return_annotation}: ...")


def parameter(one: inspect.Parameter) -> str:
    stars = "**" if one.kind is one.VAR_KEYWORD else ""
    default = "" if one.default is one.empty else f" = {one.default!r}".replace("'", '"')
    annotation = str(one.annotation).replace("'", '"')  # as ruff formats it
    return f"{stars}{one.name}: {annotation}{default}"


def model() -> str:
    methods = "".join(function(f"Model.{method.__name__}", method, 3) for method in METHODS)
    return f"\n## Model\n\nWhat `load` returns. {inspect.getdoc(Model)}\n{methods}"


def result(kind: Any) -> str:
    """A class of results: its fields with types and defaults, and its docstring."""
    return f"\n### {kind.__name__}\n\n{members(kind)}\n{inspect.getdoc(kind)}\n"
