"""What users read: the Chinese messages are complete, and no phrasing of wording.txt or replaced term is used."""

import ast
import gettext
import re
import string
import tokenize
from collections.abc import Iterator
from pathlib import Path

import pytest

from dcclip_cli.core.errors import DOMAIN, FIELD, LOCALES, filled
from docs.generate import messages

ROOT = Path(__file__).parent.parent
# Functions that show a text, and classes whose texts are shown, in the user's language.
SAYING = {"say", "error_line", "warning_line", "info_line", "hint_line"}
RAISED = {"DcclipError", "AgainError", "NotFiniteError"}


def test_every_message_has_a_translation_with_the_same_fields() -> None:
    entries = messages.read()
    needed = messages.extracted(entries)
    assert {message.id for message in entries} == {message.id for message in needed}, (
        "run: python -m docs.generate.messages"
    )
    for message in needed:
        if message.id:
            assert message.string, message.id
            assert str(message.string).count("\n\n") == str(message.id).count("\n\n"), message.id
            if "python-brace-format" in message.flags:
                assert _fields(str(message.string)) == _fields(str(message.id)), message.id


def test_the_file_that_is_read_has_the_translations_of_the_one_that_is_written() -> None:
    compiled = gettext.translation(DOMAIN, LOCALES, ["zh"])
    for message in messages.read():
        if message.id:
            assert compiled.gettext(str(message.id)) == message.string


def test_translations_have_full_width_punctuation() -> None:
    for message in messages.read():
        if message.id:
            assert not re.search(r"[\u4e00-\u9fff](?:[;!?]|,(?![a-z]))", str(message.string)), message.string


def test_what_users_read_is_a_literal_with_fields_or_a_message() -> None:
    """A text that is put together otherwise could not be found in the catalogue, nor one of a class in a variable."""
    for file in sorted((ROOT / "dcclip_cli").rglob("*.py")):
        tree = ast.parse(file.read_text("utf-8"))
        raised = [node.exc for node in ast.walk(tree) if isinstance(node, ast.Raise)]
        for call, name in _calls(tree):
            if call in raised and isinstance(call.func, ast.Name) and name.islower() and call.args:
                assert not isinstance(call.args[0], ast.Constant), f"{file}:{call.lineno}: write {name}(Message(...))"
            shown = call.args[:1] if name in SAYING else call.args[:2] if name in RAISED else ()
            for text in shown:
                wrong: list[ast.AST] = [node for node in ast.walk(text) if isinstance(node, ast.JoinedStr)]
                if name in SAYING:
                    wrong += [text] if isinstance(text, ast.Constant) else []
                assert not wrong, f'{file}:{call.lineno}: write Message("... {{}}", value)'
                assert not call.keywords or isinstance(text, ast.Constant), (
                    f"{file}:{call.lineno}: fields of no literal"
                )


def test_every_template_is_filled_without_a_brace_too_many() -> None:
    for text, file in (*messages.in_code(), *messages.in_templates()):
        list(string.Formatter().parse(text))  # raises ValueError for a single brace
        assert "{{" not in filled(text, _Seen()), f"{file}: {text}: write a brace twice, not four times"


def test_a_call_gives_its_template_all_fields_and_no_field_is_a_brace_written_once() -> None:
    """Templates without any values are those in tables, of other programs' texts and of the system's errors."""
    sources = {ROOT / f"dcclip_cli/{name}.py" for name in ("cli/chinese", "cli/system_errors", "recipe/load")}
    for file in sorted((ROOT / "dcclip_cli").rglob("*.py")):
        for call, name in _calls(ast.parse(file.read_text("utf-8"))):
            texts = call.args[: messages.CALLS.get(name, 0)]
            values = call.args[len(texts) :]
            named = {keyword.arg for keyword in call.keywords}
            named.discard("status")  # of RefusedError
            literals = [str(text.value) if isinstance(text, ast.Constant) else "" for text in texts]
            if None in named or any(isinstance(part, ast.Starred | ast.Subscript) for part in call.args[:1] + values):
                continue  # the values are in a mapping or list, or the template in a table
            if texts and (values or named or file not in sources):
                used = set[str]()
                first = 0
                for text in literals:
                    fields = {re.split("[.!:]", field)[0] for field in _fields(text)}
                    used |= {str(first + int(field)) if field.isdecimal() else field for field in fields}
                    first += sum(
                        field[1] is not None and field[1][:1] in ("", "!", ":") for field in FIELD.finditer(text)
                    )
                names = named | set(map(str, range(len(values))))
                assert used == names, f"{file}:{call.lineno}: {used ^ names}: write a brace twice, or give its value"


class _Seen(dict[str, str]):
    """Takes each field of a template that is filled."""

    def get(self, field: str, _default: object = None) -> str:
        self[field] = ""
        return ""


def _calls(tree: ast.AST) -> Iterator[tuple[ast.Call, str]]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            yield node, getattr(node.func, "id", getattr(node.func, "attr", ""))


def _fields(template: str) -> set[str]:
    visitor = _Seen()
    filled(template, visitor)
    return {"".join(field.split()) for field in visitor}


LIST = Path(__file__).with_name("wording.txt")
GLOSSARIES = {"en": ROOT / "docs/reference/glossary.md", "zh": ROOT / "docs/reference/glossary.zh.md"}
FILES = sorted(
    file
    for pattern in ("*.md", "docs/**/*.md", "recipes/*.yaml", "recipes/**/*.md", "dcclip_cli/**/*.py")
    for file in ROOT.glob(pattern)
    if not file.name.endswith(".zh.md") and file.name != "CHANGELOG.md" and file not in GLOSSARIES.values()
)


def replaced_terms(language: str) -> dict[str, str]:
    """Terms that are not used, in the last column of the glossary, each with the term to use."""
    rows = GLOSSARIES[language].read_text("utf-8").split("---|\n")[1]
    replaced_by_term = re.findall(r"^\| ([^|]+) \|[^|]+\| ([^|]+) \|$", rows, re.M)
    return {replaced: term for term, terms in replaced_by_term for replaced in re.split("[,、] ?", terms)}


def phrasings() -> list[tuple[re.Pattern[str], str]]:
    """Each listed expression, and what is better."""
    lines = [line for line in LIST.read_text("utf-8").splitlines() if line and not line.startswith("#")]
    pairs = [line.rsplit(" -> ", 1) for line in lines]
    pairs += [[rf"(?<![#-])\b{replaced}\b", term] for replaced, term in replaced_terms("en").items()]
    return [(re.compile(expression.replace(" ", r"[\s#]+"), re.I), better) for expression, better in pairs]


def prose(file: Path) -> str:
    """The text of a file that people read, with its line numbers: a page without code, of code comments and strings."""
    text = file.read_text("utf-8")
    if file.suffix == ".md":
        code = re.compile(r"^```.*?^```$|`[^`\n]+`|<!--.*?-->", re.M | re.S)
        return code.sub(lambda match: "\n" * match[0].count("\n"), text)
    if file.suffix != ".py":
        return text
    lines = text.splitlines()
    shown = [""] * len(lines)
    with file.open("rb") as opened:
        for token in tokenize.tokenize(opened.readline):
            if tokenize.tok_name[token.type] in ("COMMENT", "STRING", "FSTRING_MIDDLE"):
                for offset, part in enumerate(token.string.splitlines()):
                    shown[token.start[0] - 1 + offset] += part
    return "\n".join(shown)


def found(text: str) -> list[str]:
    """Where listed phrasings are in a text."""
    return [
        f"{text.count(chr(10), 0, match.start()) + 1}: {match[0]!r}, better: {better}"
        for expression, better in phrasings()
        for match in expression.finditer(text)
    ]


@pytest.mark.parametrize("part", ["docs", "recipes", "dcclip_cli", "."])
def test_listed_phrasings_are_not_used(part: str) -> None:
    files = [file for file in FILES if (file.relative_to(ROOT).parts[0] if file.parent != ROOT else ".") == part]
    assert files
    assert [f"{file.relative_to(ROOT)}:{problem}" for file in files for problem in found(prose(file))] == []


def test_terms_that_the_chinese_glossary_replaces_are_not_used() -> None:
    pages = [page for page in (*ROOT.glob("*.zh.md"), *ROOT.glob("docs/**/*.zh.md")) if page != GLOSSARIES["zh"]]
    texts = {page.name: page.read_text("utf-8") for page in pages}
    texts["dcclip.po"] = "\n".join(str(message.string) for message in messages.read())
    terms = replaced_terms("zh")
    assert {"老师": "教师（teacher）", "门槛": "阈值（threshold）"}.items() <= terms.items()
    assert [
        f"{name}: {term}, better: {better}"
        for name, text in texts.items()
        for term, better in terms.items()
        if term in text
    ] == []
