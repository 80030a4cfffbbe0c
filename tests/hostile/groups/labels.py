"""Labels, templates, texts and `--model`: what is no label, no place for it, and no model."""

from __future__ import annotations

import os
from pathlib import Path
from random import Random

from tests.hostile.case import Case, Expect
from tests.hostile.damage import Change, damaged_bytes, fifo, short, write

_PICTURE = "pictures/red-circle.png"
_PARTS = ("bundle", _PICTURE, "labels.txt")
_BUNDLE = ("--model", "bundle")
_TEXTS = (
    *(
        "",
        " ",
        ",",
        "，,，",
        "\x1b[2J",
        "猫\n狗",
        "\t",
        "\udcff",
        "x" * 100_000,
        "猫" * 20_000,
        "\u200b",
        "\0".strip("\0"),
    ),
    *(
        "{}",
        "{0}",
        "%s",
        "😀",
        "é",
        "مرحبا",
        "𠮷",
        "-",
        "--",
        "=1+1",
        "\u202e",
        "<s>",
        "</s>",
        "<pad>",
        "\ufeff",
        "猫,猫",
    ),
    *(",".join(f"label {n}" for n in range(3000)), "a\rb", "\x85", "\u2028", "\x07", "\x9b31m"),
)
_REFUSED = ("", " ", ",", "，,，", "\t")


def labels(random: Random) -> Case:
    """`--labels` with hostile text, in each form of output."""
    text = random.choice(_TEXTS)
    form = random.choice(((), ("--json",), ("--csv",), ("--jsonl",), ("--multi-label",), ("--no-template",)))
    arguments = ["predict", _PICTURE, "--labels", text, *_BUNDLE, *form]
    expect = Expect.REFUSED if text in _REFUSED else Expect.ANY
    return Case(f"labels {short(text)} {' '.join(form)}", arguments, _PARTS, expect=expect)


def texts(random: Random) -> Case:
    """`embed --text` and `search` with hostile text."""
    text = random.choice(_TEXTS)
    if random.random() < 0.5:
        arguments = ["search", text, "pictures", *_BUNDLE, *random.choice(((), ("--json",), ("--html", "a.html")))]
        expect = Expect.REFUSED if text in ("", " ", "\t") else Expect.ANY
    else:
        arguments = ["embed", "--text", text, *_BUNDLE, "--out", random.choice(("e.npy", "e.parquet"))]
        expect = Expect.ANY
    return Case(f"{arguments[0]} {short(text)} {arguments[-1]}", arguments, _PARTS, expect=expect)


_FILES: dict[str, tuple[str, Change, Expect]] = {
    "none": ("none.txt", lambda here: None, Expect.REFUSED),
    "a folder": (".", lambda here: None, Expect.REFUSED),
    "empty": ("f", write("f", "\n \n"), Expect.REFUSED),
    "GBK": ("f", write("f", "猫\n狗".encode("gbk")), Expect.REFUSED),
    "UTF-16": ("f", write("f", "猫\n狗".encode("utf-16")), Expect.REFUSED),
    "UTF-16 without a mark": ("f", write("f", "cat\ndog".encode("utf-16-le")), Expect.REFUSED),
    "NUL": ("f", write("f", b"cat\0dog"), Expect.REFUSED),
    "a picture": (_PICTURE, lambda here: None, Expect.REFUSED),
    "/dev/zero": ("/dev/zero", lambda here: None, Expect.REFUSED),
    "/dev/null": ("/dev/null", lambda here: None, Expect.REFUSED),
    "/dev/urandom": ("/dev/urandom", lambda here: None, Expect.REFUSED),
    "a FIFO": ("fifo", fifo("fifo"), Expect.REFUSED),
    "a loop": ("loop", lambda here: (here / "loop").symlink_to("loop"), Expect.REFUSED),
    "below a file": ("labels.txt/a", lambda here: None, Expect.REFUSED),
    "300 letters": ("x" * 300, lambda here: None, Expect.REFUSED),
    "CRLF": ("f", write("f", "猫\r\ndog\r\n"), Expect.ANY),
    "a mark": ("f", write("f", b"\xef\xbb\xbfcat\ndog\n"), Expect.ANY),
    "a line of 10 MB": ("f", write("f", b"x" * 10**7), Expect.REFUSED),
    "100 MB": ("f", lambda here: os.truncate(_made(here / "f"), 10**8), Expect.REFUSED),
    "escapes": ("f", write("f", "\x1b[2Jcat\n\x9b31m\n"), Expect.ANY),
    "a million labels": ("f", write("f", "".join(f"cat {n}\n" for n in range(10**6))), Expect.REFUSED),
}


def _made(file: Path) -> Path:
    file.touch()
    return file


def file_of(random: Random) -> Case:
    """`--labels-file` and `--texts-file` that contain none."""
    called = random.choice(list(_FILES))
    given, change, expect = _FILES[called]
    if random.random() < 0.6 or called == "a million labels":  # as texts to embed they are work, not a mistake
        arguments = ["predict", _PICTURE, "--labels-file", given, *_BUNDLE]
    else:
        arguments = ["embed", "--texts-file", given, *_BUNDLE]
    return Case(f"{arguments[0]} file: {called}", arguments, _PARTS, change, expect, limit_s=20, limit_mb=800)


def damaged_file(random: Random) -> Case:
    """A labels file whose bytes are damaged."""
    seed = random.randrange(2**32)
    what, content = damaged_bytes(Random(seed), "猫\n狗\ncat\ndog\n一张红圆的图片\n".encode() * 5)
    arguments = ["predict", _PICTURE, "--labels-file", "f", *_BUNDLE]
    return Case(f"labels file: {what} ({seed:08x})", arguments, _PARTS, write("f", content))


_TEMPLATES = (
    *("", "a", "{", "}", "{0}", "{label}", "{!r}", "{:>99999999}", "{0.__class__}", "%s", "{ }", "{}}", "{{}"),
)
_ODD_TEMPLATES = (
    *(
        "{}{}",
        "{}" * 500,
        "x" * 99_999 + "{}",
        "\x1b{}",
        "{}\n",
        "\udcff{}",
        "一张{}的图",
        "{}。" * 3,
        "{{}}",
        "{}{",
        "}{}",
    ),
)


def template(random: Random) -> Case:
    """`--template` without one place for the label, or with too much around it."""
    given = random.choice((*_TEMPLATES, *_ODD_TEMPLATES))
    arguments = ["predict", _PICTURE, "--labels", "猫,dog", "--template", given, *_BUNDLE]
    is_refused = "{}" not in given
    return Case(f"template {short(given)}", arguments, _PARTS, expect=Expect.REFUSED if is_refused else Expect.ANY)


_MODELS = (
    *(
        "",
        " ",
        "none",
        ".",
        "..",
        "/",
        "/dev/null",
        _PICTURE,
        "x" * 300,
        "x/" * 2000,
        "hf:",
        "hf:../../etc",
        "hf:a/b/c",
    ),
    *(
        "hf:a",
        "hf:/",
        "open_clip:",
        "open_clip:none/none",
        "open_clip:ViT-B-32",
        "hf-hub:",
        "hf-hub:../x",
        "hf-hub:a/b",
    ),
    *(
        "starter/",
        "STARTER",
        "http://example.org/m",
        "labels.txt",
        "bundle/image.onnx",
        "\x1b[2J",
        "\udcff",
        "hf:猫/狗",
    ),
    *(
        "local-dir:/etc",
        "hf:pictures",
        "loop",
        "fifo",
        "bundle/..",
        "--model",
        "hf:x@y",
        "a\nb",
        "~",
        "open_clip:/",
        "hf: ",
    ),
)


def model(random: Random) -> Case:
    """`--model` that names none."""
    given = random.choice(_MODELS)
    command = random.choice(
        (
            ["predict", _PICTURE, "--labels", "猫,dog"],
            ["embed", _PICTURE],
            ["search", "猫", "pictures"],
            ["eval", "--dataset", "./train.parquet"],
            ["export", "--out", "out"],
        )
    )

    def change(here: Path) -> None:
        (here / "loop").symlink_to("loop")
        os.mkfifo(here / "fifo")

    expect = Expect.ANY if given in ("starter/", "bundle/..", ".", "") else Expect.REFUSED
    parts = (*_PARTS, "train.parquet")
    return Case(f"{command[0]} --model {short(given)}", [*command, "--model", given], parts, change, expect)


_NUMBERS = ("0", "-1", "1", "99999999999999999999", "1e9", "nan", "inf", "3000", "100000", "x", "", "0x10", "１", "1.5")


def number(random: Random) -> Case:
    """Options that are numbers."""
    option = random.choice(("--threads", "--threads", "--top-k", "--threshold", "--device"))
    given = random.choice(_NUMBERS)
    command = random.choice((["predict", _PICTURE, "--labels", "猫,dog"], ["search", "猫", "pictures"]))
    if command[0] == "search" and option == "--threshold":
        option = "--top-k"
    good = {"--threads": ("1",), "--top-k": ("1", "3000", "100000", "99999999999999999999", "１"), "--threshold": None}
    allowed = good.get(option, ())
    expect = Expect.ANY if allowed is None or given in (*allowed, "１") else Expect.REFUSED
    arguments = [*command, *_BUNDLE, option, given]
    return Case(f"{command[0]} {option} {given}", arguments, _PARTS, expect=expect, limit_s=20)


RULES = (labels, labels, texts, file_of, damaged_file, template, model, model, number)
