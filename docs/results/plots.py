"""The plots of the results pages, as SVG files that follow the viewer's light or dark mode."""

import hashlib
import io
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

from docs.results.records import (
    FOLDER,
    IMAGES,
    LANGUAGES,
    QUESTIONS,
    SENTENCES,
    TEACHERS,
    Record,
    mean,
    only,
    records,
    select,
)

IMAGES_FOLDER = FOLDER.parent / "images"

# In the light, and in the dark: background, text, lines; then English and Chinese, which read on
# both.
LIGHT_DARK = {"#ffffff": "#0d1117", "#1f2328": "#e6edf3", "#d0d7de": "#3d444d"}
COLOURS = {"en": "#2f81f7", "zh": "#e8710a"}
MARKERS = {"en": "o", "zh": "s"}
_STYLE: dict[str, Any] = {
    "svg.fonttype": "none",  # text stays text: the viewer's fonts show Chinese
    "svg.hashsalt": "dcclip",
    "font.family": "sans-serif",
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.grid": True,
    "grid.color": "#d0d7de",
    "axes.edgecolor": "#d0d7de",
    "figure.facecolor": "#ffffff",
    "axes.facecolor": "#ffffff",
    "legend.facecolor": "#ffffff",
    "legend.edgecolor": "#ffffff",
    "text.color": "#1f2328",
    "axes.labelcolor": "#1f2328",
    "xtick.color": "#1f2328",
    "ytick.color": "#1f2328",
    "savefig.facecolor": "#ffffff",
}

LABELS = {
    "en": "English",
    "zh": "Chinese",
    "top-1": "top-1 on twemoji, %",
    "parameters": "parameters, millions",
    "teacher": "teacher",
    "student": "student",
    "tenth": "smaller student",
    "contrast": "without a teacher",
    "int8": "student, int8",
}
MODELS = {
    "teacher": "demo teacher",
    "student": "student",
    "tenth": "student at a tenth",
    "contrast": "contrast alone",
}

NAMED_ABOVE = {"student", "int8", "teacher"}

# A name for a point, then where that is on the x axis, and top-1 in English and Chinese.
Point = tuple[str, float, list[float]]


def svg(
    size: tuple[float, float], panels: int, draw: Callable[[Any, Any], None], sharey: bool = True
) -> str:
    """The figure that `draw(figure, axes)` makes, dark where the viewer prefers dark."""
    from matplotlib import rc_context
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    with rc_context(_STYLE), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph")  # missing here, but not in the viewer's fonts
        figure = Figure(size, layout="constrained")
        FigureCanvasSVG(figure)
        draw(figure, figure.subplots(1, panels, sharey=sharey, squeeze=False)[0])
        stream = io.StringIO()
        figure.savefig(stream, format="svg", metadata={"Date": None, "Creator": None})
    rules = "".join(
        f'[style*="{part}: {light}"]{{{part}:{dark}!important}}'
        for light, dark in LIGHT_DARK.items()
        for part in ("fill", "stroke")
    )
    style = f"<style>@media (prefers-color-scheme: dark) {{{rules}}}</style>\n </defs>"
    return stream.getvalue().replace("</defs>", style, 1)


def scatter(axes: Any, points: list[Point]) -> None:
    """A point for each language, and over or under both their name."""
    for place, language in enumerate(LANGUAGES):
        axes.scatter(
            [x for _, x, _ in points],
            [values[place] for _, _, values in points],
            color=COLOURS[language],
            marker=MARKERS[language],
            label=LABELS[language],
            zorder=3,
        )
    for name, x, values in points:
        above = name in NAMED_ABOVE
        axes.annotate(
            LABELS.get(name, name),
            (x, max(values) if above else min(values)),
            xytext=(0, 8 if above else -8),
            textcoords="offset points",
            ha="center",
            va="bottom" if above else "top",
        )


def logarithmic(axes: Any, ticks: list[float], limits: tuple[float, float]) -> None:
    """A logarithmic x axis with these ticks, written as plain numbers."""
    axes.set_xscale("log")
    axes.set_xlim(*limits)
    axes.set_xticks(ticks, [f"{one:g}" for one in ticks])
    axes.minorticks_off()


def means(data: str, names: list[str]) -> list[Point]:
    """Mean top-1 of each model on one test set, by its parameters in millions."""
    return [
        (
            name,
            only(model=MODELS[name], metric="parameters"),
            [mean(data, language, MODELS[name]) for language in LANGUAGES],
        )
        for name in names
    ]


def one_run(data: str, file: str = "emoji", **where: str) -> list[float]:
    """Top-1 of one run in both languages."""
    return [
        only(file, metric="top-1", data=data, language=language, **where) for language in LANGUAGES
    ]


def headline() -> str:
    """Top-1 on twemoji against parameters."""

    def draw(figure: Any, panels: Any) -> None:
        (axes,) = panels
        scatter(axes, means("twemoji", list(MODELS)))
        logarithmic(axes, [0.5, 1, 2, 5], (0.3, 9))
        axes.set(
            xlabel=LABELS["parameters"], ylabel=LABELS["top-1"], ylim=(58, 75), yticks=[60, 65, 70]
        )
        axes.legend(loc="lower right")

    return svg((6, 3.2), 1, draw)


def latency() -> str:
    """Top-1 on twemoji against the time for one image."""
    times = {
        one["model"] + one["setup"]: float(one["value"])
        for one in select(records("emoji"), metric="one image")
    }
    values = {name: values for name, _, values in means("twemoji", ["teacher", "student"])}
    points: list[Point] = [
        ("teacher", times["demo teacher"], values["teacher"]),
        ("student", times["student"], values["student"]),
        ("int8", times["studentint8"], one_run("twemoji", model="student", setup="int8")),
    ]

    def draw(figure: Any, panels: Any) -> None:
        (axes,) = panels
        scatter(axes, points)
        logarithmic(axes, [0.1, 0.3, 1, 3], (0.05, 11))
        axes.set(
            xlabel="time for one image, ms",
            ylabel=LABELS["top-1"],
            ylim=(58, 75),
            yticks=[60, 65, 70],
        )
        axes.legend(loc="lower right")

    return svg((6, 3.2), 1, draw)


def size() -> str:
    """Top-1 on each test set against parameters."""

    def draw(figure: Any, panels: Any) -> None:
        for data, axes in zip(IMAGES, panels, strict=True):
            scatter(axes, means(data, list(MODELS)))
            logarithmic(axes, [0.5, 1, 2, 5], (0.22, 11))
            axes.set_title(data)
            axes.set_xlabel(LABELS["parameters"])
            axes.margins(y=0.2)
        panels[0].set_ylabel("top-1, %")
        figure.legend(*panels[0].get_legend_handles_labels(), loc="outside upper right", ncols=2)

    return svg((10, 3.6), 3, draw, sharey=False)


def time() -> str:
    """Top-1 on each test set against the minutes that one run took."""
    epyc = {"machine": "fast (AMD EPYC)"}
    runs: dict[str, tuple[str, dict[str, str]]] = {
        "quick start": ("quickstart", {"setup": "", "seeds": "0", **epyc}),
        "student": ("emoji", {"model": "student", "setup": "run timed, precision: auto", **epyc}),
        "no teacher,\none thread": (
            "emoji",
            {"model": "contrast alone", "setup": "2,650 steps", "seeds": "1"},
        ),
        "teacher": ("emoji", {"model": "demo teacher"}),
    }

    def draw(figure: Any, panels: Any) -> None:
        for data, axes in zip(IMAGES, panels, strict=True):
            points: list[Point] = []
            for name, (file, where) in runs.items():
                minutes = only(file, metric="time, all stages", **where) / 60
                points.append((name, minutes, one_run(data, file, **where)))
            scatter(axes, points)
            axes.set_title(data)
            axes.set_xlabel("training, minutes")
            axes.set_xlim(-1.5, 19)
            axes.margins(y=0.25)
        panels[0].set_ylabel("top-1, %")
        figure.legend(*panels[0].get_legend_handles_labels(), loc="outside upper right", ncols=2)

    return svg((10, 3.6), 3, draw, sharey=False)


def english_chinese() -> str:
    """Chinese top-1 against English top-1: a point for each run and test set."""
    runs = [
        one for name in ("emoji", "quickstart") for one in records(name) if one["metric"] == "top-1"
    ]
    colours = ("#2f81f7", "#e8710a", "#3fb950")

    def draw(figure: Any, panels: Any) -> None:
        (axes,) = panels
        axes.axline((0, 0), slope=1, color="#d0d7de", zorder=1)
        for data, marker, colour in zip(IMAGES, "os^", colours, strict=True):
            english, chinese = (
                [float(one["value"]) for one in select(runs, data=data, language=language)]
                for language in LANGUAGES
            )
            axes.scatter(
                english, chinese, color=colour, marker=marker, s=22, alpha=0.8, label=data, zorder=3
            )
        axes.set(
            xlabel="English top-1, %",
            ylabel="Chinese top-1, %",
            xlim=(0, 80),
            ylim=(0, 80),
            aspect="equal",
        )
        axes.legend(loc="upper left")

    return svg((4.5, 4.3), 1, draw)


def ablation() -> str:
    """Top-1 of each variant on each test set, with its standard deviation over the seeds."""
    rows = records("ablation")
    names = list(dict.fromkeys(one["model"] for one in rows))

    def draw(figure: Any, panels: Any) -> None:
        for data, axes in zip(IMAGES, panels, strict=True):
            bars(axes, data, {name: select(rows, data=data, model=name) for name in names})
        figure.legend(*panels[0].get_legend_handles_labels(), loc="outside upper right", ncols=2)

    return svg((10, 6), 3, draw)


def questions() -> str:
    """The paper's questions: its variants on drawings, with two teachers on photographs, and on
    sentences.
    """
    drawings, photographs = select(records("ablation"), data="twemoji"), records("photographs")
    panels_of = {"drawings": {name: select(drawings, model=own) for name, own in QUESTIONS.items()}}
    for teacher in TEACHERS:
        rows = select(photographs, setup=teacher)
        panels_of[f"photographs,\n{teacher}"] = {
            name: select(rows, model=name) for name in QUESTIONS
        }
    sentences = select(photographs, setup=SENTENCES)
    panels_of["sentences"] = {name: select(sentences, model=name) for name in QUESTIONS}

    def draw(figure: Any, panels: Any) -> None:
        for (title, groups), axes in zip(panels_of.items(), panels, strict=True):
            bars(axes, title, groups, "mean recall" if title == "sentences" else "top-1")
        figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower right", ncols=2)

    return svg((12, 3.6), 4, draw)


def bars(axes: Any, title: str, groups: dict[str, list[Record]], metric: str = "top-1") -> None:
    """The metric of each group in each language, a bar each with its standard deviation; the first
    group on top.
    """
    for place, language in enumerate(LANGUAGES):
        found = [select(rows, language=language) for rows in groups.values()]
        axes.barh(
            [number + 0.4 * place for number, rows in enumerate(found) if rows],
            [float(one["value"]) for rows in found for one in select(rows, metric=metric)],
            xerr=[
                float(one["value"]) for rows in found for one in select(rows, metric=f"{metric} sd")
            ],
            error_kw={"ecolor": "#1f2328", "elinewidth": 0.8},
            height=0.38,
            color=COLOURS[language],
            label=LABELS[language],
        )
    axes.set_title(title)
    axes.set_xlabel(f"{metric}, %")
    axes.grid(visible=False, axis="y")
    axes.set_yticks([number + 0.2 for number in range(len(groups))], list(groups))
    axes.set_ylim(len(groups) - 0.4, -0.4)


PLOTS: dict[str, Callable[[], str]] = {
    "headline.svg": headline,
    "latency.svg": latency,
    "size.svg": size,
    "time.svg": time,
    "english-chinese.svg": english_chinese,
    "ablation.svg": ablation,
    "questions.svg": questions,
}


def digest() -> str:
    """Changes with the code and the numbers of the plots."""
    csvs = (FOLDER / f"{name}.csv" for name in ("emoji", "quickstart", "ablation", "photographs"))
    files = [Path(__file__), FOLDER / "records.py", *csvs]
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()


def drawn() -> dict[Path, str]:
    """Each plot's file and content. The digest in it tells whether it is current, whatever
    matplotlib drew it.
    """
    return {IMAGES_FOLDER / name: f"{draw()}<!-- {digest()} -->\n" for name, draw in PLOTS.items()}
