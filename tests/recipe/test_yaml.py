from pathlib import Path

import pytest

from dcclip_cli.core.errors import DcclipError
from dcclip_cli.recipe.yaml import MAX_BYTES, Document, read


def written(folder: Path, text: str) -> Document:
    path = folder / "recipe.yaml"
    path.write_text(text, encoding="utf-8")
    return read(path)[1]


def refusal(folder: Path, text: str) -> str:
    with pytest.raises(DcclipError) as caught:
        written(folder, text)
    return caught.value.what.removeprefix(f"{folder}/")


def test_scalars_have_their_yaml_1_2_meaning(tmp_path: Path) -> None:
    text = "a: no\nb: 12:30\nc: 1e-3\nd: 2026-11-25\ne: '5'\nf: 5\ng: true\nh: ~\ni: 猫，狗\nj: .5\nk: 0x10\n"
    values = list(written(tmp_path, text).values.values())
    assert values == ["no", "12:30", 0.001, "2026-11-25", "5", 5, True, None, "猫，狗", 0.5, "0x10"]


def test_paths_are_relative_to_the_recipe(tmp_path: Path) -> None:
    document = written(tmp_path, "a: ./x/猫.tar\nb: [../y, /z, BAAI/AltCLIP, .hidden]\n")
    assert document.values == {
        "a": f"{tmp_path}/x/猫.tar",
        "b": [f"{tmp_path.parent}/y", "/z", "BAAI/AltCLIP", ".hidden"],
    }


def test_overrides_replace_and_add_and_remember_who_gave_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    document = written(tmp_path, "a:\n  b: 1\nlist: [x, {y: 2}]\n")
    monkeypatch.chdir(tmp_path / "..")
    for expression in ("a.b=1e-3", "new.deep.key=[猫, ./dog]", "list.1.y=3", "list.0="):
        document.override(expression)
    assert document.values == {
        "a": {"b": 0.001},
        "list": [None, {"y": 3}],
        "new": {"deep": {"key": ["猫", f"{tmp_path.parent}/dog"]}},
    }
    assert document.place(("a", "b")) == "--set a.b=1e-3"
    assert document.place(("new", "deep", "key", 1)) == "--set new.deep.key=[猫, ./dog]"
    assert document.place(("list", 1, "z")) == f"{tmp_path}/recipe.yaml:3"


@pytest.mark.parametrize(
    ("expression", "what"),
    [
        ("a.b", "--set a.b: expected KEY=VALUE"),
        ("a.b.c=1", "--set a.b.c=1: a.b is 1, not a section"),
        ("list.2=1", "--set list.2=1: list is a list of 2 entries, numbered from 0"),
        ("a.b=[1", "--set a.b=[1: expected ',' or ']', but got '<stream end>'"),
        ("a.b=!!python/name:os.system", "--set a.b=!!python/name:os.system: remove tags ("),
    ],
)
def test_a_wrong_override_is_named(tmp_path: Path, expression: str, what: str) -> None:
    document = written(tmp_path, "a: {b: 1}\nlist: [1, 2]\n")
    with pytest.raises(DcclipError) as caught:
        document.override(expression)
    assert caught.value.what.startswith(what)


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("a:\n  猫: 2\n  猫: 3\n", "recipe.yaml:3: a.猫: duplicate key (first on line 2)"),
        ("a: 1\n b: 2\n", "recipe.yaml:2:3: mapping values are not allowed here"),
        ("a: &x [1]\n", "recipe.yaml:1:4: remove anchors (&) and aliases (*); quote text"),
        ("a: 1\nb: !!python/object/apply:os.system [ls]\n", "recipe.yaml:2:4: remove tags (tag:yaml.org,2002:python/"),
        ("a: " + "[" * 500 + "]" * 500, "recipe.yaml:1:34: more than 30 levels of nesting"),
        ("? [1]\n: 2\n", "recipe.yaml:1: a key must be text"),
        ("a: 1\n---\nb: 2\n", "recipe.yaml:2:1: expected a single document in the stream, but found another document"),
        ("a: 1\nb: \x07\n", "recipe.yaml:2: unreadable character #x0007"),
        ("", "recipe.yaml: expected sections such as `distill:`, found nothing"),
        ("- a\n", "recipe.yaml: expected sections such as `distill:`, found a list"),
        ("a: '" + "x" * MAX_BYTES + "'", "recipe.yaml is larger than 1,000,000 bytes"),
    ],
)
def test_what_is_no_plain_yaml_is_refused_with_its_line(tmp_path: Path, text: str, what: str) -> None:
    assert refusal(tmp_path, text).startswith(what)
