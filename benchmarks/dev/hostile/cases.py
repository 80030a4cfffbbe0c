"""Bad inputs: functions that damage, and tables of rows with the commands that get them."""

from __future__ import annotations

import json
import os
import pickle
import shlex
import shutil
import tarfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from random import Random
from typing import Any

import yaml

from benchmarks.dev.hostile.corpus import COLLECT, EVAL, RECIPE, SEARCH
from benchmarks.dev.hostile.run import Case
from tests.damage import damage
from tests.images import png_header
from tests.tars import tar_bytes

Change = Callable[[Path], object]


@dataclass(frozen=True)
class Row:
    """A bad input: what replaces `{}` in a command, and what is done to the folder before."""

    argument: str = ""
    change: Change = lambda here: None
    stdin: bytes = b""
    may_succeed: bool = False


Draw = Callable[[Random], tuple[str, Row]]  # a name, and a row drawn at random


@dataclass(frozen=True)
class Table:
    """Rows, and commands separated by ` ; ` that get them: `{}` is replaced by the row's argument,
    `{*}` by its words.

    Where nothing `may_succeed`, or a row is not among those named in `fine`, a command has to end
    with an error.
    """

    cases: int  # of 1,000
    parts: str
    commands: str
    rows: Mapping[str, Row] | Draw
    may_succeed: bool = False
    fine: str = ""
    check: Callable[[Path, str], str] = lambda here, stdout: ""

    def draw(self, name: str, total: int) -> Iterator[Case]:
        """This table's share of `total` cases, none of them twice."""
        cases = {case.name: case for case in map(self._case, [name] * total, range(total))}
        return islice(iter(cases.values()), max(1, round(self.cases * total / 1000)))

    def _case(self, name: str, number: int) -> Case:
        turn, place, commands = 0, number, " ".join(self.commands.split()).split(" ; ")
        if callable(self.rows):
            label, row = self.rows(Random(f"{name} {number}"))
        else:
            turn, place = divmod(number, len(self.rows))
            label, row = list(self.rows.items())[place]
        command = commands[(turn + place) % len(commands)]
        arguments: list[str] = []
        for word in shlex.split(command):
            arguments += (
                shlex.split(row.argument) if word == "{*}" else [word.replace("{}", row.argument)]
            )
        may_succeed = self.may_succeed or row.may_succeed or label in self.fine.split(";")
        options = (row.change, may_succeed, self.check, row.stdin)
        return Case(f"{name}: {label}: {command}", arguments, self.parts.split(), *options)


def write(name: str, content: bytes | str) -> Change:
    def change(here: Path) -> None:
        (here / name).parent.mkdir(parents=True, exist_ok=True)
        (here / name).write_bytes(
            content.encode("utf-8", "surrogatepass") if isinstance(content, str) else content
        )

    return change


def both(*changes: Change) -> Change:
    return lambda here: (
        ", ".join(text for change in changes if isinstance(text := change(here), str)) or None
    )


def fifo(name: str) -> Change:
    return lambda here: os.mkfifo(here / name)


def link(name: str, target: str) -> Change:
    return lambda here: (here / name).symlink_to(target)


def folder(name: str) -> Change:
    return lambda here: os.makedirs(os.fsencode(here / name))


def move(name: str, target: str) -> Change:
    return lambda here: os.rename(here / name, os.fsencode(here / target))


def copy(name: str, target: str) -> Change:
    return lambda here: shutil.copyfile(here / name, here / target)


def empty(name: str) -> Change:
    return lambda here: (shutil.rmtree(here / name), (here / name).mkdir())


_WORDS = (
    "",
    " ",
    "猫",
    "a" * 5000,
    "../../etc/passwd",
    "\x1b[2Jx",
    "nan",
    "1e400",
    "\ud800",
    "{}",
    "%s",
    "hf-hub:a/b",
)
_NUMBERS = (
    -1,
    0,
    1,
    3,
    2**31,
    2**63,
    10**30,
    -0.5,
    0.1,
    1e300,
    float("nan"),
    float("inf"),
    -float("inf"),
)


def hostile_value(random: Random) -> Any:
    """A value of any JSON type that few keys accept."""
    word, number, deep = (
        random.choice(_WORDS),
        random.choice(_NUMBERS),
        json.loads("[" * 200 + "]" * 200),
    )
    items = [random.choice((*_NUMBERS, *_WORDS)) for _ in range(random.randrange(4))]
    return random.choice(
        (word, number, number, None, random.random() < 0.5, items, {word or "x": number}, deep)
    )


def paths(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The paths of everything in a JSON value, by keys and numbers."""
    items: list[tuple[Any, Any]] = list(value.items()) if isinstance(value, dict) else []
    if isinstance(value, list) and len(value) <= 40:
        items = list(enumerate(value))
    return [inner for key, item in items for inner in ((*path, key), *paths(item, (*path, key)))]


def at(value: Any, path: Sequence[Any]) -> Any:
    for key in path:
        value = value[key]
    return value


def short(value: Any) -> str:
    return text if len(text := ascii(value)) <= 40 else f"{text[:30]}... ({len(text)})"


def damage_file(
    *patterns: str, kinds: str = "flipped flipped cut cut emptied folder pipe loop"
) -> Draw:
    """Damage to a file that a glob finds; in the cache if the glob begins with that."""

    def draw(random: Random) -> tuple[str, Row]:
        pattern, kind, seed = (
            random.choice(patterns),
            random.choice(kinds.split()),
            random.randrange(2**32),
        )

        def change(here: Path) -> str:
            files = (here.parent if pattern.startswith("cache/") else here).glob(pattern)
            file = Random(seed).choice(
                sorted(path for path in files if path.is_file() and path.stat().st_size)
            )
            damage(file, kind, seed)
            return file.name

        return f"{pattern} {kind} ({seed:08x})", Row(pattern.split("/")[0], change)

    return draw


def damage_json(*names: str, without: str = "") -> Draw:
    """A change of one thing in a JSON file, and another file removed."""

    def draw(random: Random) -> tuple[str, Row]:
        name, seed = random.choice(names), random.randrange(2**32)

        def change(here: Path) -> str:
            chance, value = Random(seed), json.loads((here / name).read_text("utf-8"))
            path = chance.choice(paths(value))
            parent, key, new = at(value, path[:-1]), path[-1], hostile_value(chance)
            if (
                kind := chance.choice(("value", "value", "value", "removed", "nested"))
            ) == "removed":
                del parent[key]
            else:
                parent[key] = new if kind == "value" else {"a": parent[key]}
            (here / name).write_text(json.dumps(value), "utf-8")
            (here / without).unlink() if without else None
            return f"{'.'.join(map(str, path))} {kind} {short(new)}"

        return f"{name} changed ({seed:08x})", Row(name.split("/")[0], change)

    return draw


def arguments(*texts: str) -> dict[str, Row]:
    return {short(text): Row(text) for text in texts}


def lines(text: str) -> dict[str, Row]:
    """A row for each argument between semicolons."""
    return {line: Row(line) for line in " ".join(text.split()).split(" ; ")}


def files(name: str, contents: Mapping[str, bytes | str]) -> dict[str, Row]:
    """A row for each content of a file of this name."""
    return {label: Row(name, write(name, content)) for label, content in contents.items()}


def changes(argument: str, changes: Mapping[str, Change]) -> dict[str, Row]:
    return {label: Row(argument, change) for label, change in changes.items()}


PNG, PICKLE = png_header(1, 1), b"\x80\x04N."
FILE = write("file", "years of work")


def _recipe_value(random: Random) -> tuple[str, Row]:
    """One value of a recipe with all stages; a number accepts no truth value, text or infinity."""
    recipe: Any = json.loads(json.dumps(RECIPE | COLLECT))
    recipe["distill"] |= {
        "ema": 0.9,
        "clip_norm": 1.0,
        "augment": {"rotate": 5.0, "scale": [0.9, 1.1], "blur": 0.5},
    }
    recipe["align"] |= {"cross_lingual": 0.25, "losses": [{"kind": "embedding", "weight": 0.5}]}
    path, new = random.choice(paths(recipe)), hostile_value(random)
    old, at(recipe, path[:-1])[path[-1]] = at(recipe, path), new
    is_number = isinstance(old, int | float) and not isinstance(old, bool)
    may_succeed = not (is_number and isinstance(new, str | bool | list | dict))
    return f"{'.'.join(map(str, path))} = {short(new)}", Row(
        "", write("r.yaml", json.dumps(recipe)), b"", may_succeed
    )


def _damaged_data(random: Random) -> tuple[str, Row]:
    """Damage to a file of pairs, a table or a folder."""
    file = random.choice(
        ("train.parquet", "pairs.tar", "folder", "table.tsv", "table.csv", "table.jsonl")
    )
    label, row = damage_file("folder/*" if file == "folder" else file)(random)
    return label, Row(f"./{file}", both(row.change, _recipes_for(file)))


def _recipes_for(file: str) -> Change:
    """Recipes that collect a file, or train on it."""
    kind = {"x.tar": "tars", "pairs.tar": "tars", "folder": "folder"}.get(file, "table")
    collect = {
        "name": "gathered",
        "collect": {"sources": [{"kind": kind, "path": f"./{file}"}], "filters": []},
    }
    train = RECIPE | {
        "data": {"train": f"./{file}"},
        "align": RECIPE["align"] | {"start": "scratch"},
    }
    return both(write("c.yaml", yaml.safe_dump(collect)), write("r.yaml", yaml.safe_dump(train)))


def _parquet(**columns: list[Any]) -> Change:
    def change(here: Path) -> None:
        import pyarrow as pa
        import pyarrow.parquet as pq

        not_utf8 = pa.array([b"\xff\xfe cat"], pa.binary()).view(pa.string())
        table = {
            "key": ["a"],
            "image": [PNG],
            "zh": [["红方块"]],
            "en": [["a red square"]] if columns else not_utf8,
        }
        pq.write_table(pa.table(table | columns), here / "x.parquet")

    return change


class _Code:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, ("touch pwned",)


def _has_picture(here: Path, stdout: str) -> str:
    """The whole picture next to a damaged one has its answer all the same."""
    answer = stdout + "".join(file.read_text() for file in here.glob("embeddings.txt"))
    return "" if "0.png" in answer else "the whole picture has no answer"


def _films(random: Random) -> tuple[str, Row]:
    """A damaged film, or a frame of a whole one by a bad time."""
    if random.random() < 0.7:
        name, row = damage_file("films/x.mp4")(random)
        return name, Row("films/x.mp4#t=0.5", row.change, may_succeed=True)
    time_s = random.choice(
        [
            "1e20",
            "9" * 25,
            "9" * 300,
            "-1",
            "nan",
            "",
            "0x1",
            "1e-9",
            "３",
            "1:30",
            "0.5#t=1",
            "7e99",
        ]
    )
    return f"#t={time_s[:30]}", Row(f"films/x.mp4#t={time_s}", may_succeed=True)


def _rpc(*calls: tuple[str, dict[str, Any]]) -> bytes:
    """Requests to `mcp` as lines, after those that begin a session."""
    start = {
        "protocolVersion": "2025-06-18",
        "capabilities": {},
        "clientInfo": {"name": "x", "version": "1"},
    }
    requests = [("initialize", start), *calls]
    lines = [
        {"jsonrpc": "2.0", "id": id_, "method": name, "params": more}
        for id_, (name, more) in enumerate(requests)
    ]
    return "".join(f"{json.dumps(line)}\n" for line in lines).encode()


def _tool(name: str, **arguments: Any) -> Row:
    return Row(stdin=_rpc(("tools/call", {"name": name, "arguments": arguments})), may_succeed=True)


def _speaks_json(here: Path, stdout: str) -> str:
    lines = stdout.splitlines()
    is_json = all(line.startswith('{"jsonrpc"') for line in lines)
    return "" if is_json and lines else "stdout is not JSON-RPC"


def _keeps_foreign(here: Path, stdout: str) -> str:
    """What is no tag of dcclip's stays in a sidecar, and nothing is written elsewhere."""
    sidecar = here / "pictures/1.png.xmp"
    content = sidecar.read_bytes() if sidecar.is_file() and not sidecar.is_symlink() else b""
    if content.count(b"keep") != (2 if b"urn:other" in content else 0):
        return "foreign text is gone"
    return "a file elsewhere was made" if (here.parent / "made").exists() else ""


_SUBJECT = "<dc:subject xmlns:dc='http://purl.org/dc/elements/1.1/'{}"
_RDF = (
    "<rdf:RDF "
    "xmlns:rdf='http://www.w3.org/1999/02/22-rdf-syntax-ns#'><rdf:Description>{}</rdf:Description></rdf:RDF>"
)
_SIDECARS: dict[str, bytes | str] = {
    "empty": "",
    "text": "没有 XML",
    "NUL": b"\0" * 99,
    "cut": _RDF[:60],
    "no RDF": "<a/>",
    "two roots": "<a/><b/>",
    "entities": "<!DOCTYPE a [<!ENTITY b 'cc'>]><a>&b;</a>",
    "UTF-16": _RDF.encode("utf-16"),
    "deep": "<a>" * 20_000,
    "blanks": _RDF.format(" " * 4_000_000),
    "lines": _RDF.format("\r\n" * 400_000),
    "17 MB": _RDF.format(" " * 17_000_000),
    "CDATA": _RDF.format(f"<![CDATA[{'<dcclip:a>' * 20_000}]]>"),
    "comment": f"<!--{'<dcclip:a>' * 20_000}-->",
    "foreign": _RDF.format("<!-- <dcclip:x>keep</dcclip:x> --><d:x xmlns:d='urn:other'>keep</d:x>"),
    "BOM": "\ufeff" + _RDF,
    "list": _RDF.format(_SUBJECT.format("/>")),
    "tags": _RDF.format(
        _SUBJECT.format(f"><rdf:Bag>{'<rdf:li>狗</rdf:li>' * 20_000}</rdf:Bag></dc:subject>")
    ),
}
_SIDECAR_FILES = {
    "folder": folder("pictures/1.png.xmp"),
    "pipe": fifo("pictures/1.png.xmp"),
    "link to nothing": link("pictures/1.png.xmp", "../../made"),
    "link out": link("pictures/1.png.xmp", "/etc/hostname"),
    "disk error": link("pictures/1.png.xmp", "/proc/self/mem"),
    "loop": link("pictures/1.png.xmp", "1.png.xmp"),
}
_CALLS = {
    "long text": _tool("search", text="猫 dog " * 200_000),
    "half": _tool("search", text="\ud800"),
    "nothing": _tool("search"),
    "long label": _tool("label", photos=["1.png"], labels=["狗" * 9000]),
    "no labels": _tool("label", photos=["1.png"], labels=[]),
    "long path": _tool("show", photo="a" * 100_000),
    "NUL": _tool("show", photo="\0"),
    "outside": _tool("show", photo="../x"),
    "half a path": _tool("show", photo="\udcff"),
    "root": _tool("show", photo="/proc/self/root/etc/passwd"),
    "time": _tool("show", photo=f"x.mp4#t={'9' * 300}"),
    "no tool": _tool("nosuch"),
    "type": _tool("show", photo=[1]),
    "prompt": Row(stdin=_rpc(("prompts/get", {"name": "\ud800"})), may_succeed=True),
    "method": Row(stdin=_rpc(("no/such", {})), may_succeed=True),
    "no JSON": Row(
        stdin=_rpc() + b"{\n\xff\xfe\n[]\nnull\n" + b"[" * 100_000 + b"\n", may_succeed=True
    ),
    "cut": Row(stdin=_rpc() + _rpc()[:50], may_succeed=True),
}
_FITS = arguments(
    *(
        f"--data {data} --labels 猫,dog --max-mb 3"
        for data in ("none", "bundle", "recipe.yaml", "/dev/null", "x")
    ),
    "--data classes --max-mb 0",
    "--data classes --max-mb nan",
    "--data classes",
    "--data classes --max-ms 0.001 --time 1m",
    "--data classes --max-mb 0.001 --time 1m",
    "--data classes --max-mb 3 --time 0s",
    "--data classes --max-mb 3 --time ９",
    "--data classes --max-mb 3 --labels '/|\x00'",
    "--data pictures --max-mb 3 --labels ''",
    "--data pictures --max-mb 3",
    "--data classes --max-mb 3 --labels-file none",
    "--data classes --max-mb 3 --teacher none",
    "--data classes --max-mb 3 --out recipe.yaml",
    "--data classes --max-mb 3 --labels-file /proc/self/mem",
)
# fmt: off
_PATHS = arguments("none.x", ".", "", "x" * 300, "/dev/zero", "/dev/null", "a\nb.x", "\x1b[2J.x", "\udcff.x")
_PATHS |= {"loop": Row("loop", link("loop", "loop")), "below a loop": Row("loop/x", link("loop", "loop")),
    "below a file": Row("file/x", FILE), "dangling": Row("link.png", link("link.png", "none"))}
_PATHS["FIFO"] = Row("fifo.png", fifo("fifo.png"))
_OUTS = {label: _PATHS[label] for label in ("loop", "below a loop", "below a file", "FIFO", short("x" * 300))}
_OUTS |= {"a file": Row("file", FILE), "below /proc": Row("/proc/self/x"), "below a device": Row("/dev/null/x")}
_BOMB = ["a0: &a0 [x, x, x, x]", *(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 12))]
_RECIPES: dict[str, bytes | str] = {
    "a bomb": "\n".join(_BOMB), "80,000 keys": "".join(f"k{n}: 1\n" for n in range(80_000)),
    "UTF-16": "猫".encode("utf-16"), "GB18030": "name: 中文\n".encode("gb18030"), "a pickle": PICKLE,
    "deep": "name: " + "[" * 20_000, "NUL": "name: a\0b\n",
    "deep, closed": f"name: a\neval: {'[' * 400}{']' * 400}\n", "a deep mapping": "\n".join(" " * n + "a:"
    for n in range(1500)), "endless quote": 'name: "a\n' * 1000, "BOM": b"\xef\xbb\xbfname: a\n",
    "CR": "name: a\rseed: 1\r", "1 MB": f"name: {'a' * 10**6}\n", **{content: content for content in ("",
    "# nothing\n", "- a\n", "12\n", '{"name": "a"', "name: a\n---\nname: b\n", "name: a\nname: b\n", "name: !cat a\n",
    "name: a\neval: &e {datasets: [*e]}\n", "name: !!python/object/apply:os.system ['touch pwned']\n",
    "name: a\n~: 3\n", "a: &a {x: 1}\nname: b\n<<: *a\n", "name: a\n? [1, 2]\n: 3\n",
    "name: a\neval:\n\tdatasets: [x]\n", 'name: "\\ud800"\n', "name: a\n2026-01-01: 3", 'name: "a\\e[2Jb"\n',
    "name: ../../x\n", "format: 2\nname: a\n", "name: a\nalign: {stepz: 1}\n",
    "name: a\nalign: {steps: 1, optimizer: {lr: 1.0e+400}}\ndata: {train: x}\n", "name: a\n步数: 1\n",
    "%YAML 9.9\n---\nname: a\n")},
}
_LOSS = "from dcclip_cli.train.losses.base import Loss\nclass Mine(Loss):\n    kind: str\n"
_OWN_PARTS = {code: Row("mine:Mine", write("mine.py", code)) for code in (_LOSS, "", "Mine = 5", "class",
    "open('none')", "raise Exception('x')", "raise SystemExit(0)")}
_OWN_PARTS |= arguments("\\ud800:X", "none:X", "mine:", "dcclip_cli:X")
_SETS = lines("""= ; seed= ; seed ; .=1 ; nosuch.key=1 ; distill=1 ; distill..x=1 ; distill.steps.x=1 ; seed=true ;
"seed='12'" ; seed=1e400 ; seed=nan ; seed=猫 ; seed=2026-01-01 ; 'seed=[1, 2' ; seed=-1 ; seed=4294967296 ; seed=1.5 ;
distill.steps={ ; 'name=&a *a' ; 'name=!!python/object/apply:os.system [id]' ; name=../x ;
student.image.timm=test_resnt ; data.hold_out=24 ; student.image.timm=hf-hub:x/y ; student.image.timm= ;
student.image.weights=./none.safetensors ; student.text.heads=7 ; student.image.weights=./train.parquet ;
student.image.size=100000 ; student.embed_dim=7 ; student.text.vocabulary.size=5 ; student.text.inherit=layers ;
student.preset=XL ; distill.optimizer.lr=1e400 ; distill.optimizer.lr=-1 ; distill.steps=true ; distill.steps=1e18 ;
distill.steps=1000000000000000000 ; distill.augmentations=1000000000 ; 'distill.augment.scale=[2, 1]' ;
'distill.augment.scale=[.nan, 1]' ; distill.augment.blur=1e300 ; distill.threads=100000 ; distill.workers=100000 ;
distill.losses=[] ; distill.batch_size=1000000000000 ; distill.batch_size=99999999999999999999 ;
distill.warmup_steps=99999999999999999999 ; distill.accumulate=3 ; distill.precision=fp16 ; 'distill.losses=[{kind:
none}]' ; 'distill.losses=[{kind: embedding, weight: .nan}]' ; data.train=./none.parquet ; data.train=./recipe.yaml ;
data.train=[] ; data.images=./none ; data.texts=./train.parquet/x ; data.cache_gb=.nan ;
teacher.model=./none ; teacher.model= ; teacher.model=./recipe.yaml ; teacher.kind=none ; teacher.model=hf:../../etc ;
'variants={table.csv: {seed: 1}}' ; 'variants={a/b: {}}'""")
_PICTURES: dict[str, bytes | str] = {
    "empty": "", "text": "这不是图片", "zeros": bytes(1000), "ZIP": b"PK\x03\x04", "pickle": PICKLE, "SVG": "<svg/>",
    "PNG's head": PNG[:8], "JPEG's head": b"\xff\xd8\xff\xe0", "WebP's head": b"RIFF\x24\x00\x00\x00WEBPVP8 ",
    "no pixels": png_header(0, 0), "EPS": "%!PS-Adobe-3.0", "a bomb": png_header(60_000, 60_000),
    "100 megapixels": png_header(10_000, 10_000), "negative size": png_header(2**31 + 5, 10),
}
_NAMES = (
    "two\nlines.png", "\x1b[2Jclear.png", "a\tb.png", "a'b\"c.png", "\udcff\udcfe.png", "猫" * 80 + ".png", " .png",
    "x" * 251 + ".png", "\u202egnp.exe.png", "\u200b.png", "a\r.png", "a\\b.png", "\x7f.png", "=1+1.png",
    "-rf.png", "--labels.png", "*.png", "[a].png", "{}.png", "%s.png", "𠮷.png", ".png", "~.png", "$HOME.png",
    "a;b.png",
)
_FOLDERS = {
    "loop": link("pictures/again", "."), "dangling": link("pictures/x.png", "none"), "FIFO": fifo("pictures/x.png"),
    "d": folder("pictures/x.png"), "empty picture": write("pictures/x.png", b""),
    "depth": folder("pictures/" + "/".join("d" * 500)), "not UTF-8": move("pictures/1.png", "pictures/\udcff.png"),
    "2,000 pictures": both(*(write(f"pictures/x{n}.png", b"") for n in range(2000))),
}
_TEXTS = arguments(
    "", " ", "，,，", "\t", "\x1b[2J", "猫\n狗", "\udcff", "x" * 100_000, "猫" * 20_000, "\u200b", "a\rb", "\x85",
    "\u2028", "\x07", "\x9b31m", "\u202e", "\ufeff", "{}", "{0}", "%s", "😀", "é", "𠮷", "-", "--", "=1+1", "<s>",
    "猫,猫", ",".join(f"label {n}" for n in range(3000)),
)
_LABEL_FILES: dict[str, bytes | str] = {
    "empty": "\n \n", "GBK": "猫\n狗".encode("gbk"), "UTF-16": "猫\n狗".encode("utf-16"),
    "UTF-16 without BOM": "cat".encode("utf-16-le"), "NUL": b"cat\0dog", "a line of 10 MB": b"x" * 10**7,
    "100 MB": bytes(10**8), "1,000,000": "".join(f"cat {n}\n" for n in range(10**6)), "CRLF": "猫\r\ndog\r\n",
    "BOM": b"\xef\xbb\xbfcat\ndog\n", "escapes": "\x1b[2Jcat\n\x9b31m\n",
}
_MODELS = arguments(
    *("", " ", "pictures/0.png", "x" * 300, "x/" * 2000, "\x1b[2J", "\udcff", "a\nb", "hf: ", "none", ".", "..", "/",
    "/dev/null", "hf:"), *"hf:../../etc hf:a/b/c hf:a open_clip: open_clip:none/none open_clip:ViT-B-32".split(),
    *"hf-hub: hf-hub:../x hf-hub:a/b STARTER".split(),
    *"http://example.org/m labels.txt bundle/image.onnx hf:猫/狗 local-dir:/etc --model ms:".split(),
)
_SWAPS = ("text.onnx image.onnx", "image.onnx text.onnx", "dcclip.json tokenizer.json", "dcclip.json image.onnx")
_MODEL_FILES = changes("bundle", {swap: copy(*(f"bundle/{name}" for name in swap.split())) for swap in _SWAPS})
_MODEL_FILES |= changes("bundle", {f"{name} {short(content)}": write(f"bundle/{name}", content)
    for name in ("dcclip.json", "tokenizer.json") for content in ("[]", "null", '{"a":' * 100_000,
    "{}".encode("utf-16"))})
_MODEL_FILES |= {name: Row(name, empty(name)) for name in ("bundle", "model", "teacher")}
_MODEL_FILES |= changes("model", {"foreign tokenizer": copy("teacher/tokenizer.json", "model/tokenizer.json"),
    "foreign weights": copy("teacher/model.safetensors", "model/open_clip_model.safetensors")})
_MODEL_FILES["code"] = Row("teacher", both(move("teacher/model.safetensors", "x"), write("teacher/pytorch_model.bin",
    pickle.dumps(_Code()))))
_RECORD = json.dumps({"en": ["a red square"], "zh": ["红方块"]}).encode()
_MEMBERS = [("a.png", PNG), ("a.json", _RECORD)]
_TARS = {
    "zeros": bytes(10240), "empty": b"", "GZIP": b"\x1f\x8b" + bytes(100), "no captions": tar_bytes(_MEMBERS[:1]),
    "no pictures": tar_bytes(_MEMBERS[1:]), "cut": tar_bytes(_MEMBERS)[:700],
    "twice": tar_bytes(_MEMBERS)[:-1024] + tar_bytes(_MEMBERS), **{str(content[:20]): tar_bytes([_MEMBERS[0], (name,
    content)]) for name, content in (("a.json", b'{"en": ["\\ud800 cat"], "zh": ["\\udfff"]}'), ("a.json",
    b'{"en": [5], "zh": 7}'), ("a.json", b"null"), ("a.json", b"[" * 100_000), ("a.txt", b"\xff\xfe\xff"), ("a.txt",
    b"a\0cat"), ("a.png", b"x"))}, **{ascii(name[:20]): tar_bytes([(f"{name}.png", PNG), (f"{name}.json", _RECORD)])
    for name in ("../../a", "/etc/a", "\x1b[2J", "n" * 5000)}, "link": tar_bytes([("a.png", b""), ("a.json", b"")],
    type=tarfile.SYMTYPE, linkname="/etc/passwd"), "device": tar_bytes([("a.png", b""), ("a.json", b"")],
    type=tarfile.CHRTYPE), **{f"{key}={value[:9]}": tar_bytes(_MEMBERS, pax_headers={key: value})
    for key in ("GNU.sparse.size", "GNU.sparse.map", "size", "path") for value in ("-100", "x", "9" * 30)},
}
_TABLES = {f"{name} = {short(value)}": _parquet(**{name: [value]}) for name, values in {"image": ["cat", 5, None,
    {"data": PNG}, b"x"], "key": [5, None], "zh": [5, None, [""], []], "en": [["a\0cat"], ["\x1b[2Ja cat"],
    ["cat " * 250_000], [f"cat {n}" for n in range(1000)]]}.items() for value in values}
_TABLES |= {"not UTF-8": _parquet(), "no rows": _parquet(key=[], image=[], zh=[], en=[]), "FIFO": fifo("x.parquet"),
    "folder": folder("x.parquet"), "dangling": link("x.parquet", "none"), "empty": write("x.parquet", b""),
    "magic": write("x.parquet", b"PAR1PAR1")}
_YAML = ("", "a: " + "[" * 3000, "- a\n", "circle: 5\n", b"\xff\xfe\0", "nosuch: {zh: 猫}\n",
    "circle: !!python/name:os.system\n")
_CLASSES = {
    "dangling": link("classes/circle/b.png", "none"), "loop": link("classes/again", "."),
    "FIFO": fifo("classes/circle/b.png"), "d": folder("classes/circle/b.png"), "not UTF-8": folder("classes/\udcff"),
    "escape": folder("classes/\x1b[2J"), "empty": empty("classes"), "no picture": write("classes/circle/b.png", b"x"),
    "in no class": write("classes/b.png", b"x"), "one class": move("classes/circle", "c"),
    "no pictures": empty("classes/circle"), **{short(content): write("classes/classes.yaml", content)
    for content in _YAML},
}
_COMMANDS = lines(f"""nosuch ; --nosuch ; predict ; predict --nosuch ; predict x.png --labels ; search 猫 ; embed ;
embed pictures --text 猫 ; export --check ; eval ; eval --set a=b ; compare none x ; index none ; index recipe.yaml ;
index s3://none/x.tar ; index https://127.0.0.1:9/x.tar ; models x ; recipe nosuch ; datasets --data-root recipe.yaml
; collect recipe.yaml ; collect collect.yaml --engine none ; distill --resume ; collect collect.yaml --workers -1 ;
distill recipe.yaml --device cuda ; predict pictures --labels 猫 --json --csv ; search '' pictures ; predict pictures
--labels 猫 --template {{}} --no-template ; embed pictures --out '' ; embed pictures --out e.txt ; calibrate
recipe.yaml ;  run recipe.yaml --seeds {"9" * 5000} --check ; bench bundle
--images /dev/null --labels a,b ; bench bundle --images recipe.yaml --labels a,b ; bench none ; bench bundle --images
none --labels a,b ; calibrate none ; push none a/b --check ; trim teacher --out recipe.yaml ; trim none --out t ; new
x.yaml --teacher none ; eval --model bundle --dataset hf:a/b ; eval --model bundle --dataset nosuch ; eval --model
bundle --dataset ./train.parquet --languages fr ; export --model model --out / ; eval --model bundle --dataset
./train.parquet --shots x ; export --model model --out out --format none ; export --model model --out teacher ; export
--model model --out out --calibration none ; export --model model --out out --set a=b ; predict pictures --labels 猫
--threads 0 ; predict pictures --labels 猫 --threads 1e9 ; search 猫 pictures --top-k nan ; search 猫 pictures --top-k 0
; predict pictures --labels 猫 --device x""")
_ANY_COMMAND = "recipe.yaml collect.yaml table.tsv folder model bundle pictures train.parquet " "teacher cache classes"
_TRAINING = "recipe.yaml train.parquet teacher cache"
_PREDICT, _FIND = "predict {} --labels 猫,dog --model bundle", "search 猫 pictures --model bundle --json"
_PICTURE_COMMANDS = f"{_PREDICT} ; {_PREDICT} --csv ; {_PREDICT} --json ; embed {{}} --model bundle ; {_FIND}"
_TAG = "predict pictures/1.png --labels 猫,dog --model bundle --xmp"
_USE = "predict pictures --labels 猫,狗,cat --json -q --model {} ; embed --text 猫 --text 'a " "dog' -q --model {}"
_READ = """collect c.yaml --workers 1 -q ; eval --model bundle --dataset {} -q ; index {} ; align r.yaml ; distill
r.yaml --check ; eval --model bundle --dataset {} --task retrieval -q"""
_OUT = """distill recipe.yaml --out {} ; collect collect.yaml --out {} --workers 1 ; export --model model --out {} ;
trim teacher --out {} ; run recipe.yaml --out {} ; eval --model bundle --dataset ./train.parquet --out {} ; embed
pictures --model bundle --out {}/e.npy ; search 猫 pictures --model bundle --html {}/e.html ; calibrate classes --model
bundle --out {}/t.json"""
_LABELS = "predict pictures/0.png --model bundle --labels"
_LABELLING = f"""{_LABELS}={{}} ; {_LABELS}={{}} --json ; {_LABELS}={{}} --multi-label ; embed --model bundle
--text={{}} ; search --model bundle --html a.html -- {{}} pictures"""
_MODEL_COMMANDS = """predict pictures --labels 猫,dog --model={} ; search 猫 pictures --model={} ; eval --dataset
./train.parquet --model={} ; export --out out --model={}"""
_AGAIN = """run recipe.yaml ; align recipe.yaml ; predict pictures --labels 猫,dog ; eval recipe.yaml ; export
recipe.yaml ; models"""
_CLASSIFY = """eval --model bundle --dataset ./classes -q ; eval --model bundle --dataset ./classes --task probe -q ;
calibrate classes --model bundle"""
_CUT = "cut emptied folder"  # of caches, whose bytes are trusted: docs/explanation/design.md


def _pairs(file: str, contents: dict[str, Change]) -> dict[str, Row]:
    return {label: Row(f"./{file}", both(change, _recipes_for(file))) for label, change in contents.items()}


TABLES = {
    "recipe value": Table(110, "train.parquet teacher",
        "recipe show r.yaml ; run r.yaml --check ; distill r.yaml --check", _recipe_value),
    "recipe": Table(45, "", "recipe show {}", files("r.yaml", _RECIPES),
        fine="BOM;CR;1 MB;%YAML 9.9\n---\nname: a\n"),
    "own part": Table(20, _TRAINING, """distill recipe.yaml --check --set 'distill.losses=[{kind: "{}"}]'""",
        _OWN_PARTS),
    "--set": Table(110, _TRAINING, "distill recipe.yaml --check --set {*} ; distill recipe.yaml --set {*}", _SETS,
        fine="distill.augment.blur=1e300"),
    "path": Table(80, _ANY_COMMAND,
        f"recipe show {{}} ; run {{}} ; collect {{}} ; eval {{}} ; {_PREDICT} ; search 猫 {{}}", _PATHS, fine="'.'"),
    "--out": Table(50, _ANY_COMMAND, _OUT, _OUTS),
    "picture": Table(40, "bundle pictures", _PICTURE_COMMANDS.replace("{}", "pictures"), files("pictures/x.jpg",
        _PICTURES), True, check=_has_picture),
    "picture bytes": Table(30, "bundle pictures", _PICTURE_COMMANDS.replace("{}", "pictures"),
        damage_file("pictures/[123].png"), True, check=_has_picture),
    "picture name": Table(60, "bundle pictures", _PICTURE_COMMANDS, {short(name): Row(f"pictures/{name}",
        move("pictures/1.png", f"pictures/{name}")) for name in _NAMES}, True),
    "folder": Table(25, "bundle pictures", _PICTURE_COMMANDS, changes("pictures", _FOLDERS), True,
        check=_has_picture),
    "text": Table(80, "bundle pictures", _LABELLING, _TEXTS, True),
    "label file": Table(20, "bundle pictures", f"{_LABELS}-file {{}}", files("f", _LABEL_FILES),
        fine="CRLF;BOM;escapes"),
    "--model": Table(50, "bundle pictures train.parquet labels.txt", _MODEL_COMMANDS, _MODELS, fine="'';'.'"),
    "model bytes": Table(50, "bundle model pictures", _USE, damage_file("bundle/*.onnx", "bundle/tokenizer.json",
        "model/*.safetensors", "model/o*.json", "model/tokenizer.json")),
    "description": Table(40, "bundle model pictures", _USE, damage_json("bundle/dcclip.json", "model/dcclip.json"),
        True),
    "foreign description": Table(90, "model pictures", _USE, damage_json(*["model/open_clip_config.json"] * 3,
        "model/tokenizer.json", without="model/dcclip.json"), True),
    "teacher": Table(30, "teacher pictures", _USE, damage_json("teacher/config.json",
        "teacher/preprocessor_config.json", "teacher/tokenizer_config.json"), True),
    "model files": Table(25, "bundle model teacher pictures", _USE, _MODEL_FILES),
    "cache": Table(20, "bundle model pictures train.parquet cache", f"{EVAL} ; {SEARCH}",
        damage_file("cache/features/**/*", "cache/index/*", "cache/search/**/*", kinds=_CUT), True),
    "index": Table(10, "indexed", "index indexed -q ; index indexed --verify", damage_file("indexed/*.arrow",
        kinds=f"{_CUT} pipe"), True),
    "finished run": Table(25, f"runs pictures {_TRAINING}", _AGAIN, damage_file("runs/tiny/*/model/*",
        "runs/tiny/export/*", "runs/tiny/*.*"), True),
    "tar": Table(60, "bundle teacher train.parquet", _READ, _pairs("x.tar", {label: write("x.tar", content) for label,
        content in _TARS.items()}), True),
    "Parquet": Table(60, "bundle teacher train.parquet", _READ, _pairs("x.parquet", _TABLES), True),
    "damaged data": Table(40, "bundle teacher train.parquet pairs.tar folder table.tsv table.csv table.jsonl", _READ,
        _damaged_data, True),
    "classes": Table(35, "bundle classes", _CLASSIFY, changes("", _CLASSES), True),
    "XMP": Table(40, "bundle pictures", f"{_TAG} --threshold 0.0001 ; predict pictures --xmp --undo",
        files("pictures/1.png.xmp", _SIDECARS) | changes("", _SIDECAR_FILES), True, check=_keeps_foreign),
    "video": Table(40, "bundle films", f"{_PREDICT} ; search 猫 films --model bundle --json", _films, True),
    "mcp": Table(20, "bundle pictures", "mcp pictures --model bundle", _CALLS, True, check=_speaks_json),
    "fit": Table(20, "classes bundle pictures recipe.yaml teacher",
        "fit --teacher teacher --device cpu {*}", _FITS),
    "command line": Table(70, _ANY_COMMAND, "{*}", _COMMANDS),
}
# fmt: on
