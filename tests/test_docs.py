"""The documentation is correct: commands and Python code run, options exist, links lead to files, recipes load.

A block of shell commands is run here line by line unless it is marked with `<!-- not run here: REASON -->`, as is
a block of Python outside the README and getting-started.md: it takes long, needs a network, or needs a finished run.
Those of a tutorial are run in order, in one folder, into which its blocks with a title are written as files, and with
no other package than those that it tells to install.
"""

import os
import re
import shlex
import subprocess
import sys
from datetime import date
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml
from typer.testing import CliRunner

from dcclip_cli.cli.app import app
from dcclip_cli.core.errors import DcclipError
from dcclip_cli.core.versions import VERSION
from dcclip_cli.recipe.load import load
from docs.generate import PAGES as PAGES_FROM_CODE
from docs.generate import REFERENCE, messages
from docs.results import plots, render
from docs.results.records import FOLDER, exact, mean, records
from tests.installed import environment
from tests.pages import BLOCK, ROOT, blocks

DCCLIP = typer.main.get_command(app)
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
RECIPES = sorted([*(ROOT / "recipes").glob("*.yaml"), *(ROOT / "benchmarks").glob("*/*.yaml")])
LANGUAGES = {"sh", "python", "yaml", "text"}
TUTORIALS = [page for page in PAGES if page.parent.name == "tutorials" or page.name.startswith("getting-started.")]
CHINESE = [  # but for the README, and for pages that docs/generate writes in both languages
    page
    for page in PAGES
    if page.parent != ROOT and page.match("*.zh.md") and page.name not in ("recipes.zh.md", "cli.zh.md")
]
_LINK = re.compile(r"\]\((?!https?://)([^)#]+)")


def commands(page: Path, marked: bool | None = None) -> list[str]:
    """The lines of a page's shell blocks, each once."""
    lines = [line for block in blocks(page, "sh", marked) for line in block.splitlines()]
    return list(dict.fromkeys(line for line in lines if line.strip()))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_a_page_s_links_lead_to_files_its_recipes_load_and_its_options_exist(page: Path, tmp_path: Path) -> None:
    text = page.read_text("utf-8")
    assert {block["language"] for block in BLOCK.finditer(text)} <= LANGUAGES
    assert [link for link in _LINK.findall(text) if not (page.parent / link).exists()] == []
    for recipe in blocks(page, "yaml"):
        (tmp_path / "recipe.yaml").write_text(recipe, "utf-8")
        load(tmp_path / "recipe.yaml")
    inline = re.findall(r"`(dcclip [a-z][^`]*)`", text)
    assert [problem for command in (*inline, *commands(page)) if (problem := unknown(command))] == []


def test_every_page_is_reached_from_the_readmes() -> None:
    reached = set[Path]()
    to_visit = [ROOT / page for page in READMES]
    while to_visit:
        page = to_visit.pop().resolve()
        if page not in reached and page.suffix == ".md":
            reached.add(page)
            to_visit += [page.parent / link for link in _LINK.findall(page.read_text("utf-8"))]
    assert {page for page in PAGES if page.parent != ROOT} - reached == set()


# Commands of pages but tutorials, each on the first page that has it.
RUN = {command: page for page in PAGES[::-1] if page not in TUTORIALS for command in commands(page, marked=False)}


@pytest.mark.parametrize("page", sorted(set(RUN.values())), ids=lambda page: page.name)
def test_commands_that_are_not_marked_run(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "recipes").symlink_to(ROOT / "recipes")
    monkeypatch.chdir(tmp_path)
    for command in (command for command in commands(page, marked=False) if RUN[command] == page):
        program, *arguments = shlex.split(command)
        assert program == "dcclip", "only dcclip is run here: mark the block"
        result = CliRunner().invoke(app, arguments)
        assert result.exit_code == 0, f"{command}\n{result.output}"


def unknown(command: str) -> str:
    """The command, option or recipe key of `dcclip ...` that is wrong, "" if none is or if it is another program's."""
    if not command.startswith("dcclip "):
        return ""
    node: Any = DCCLIP
    words = shlex.split(command)
    for word in words[1:]:
        if word.startswith("--"):
            options = {name for parameter in node.params for name in (*parameter.opts, *parameter.secondary_opts)}
            if word not in options | {"--help"}:
                return f"{node.name} has no {word}: {command}"
        elif children := getattr(node, "commands", None):
            if word not in children:
                return f"there is no command {word}: {command}"
            node = children[word]
    overrides = [value for option, value in pairwise(words) if option == "--set"]
    for recipe in (ROOT / word for word in words if word.endswith(".yaml")):
        if recipe.exists():
            try:
                load(recipe, overrides)
            except DcclipError as error:
                return f"{error}: {command}"
    return ""


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda recipe: recipe.stem)
def test_the_commands_in_the_header_of_a_recipe_are_right(recipe: Path) -> None:
    header = re.sub(r"( \\)?\n# +(?=--)", " ", recipe.read_text("utf-8"))
    commands = re.findall(r"^#.*?(dcclip [a-z].*?)(?=  |$|`|, |\))", header, re.M)
    assert [problem for command in commands if (problem := unknown(command))] == []


def script_of(page: Path) -> str:
    """The commands of a page in order, for four steps where it asks for some, with its titled blocks as files."""
    parts = ["set -euo pipefail"]
    for block in BLOCK.finditer(page.read_text("utf-8")):
        if block["title"]:
            parts.append(f"cat > {shlex.quote(block['title'])} << 'END OF FILE'\n{block['body']}END OF FILE")
        elif block["language"] == "sh" and not block["marked"]:
            few = "distill.steps=4 --set distill.warmup_steps=1"
            parts.append(re.sub(r"distill\.steps=\d+", few, block["body"]))
    return "\n".join(parts)


def extras_of(page: Path) -> list[str]:
    """The extras of dcclip that a tutorial tells to install."""
    told = ROOT / "Makefile" if page.stem == "getting-started" else page  # `make quickstart`
    match = re.search(r"pip install (?:-\S+ )*'?\.(?:\[([\w,]+)\])?", told.read_text("utf-8"))
    assert match
    return match[1].split(",") if match[1] else []


@pytest.mark.slow
@pytest.mark.parametrize("page", [page for page in TUTORIALS if ".zh" not in page.name], ids=lambda page: page.stem)
def test_the_commands_of_a_tutorial_run_in_order(page: Path, tmp_path: Path) -> None:
    (tmp_path / "recipes").symlink_to(ROOT / "recipes")
    run = ["bash", "-c", script_of(page)]
    done = subprocess.run(run, cwd=tmp_path, env=environment(extras_of(page)), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("page", CHINESE, ids=lambda page: page.name)
def test_a_chinese_page_has_the_english_page_s_code(page: Path) -> None:
    english = page.with_name(page.name.replace(".zh.md", ".md"))
    for language in ("sh", "python", "yaml"):  # comments are in the language of the page
        assert [re.sub(r" +#.*", "", block) for block in blocks(page, language)] == [
            re.sub(r" +#.*", "", block) for block in blocks(english, language)
        ]


SHOWN = [page for page in PAGES if page.match("*.zh.md")]


@pytest.mark.parametrize("page", SHOWN, ids=lambda page: page.name)
def test_a_chinese_page_links_to_chinese_pages_and_shows_no_english_message(page: Path) -> None:
    text = page.read_text("utf-8")
    english = page.name.replace(".zh.md", ".md")
    links = [link for link in _LINK.findall(text) if link.endswith(".md") and Path(link).name != english]
    assert [link for link in links if (page.parent / link).with_suffix(".zh.md").exists()] == []
    ids = {str(entry.id) for entry in messages.read() if entry.id and entry.string != entry.id}
    parts = [re.split(r"\{[^{}]*\}", text_id) for text_id in ids]
    templates = re.compile("|".join(".+".join(map(re.escape, pieces)) for pieces in parts if len("".join(pieces)) > 15))
    printed = [line for block in blocks(page, "text") for line in block.splitlines() if not line.startswith("const")]
    assert [line for line in printed if ids & set(re.split(" {2,}", line)) or templates.search(line)] == []


# Pages whose commands take seconds; those of others are in the tests of tutorials, which are slow.
PRINTED = [page for page in PAGES if page.name.split(".")[0] in ("README", "label-photographs")]


@pytest.mark.parametrize("page", PRINTED, ids=lambda page: page.name)
def test_a_page_shows_what_its_commands_print_in_its_language(page: Path, tmp_path: Path) -> None:
    (tmp_path / "recipes").symlink_to(ROOT / "recipes")
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    language = "zh" if ".zh." in page.name else "en"
    env = os.environ | {"DCCLIP_LANG": language, "PATH": path, "PYTHONPATH": str(ROOT)}
    printed = ""
    for block in BLOCK.finditer(page.read_text("utf-8")):
        if block["title"]:
            (tmp_path / block["title"]).write_text(block["body"], "utf-8")
        elif block["language"] == "sh" and not block["marked"]:
            run = subprocess.run(["bash", "-c", block["body"]], cwd=tmp_path, env=env, capture_output=True, text=True)
            files = re.findall(r" > (\S+)$", block["body"], re.M)
            printed = run.stdout + "".join((tmp_path / file).read_text("utf-8") for file in files)
            assert run.returncode == 0, run.stderr
        elif block["language"] == "text":
            shown = block["body"].removesuffix("...\n")  # the beginning of what is printed
            assert words(printed).startswith(words(shown)), printed


def words(printed: str) -> str:
    """What is printed without its numbers, which differ in the last digit from machine to machine."""
    return re.sub(r"[\d.%]+| +", " ", printed)


READMES = ("README.md", "README.zh.md")


@pytest.mark.parametrize("page", READMES)
def test_the_python_in_the_readme_runs(page: str, capsys: pytest.CaptureFixture[str]) -> None:
    code = "\n".join(blocks(ROOT / page, "python")).replace('"recipes/', f'"{ROOT}/recipes/')
    exec(compile(code, page, "exec"), {})
    assert capsys.readouterr().out.startswith("{'猫': 0.99")


def test_open_clip_loads_a_model_directory_as_deploy_shows(
    model_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (code,) = (block for block in blocks(ROOT / "docs/how-to/deploy.md", "python") if "import open_clip" in block)
    code = code.replace("runs/quickstart/align/model", str(model_folder)).replace('"docs/', f'"{ROOT}/docs/')
    exec(compile(code, "deploy.md", "exec"), {})
    assert re.fullmatch(r"tensor\(\[\[[01]\.\d+, [01]\.\d+\]\]\)", capsys.readouterr().out.strip())


def test_the_readmes_are_short_and_in_sync() -> None:
    english, chinese = ((ROOT / page).read_text("utf-8") for page in READMES)
    assert max(len(english.splitlines()), len(chinese.splitlines())) <= 110
    code = [[*blocks(ROOT / page, "sh"), *blocks(ROOT / page, "python")] for page in READMES]
    without_comments = [[re.sub(r" +#.*", "", block) for block in page] for page in code]
    assert without_comments[0] == without_comments[1]
    assert len(re.findall("^## ", english, re.M)) == len(re.findall("^## ", chinese, re.M))
    links = [sorted(re.sub(r"[.-]zh(?=\.)", "", link) for link in _LINK.findall(page)) for page in (english, chinese)]
    assert links[0] == links[1]


@pytest.mark.slow  # a minute
def test_the_python_in_getting_started_runs_in_order(whole_recipe: dict[str, Any], tmp_path: Path) -> None:
    quick = {stage: {**whole_recipe[stage], "precision": "fp32"} for stage in ("distill", "align", "eval")}  # no probe
    recipe = whole_recipe | quick | {"name": "quickstart"}
    (tmp_path / "quickstart.yaml").write_text(yaml.safe_dump(recipe), "utf-8")
    (tmp_path / "recipes").symlink_to(ROOT / "recipes")
    (tmp_path / "docs").symlink_to(ROOT / "docs")
    code = "\n".join(blocks(ROOT / "docs/getting-started.md", "python"))
    for shown, ran in (("recipes/quickstart.yaml", "quickstart.yaml"), ("steps=300", "steps=4")):
        assert shown in code
        code = code.replace(shown, ran)
    run = [sys.executable, "-c", code]
    page = ROOT / "docs/getting-started.md"
    done = subprocess.run(run, cwd=tmp_path, env=environment(extras_of(page)), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "runs/shorter/distill/model").is_dir() and (tmp_path / "runs/quickstart/export").is_dir()


@pytest.mark.parametrize("name", PAGES_FROM_CODE)
def test_a_page_that_is_made_from_the_code_is_current(name: str) -> None:
    assert (REFERENCE / name).read_text("utf-8") == PAGES_FROM_CODE[name](), "run: python -m docs.generate"


def test_the_version_is_that_of_the_changelog_and_of_the_citation() -> None:
    released = re.search(r"^## (\d+\.\d+\.\d+) - ", (ROOT / "CHANGELOG.md").read_text("utf-8"), re.M)
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text("utf-8"))
    assert released and released[1] == citation["version"] == VERSION
    assert {"cff-version", "message", "title", "authors"} <= citation.keys()  # what the format requires


NAMES = sorted(file.stem for file in FOLDER.glob("*.csv"))
REMEDY = "run: python -m docs.results.render"


@pytest.mark.parametrize("page", render.PAGES, ids=lambda page: page.name)
def test_the_tables_of_a_page_are_those_of_the_csv_files(page: Path) -> None:
    assert page.read_text("utf-8") == render.page(page.read_text("utf-8")), REMEDY


def test_every_table_is_on_a_page_and_every_plot_is_shown() -> None:
    text = "".join(page.read_text("utf-8") for page in render.PAGES)
    assert {name for name in render.tables() if f"<!-- table: {name} -->" not in text} == set()
    assert {name for name in plots.PLOTS if f"images/{name})" not in text} == set()


@pytest.mark.parametrize("name", plots.PLOTS)
def test_a_plot_is_drawn_from_the_numbers_of_today_and_is_dark_in_the_dark(name: str) -> None:
    svg = (plots.IMAGES_FOLDER / name).read_text("utf-8")
    assert f"<!-- {plots.digest()} -->" in svg, REMEDY
    assert "prefers-color-scheme: dark" in svg and "url(" not in svg.replace("url(#", "") and "<dc:date>" not in svg


@pytest.mark.parametrize("name", NAMES)
def test_a_number_names_its_machine_its_day_and_its_command(name: str) -> None:
    for row in records(name):
        assert row["machine"].split()[0].rstrip(",") in {"fast", "plain", "any"} and date.fromisoformat(row["date"])
        assert row["language"] in {"", "en", "zh"} and row["value"] and None not in row.values()
        scripts = re.findall(r"\S+\.(?:py|yaml|parquet)", row["command"])
        exists = (script.startswith("benchmarks/") or (FOLDER.parents[1] / script).exists() for script in scripts)
        assert scripts and all(exists), row["command"]  # a benchmark may be in an older commit: docs/results/index.md


def test_rounding_is_undone_where_the_number_of_images_is_known() -> None:
    assert exact({"value": "12.4", "data": "unseen"}) == 100 * 26 / 210
    assert exact({"value": "65.1", "data": "known classes, more drawings"}) == 65.1
    assert round(mean("unseen", "en", "student"), 3) == round(100 * (31 + 29 + 32 + 29 + 31 + 27) / 6 / 210, 3)
    assert round(mean("twemoji", "zh", "student", "fast (Intel Xeon)"), 1) == 70.1  # of 70.4, 70.2 and 69.8
