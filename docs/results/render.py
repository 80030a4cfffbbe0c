"""Writes the tables of the results pages, and the plots, from this folder's CSV files and the
leaderboard's results.

    python -m docs.results.render

A table is between `<!-- table: NAME -->` and `<!-- end -->`. tests/test_docs.py fails while a page
or a plot is not what this script makes.
"""

import re
from collections.abc import Iterable
from pathlib import Path

from docs.results import plots, standings
from docs.results.records import (
    IMAGES,
    KNOWN,
    LANGUAGES,
    SENTENCES,
    TEACHERS,
    UNSEEN,
    Record,
    mean,
    over_seeds,
    records,
    runs,
    select,
    spread,
)

PAGES = sorted(Path(__file__).parent.glob("*.md"))
_TABLE = re.compile(r"(<!-- table: (?P<name>[\w.-]+) -->\n).*?(<!-- end -->)", re.S)

TEACHER, STUDENT, TENTH, CONTRAST = (
    "demo teacher",
    "student",
    "student at a tenth",
    "contrast alone",
)
CLIP_KD, PIXELS = "CLIP-KD's mix", "nearest training image, 16 x 16 pixels"

# A column of a table: its title, then the metric and the data set that it shows.
Column = tuple[str, str, str]
SETS: tuple[Column, ...] = tuple((name, "top-1", name) for name in IMAGES)
TIMES: tuple[Column, ...] = (
    ("in all", "time, all stages", ""),
    ("teacher's features", "time, teacher's features", ""),
    ("stage 1", "time, stage 1", ""),
    ("stage 2", "time, stage 2", ""),
)


def markdown(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """A Markdown table."""
    head = list(head)
    lines = [head, ["---"] * len(head), *rows]
    return "".join(
        "|" + "|".join(f" {cell} " if cell else " " for cell in cells) + "|\n" for cells in lines
    )


def shown(record: Record, found: list[Record]) -> str:
    """A value with its unit, its standard deviation or its range, as a cell shows it."""
    value, unit = record["value"], record["unit"]
    if unit == "s" and "." not in value and int(value) >= 60:
        return f"{int(value) // 60} min {int(value) % 60} s"
    if value.isdigit() and len(value) > 3:
        value = f"{int(value):,}"
    companions = {
        one["metric"].removeprefix(record["metric"]): one["value"]
        for one in found
        if one["data"] == record["data"] and one["language"] == record["language"]
    }
    if " sd" in companions:
        value += " ± " + companions[" sd"]
    if ", lowest" in companions:
        value += f" ({companions[', lowest']} to {companions[', highest']})"
    return f"{value} {unit}" if unit in {"M", "MB", "s", "ms"} else value


def pivot(found: Iterable[Record], by: dict[str, str], columns: Iterable[Column]) -> str:
    """A row for each combination of the `by` columns of the file, English / Chinese in each cell."""
    groups: dict[tuple[str, ...], list[Record]] = {}
    for record in found:
        groups.setdefault(tuple(record[name] for name in by.values()), []).append(record)
    columns = [
        one
        for one in columns
        if any(select(group, metric=one[1], data=one[2]) for group in groups.values())
    ]
    rows = [
        [
            *key,
            *(
                " / ".join(shown(one, group) for one in select(group, metric=metric, data=data))
                for _, metric, data in columns
            ),
        ]
        for key, group in groups.items()
        if any(select(group, metric=metric, data=data) for _, metric, data in columns)
    ]
    return markdown([*by, *(title for title, _, _ in columns)], rows)


def mean_cell(data: str, model: str, of_teacher: bool = False, deviation: bool = False) -> str:
    """A model's mean top-1 as `en / zh`, with its standard deviation over the runs, or its share
    of the teacher's.
    """
    if not runs(data, "en", model):
        return ""
    if deviation:
        return " / ".join(spread(runs(data, language, model)) for language in LANGUAGES)
    means = [mean(data, language, model) for language in LANGUAGES]
    if of_teacher:
        shares = [
            100 * one / mean(data, language, TEACHER)
            for one, language in zip(means, LANGUAGES, strict=True)
        ]
        return " / ".join(f"{one:.0f}" for one in shares) + " %"
    return " / ".join(f"{one:.1f}" for one in means)


def emoji(models: Iterable[str], data: Iterable[str], head: Iterable[str]) -> str:
    """A row for each model, the mean over its runs, and one for what a student has of the teacher."""
    data = list(data)
    rows = []
    for model in models:
        rows.append([model, *(mean_cell(name, model, deviation=True) for name in data)])
        if model in (STUDENT, TENTH):
            rows.append(
                [
                    f"{model}, of the teacher",
                    *(mean_cell(name, model, of_teacher=True) for name in data),
                ]
            )
    return markdown(["model", *head], rows)


def headline() -> str:
    """The table of the index: teacher, both students, and the student without a teacher."""
    rows = []
    for model, label, parameters, share in (
        (TEACHER, "teacher", "5.41 M", ""),
        (STUDENT, "student (6 runs)", "1.35 M", "25 %"),
        (TENTH, "smaller student (3 runs)", "0.53 M", "9.9 %"),
        (CONTRAST, "student without a teacher (3 runs)", "1.35 M", ""),
    ):
        rows.append([label, parameters, *(mean_cell(data, model) for data in IMAGES)])
        if share:
            cells = {data: mean_cell(data, model, of_teacher=True) for data in IMAGES}
            shares = [cell if data == "unseen" else f"**{cell}**" for data, cell in cells.items()]
            rows.append(["share of the teacher", share, *shares])
    return markdown(["model", "parameters", "twemoji", "emojione2", "unseen classes"], rows)


def tables() -> dict[str, str]:
    """Every table by its name."""
    peers, formats, speed = records("losses"), records("formats"), records("speed")
    sets = "twemoji, emojione2 and unseen"
    model, setup = {"model": "model"}, {"through": "setup"}
    full_sets, weights = records("elevater"), {**model, "weights": "setup"}
    size = (
        ("weights", "weights", ""),
        ("one image", "one image", ""),
        ("one text", "one text", ""),
    )
    return {
        "emoji": emoji(
            (TEACHER, STUDENT, TENTH, CLIP_KD, CONTRAST, PIXELS),
            (*IMAGES, KNOWN, UNSEEN),
            (*IMAGES, "known classes, 4,103 drawings", "unseen, 1,809 drawings"),
        ),
        "emoji-size": pivot(records("emoji"), {"model": "model", "form": "setup"}, size),
        "headline": headline(),
        "quickstart": pivot(
            [one for one in records("quickstart") if one["setup"] in {"", "next to other work"}],
            {"machine": "machine", "seed": "seeds"},
            (
                *TIMES[:1],
                *SETS,
                *((f"{name}, % of the teacher", "share of the teacher", name) for name in IMAGES),
                ("int8, same best label, %", "same best label, int8", sets),
            ),
        ),
        "losses-long": pivot(select(peers, setup="2450 steps of 128"), {"losses": "model"}, SETS),
        "paper": pivot(records("paper"), {"what is trained": "model", "weights": "setup"}, SETS),
        "formats": pivot(
            formats,
            {"format": "model", "precision": "setup"},
            (
                ("all files", "size, all files", ""),
                ("image difference", "largest difference, image", "validation"),
                ("text difference", "largest difference, text", "validation"),
                ("same best text, % of 128", "same best text", "validation"),
                ("top-1", "top-1", sets),
            ),
        ),
        "runtimes": pivot(
            formats,
            {"format": "model", "precision": "setup"},
            (
                ("all files", "size, all files", "starter"),
                ("lowest cosine", "lowest cosine of the documented code", "photographs"),
                ("same best label, %", "same best label", "photographs"),
            ),
        ),
        "speed-peers": pivot(
            select(speed, setup="int8"),
            model,
            (
                ("one image", "CPU time, one image", ""),
                ("one text", "CPU time, one text", ""),
                ("together", "CPU time, image and text", ""),
                ("size", "size", ""),
                ("times as slow as S", "preset S is faster", ""),
                ("times as large", "preset S is smaller", ""),
            ),
        ),
        "speed-start": pivot(
            speed,
            setup,
            (
                ("wall time", "dcclip predict, wall time", ""),
                ("CPU time", "dcclip predict, CPU time", ""),
                ("peak memory", "dcclip predict, peak memory", ""),
                ("torch imported", "dcclip predict, torch imported", ""),
            ),
        ),
        "speed-latency": pivot(
            speed,
            setup,
            [
                (name, name, "")
                for name in (
                    "size of the weights",
                    "load time",
                    "one image, 1 thread",
                    "one text, 1 thread",
                    "one image, 2 threads",
                    "one text, 2 threads",
                    "peak memory",
                )
            ],
        ),
        "collect-speed": pivot(
            records("collect"),
            {"program": "model", "what it does": "setup"},
            (
                ("pairs/s", "pairs per second", COLLECTED),
                ("pairs per CPU second", "pairs per CPU second", COLLECTED),
                ("`collect` / it, by time", "collect / it, by time", COLLECTED),
                ("by CPU time", "collect / it, by CPU time", COLLECTED),
            ),
        ),
        "photographs-questions": pivot(
            [
                one
                for one in records("photographs")
                if one["setup"] in TEACHERS or one["setup"].startswith("none")
            ],
            {"teacher": "setup", "what is trained": "model"},
            (("top-1", "top-1", CALTECH), ("mean over the classes", "mean per class", CALTECH)),
        ),
        "sentences-questions": pivot(
            select(records("photographs"), setup=SENTENCES),
            {"what is trained": "model"},
            RECALL,
        ),
        "sentences-languages": pivot(
            select(records("photographs"), setup="stage 2 on sentences"),
            {"pairs of stage 2": "model"},
            RECALL,
        ),
        "sentences-texts": pivot(
            select(records("photographs"), setup="stage 1 on sentences"),
            {"data of stage 1": "model"},
            RECALL,
        ),
        "photographs-third": pivot(
            over_seeds(select(records("photographs"), setup="starter of 29 November")),
            {"model": "model"},
            (
                ("parameters", "parameters", CALTECH),
                ("top-1", "top-1", CALTECH),
                ("mean over the classes", "mean per class", CALTECH),
                ("mean over the classes, int8", "mean per class, int8", CALTECH),
            ),
        ),
        "elevater": pivot(
            full_sets, {**weights, "language": "language"}, elevater_columns("top-1")
        ),
        "elevater-students": pivot(
            over_seeds(
                row for row in full_sets if row["metric"] in ("top-1", "share of the teacher")
            ),
            weights,
            [
                (f"{title}, {label}", metric, f"{data}, sample of {images:,}")
                for metric, label in (
                    ("top-1", "top-1"),
                    ("share of the teacher", "% of the teacher"),
                )
                for (title, _, data), images in zip(
                    elevater_columns(""), (2000, 1000, 1000, 2000), strict=True
                )
            ],
        ),
        "leaderboard": markdown(*standings.standings("en")),
        "leaderboard-zh": markdown(*standings.standings("zh")),
        "evaluate-speed": evaluate("plain"),
    }


COLLECTED = "20,000 pairs of 256 px"
CALTECH = "Caltech-101"
RECALL: tuple[Column, ...] = (
    ("mean recall", "mean recall", "Flickr8k"),
    ("Chinese and English", "mean recall, zh and en", "Flickr8k"),
)


def elevater_columns(metric: str) -> tuple[Column, ...]:
    """A column for each of the four test sets that are measured in full."""
    titles = {"cifar10": "CIFAR-10", "mnist": "MNIST", "fer2013": "FER-2013", "gtsrb": "GTSRB"}
    return tuple((title, metric, data) for data, title in titles.items())


def evaluate(machine: str) -> str:
    """Images per second of `dcclip eval` and of CLIP_benchmark on machines of a class."""
    rows = [
        one | {"images": one["data"], "data": ""}
        for one in records("evaluate")
        if one["machine"].startswith(machine)
    ]
    return pivot(
        rows,
        {"model": "model", "precision": "setup", "images": "images"},
        (
            ("rounds", "rounds", ""),
            ("CLIP_benchmark, images/s", "CLIP_benchmark, images per second", ""),
            ("CPU time each", "CLIP_benchmark, CPU time of an image", ""),
            ("`dcclip eval`, images/s", "dcclip eval, images per second", ""),
            ("CPU time each", "dcclip eval, CPU time of an image", ""),
            ("ratio by time", "ratio by time", ""),
            ("ratio by CPU time", "ratio by CPU time", ""),
        ),
    )


def page(text: str) -> str:
    """The page with its tables as the CSV files have them."""
    made = tables()
    return _TABLE.sub(lambda match: match[1] + made[match["name"]] + match[3], text)


def main() -> None:
    for file in PAGES:
        file.write_text(page(file.read_text("utf-8")), encoding="utf-8")
    standings.SCHEMA.write_text(standings.schema(), encoding="utf-8")
    for file, svg in plots.drawn().items():
        file.write_text(svg, encoding="utf-8")


if __name__ == "__main__":
    main()
