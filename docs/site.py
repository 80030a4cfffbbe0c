"""What mkdocs reads: the pages of docs/, the README and the changelog, and the repository's files
that they link to.

A hook of mkdocs (see mkdocs.yml). Pages link to other files as a code host resolves them
(`../../recipes/emoji.yaml`). Here all are copied to build/docs, where each file outside docs/ that
a page links to becomes a page or an image of the site, and the links lead there.
"""

import os
import re
from collections.abc import Iterator
from html import unescape
from pathlib import Path, PurePosixPath
from typing import Any

ROOT = Path(__file__).parent.parent
STAGED = ROOT / "build" / "docs"
# Pages of the site that are in the repository's root.
ROOT_PAGES = {
    "README.md": "index.md",
    "README.zh.md": "index.zh.md",
    **{
        f"{name}.md": f"{name.lower()}.md"
        for name in ("CHANGELOG", "CONTRIBUTING", "SECURITY", "AGENTS")
    },
}
IMAGES = {".jpg", ".png", ".svg", ".webp"}
ASSETS = IMAGES | {".css", ".csv", ".js", ".json"}  # files of docs/ that the site has as they are
LANGUAGES = {
    ".py": "python",
    ".yaml": "yaml",
    ".mjs": "js",
}  # of code blocks, by the ending of a file's name
_FENCE = re.compile(r"^(```.*?^```)$", re.M | re.S)
_LINK = re.compile(r"(?<=\]\()(?!\w+:|#)(?P<path>[^)#\s]+)(?=[#)])")
# The end of a line of Chinese text that goes on in the next: the site would show a blank there.
_CHINESE_BREAK = re.compile(
    r"(?<=[\u3000-\u9fff\uff00-\uffef])\n "
    r"*(?=[\u3000-\u9fff\uff00-\uffef])|(?<=[，。；：、）])\n *(?=[A-Za-z`])"
)
_FORMULA = re.compile(
    r'<(?P<tag>span|div) class="arithmatex">\\[(\[](?P<latex>.*?)\\[)\]]</(?P=tag)>', re.S
)


def on_config(config: Any) -> Any:
    """Makes mkdocs read the staged pages. It is called once for each language."""
    stage(STAGED)
    config.docs_dir = str(STAGED)
    return config


def on_serve(server: Any, config: Any, builder: Any) -> Any:
    """Makes `mkdocs serve` watch what is written by hand."""
    server.unwatch(str(STAGED))
    for path in (ROOT / "docs", *(ROOT / name for name in ROOT_PAGES)):
        server.watch(str(path))
    return server


def on_page_content(html: str, **_: Any) -> str:
    """The page with its formulas as MathML, which browsers show without a script."""
    from latex2mathml.converter import convert

    def mathml(formula: re.Match[str]) -> str:
        shown = convert(
            unescape(formula["latex"]), "block" if formula["tag"] == "div" else "inline"
        )
        return f'<{formula["tag"]} class="arithmatex">{shown}</{formula["tag"]}>'

    return _FORMULA.sub(mathml, html)


def on_page_context(context: Any, config: Any, **_: Any) -> Any:
    """Makes the language menu of the two home pages work in any folder of a web host, as that of
    other pages does.
    """
    for alternate in config.extra.alternate:
        alternate["link"] = alternate["link"].lstrip("/") or "./"
    return context


def stage(folder: Path) -> None:
    """Writes all files of the site into a folder, and removes from it what does not belong to the
    site.
    """
    files = dict(staged())
    for path in [path for path in folder.rglob("*") if path.is_file()]:
        if path.relative_to(folder).as_posix() not in files:
            path.unlink()
    for name, content in files.items():
        path = folder / name
        if (
            not path.is_file() or path.read_bytes() != content
        ):  # the same file again would make a server build again
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)


def staged() -> Iterator[tuple[str, bytes]]:
    """The path on the site and the content of each page, and of each file that one of these links
    to.
    """
    own = [
        path
        for path in (ROOT / "docs").rglob("*")
        if path.is_file() and path.suffix in {".md", *ASSETS}
    ]
    todo = [path.relative_to(ROOT).as_posix() for path in own] + list(ROOT_PAGES)
    seen = set(todo)
    while todo:
        path = todo.pop()
        text, linked = _content(path)
        yield place(path), text
        todo += linked - seen
        seen |= linked


def place(path: str) -> str:
    """Where a file or folder of the repository is on the site: `docs/x.md` -> `x.md`, `NOTICE` ->
    `files/NOTICE.md`.
    """
    if path in ROOT_PAGES:
        return ROOT_PAGES[path]
    if path.startswith("docs/"):
        return path.removeprefix("docs/")
    is_page = path.endswith(".md") or PurePosixPath(path).suffix in IMAGES
    return (
        f"files/{path}" if is_page else f"files/{path.replace('.', '-')}.md"
    )  # x.py.md would be a page in "py"


def _content(path: str) -> tuple[bytes, set[str]]:
    """What the site has of a file or folder, and the files that are linked in it."""
    file = ROOT / path
    if file.suffix in ASSETS:
        return file.read_bytes(), set()
    if path.endswith(".md"):
        return _page(path, file.read_text("utf-8"))
    head = f"---\nsearch: {{exclude: true}}\n---\n# {path}\n\n"
    if file.is_dir():
        names = sorted(
            f"{child.name}/" if child.is_dir() else child.name for child in file.iterdir()
        )
        return (head + "".join(f"- {name}\n" for name in names)).encode(), set()
    return (
        f"{head}```{LANGUAGES.get(file.suffix, 'text')}\n{file.read_text('utf-8')}\n```\n".encode(),
        set(),
    )


def _page(path: str, text: str) -> tuple[bytes, set[str]]:
    """A page with its links as the site needs them, and the files outside docs/ that it links to."""
    linked = set[str]()

    def site_link(link: re.Match[str]) -> str:
        target = os.path.normpath(PurePosixPath(path).parent / link["path"])
        if not target.startswith("docs/") and target not in ROOT_PAGES:
            linked.add(target)
        return _from(place(path), place(target))

    parts = _FENCE.split(text)
    parts[::2] = [_LINK.sub(site_link, part) for part in parts[::2]]
    if path.endswith(".zh.md"):
        parts[::2] = [_CHINESE_BREAK.sub("", part) for part in parts[::2]]
    head = "---\nhide: [navigation]\n---\n" if path.startswith("README") else ""
    return (head + "".join(parts)).encode(), linked


def _from(here: str, there: str) -> str:
    """The link from one page to another: by the name without language, unless it is the page's
    other edition.
    """
    if here != there and _without_language(here) == _without_language(there):
        return os.path.relpath(_address(there), _address(here)) + "/"
    return os.path.relpath(_without_language(there), PurePosixPath(here).parent)


def _address(page: str) -> str:
    """The folder of a page on the site: `zh/a/b` for `a/b.zh.md`."""
    folder = re.sub(r"(^|/)(index|README)$", "", _without_language(page).removesuffix(".md"))
    return f"zh/{folder}" if page.endswith(".zh.md") else folder or "."


def _without_language(page: str) -> str:
    return re.sub(r"\.zh\.md$", ".md", page)
