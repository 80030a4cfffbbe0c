"""The result of a search as fit.html, with the frontier of quality, size and latency as an SVG
chart.
"""

from __future__ import annotations

from base64 import b64encode
from typing import TYPE_CHECKING

from dcclip_cli.core.errors import Message, translated
from dcclip_cli.core.files import atomic_write
from dcclip_cli.core.html import COLOURS, svg_chart, write_page
from dcclip_cli.eval.result import METRIC_NAMES
from dcclip_cli.fitting.search import HELD_OUT, FitResult

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def table(result: FitResult) -> tuple[list[str], list[list[str]]]:
    """The head and the rows of the candidates, those of the last round first; quality after each
    training.
    """
    rounds = max((len(row["quality"]) for row in result.candidates), default=0)
    head = [
        Message("student"),
        "MB",
        "ms",
        *(Message("round {}", number + 1) for number in range(rounds)),
    ]
    rows = []
    for row in sorted(
        result.candidates, key=lambda row: (len(row["quality"]), row["quality"][-1:]), reverse=True
    ):
        cells = [f"{100 * value:.1f} %" for value in row["quality"]] + [""] * (
            rounds - len(row["quality"])
        )
        rows.append([row["name"], f"{row['cost'].mb:.2f}", f"{row['cost'].ms:.2f}", *cells])
    return head, rows


def summary(result: FitResult) -> Message:
    """The best student, its cost and its quality in a sentence."""
    metric = METRIC_NAMES.get(result.metric, result.metric)
    values = (
        result.name,
        result.cost.mb,
        result.cost.ms,
        result.budget.threads,
        result.quality,
        metric,
    )
    return Message(
        "{}: {:.2f} MB, {:.2f} ms per image (threads: {}), {:.1%} {} on held-out samples", *values
    )


def write_report(result: FitResult) -> None:
    """Write fit.html and frontier.svg into the folder of the search."""

    def draw(axes: Axes) -> None:
        """Quality over size of all that was trained, larger points for longer latencies; the
        result in colour.
        """
        points = [
            (row["cost"], row["quality"][-1], row["name"])
            for row in result.candidates
            if row["quality"]
        ]
        for number, (cost, quality, name) in enumerate(
            [(result.cost, result.quality, result.name), *points]
        ):
            place = (cost.mb, 100 * quality)
            colour = COLOURS[number == 0]
            axes.scatter(*place, s=30 * (1 + cost.ms), color=colour, alpha=0.7, linewidths=0)
            axes.annotate(
                f"{name}, {cost.ms:.1f} ms", place, (6, 3), textcoords="offset points", fontsize=7
            )
        axes.axvline(
            result.budget.max_mb or result.cost.mb, color="#999999", linestyle="--", linewidth=1
        )
        axes.margins(x=0.25, y=0.15)
        axes.grid(True, alpha=0.3)
        axes.set(
            xlabel=translated(Message("MB of the export")),
            ylabel=translated(Message("quality, per cent")),
        )

    chart = svg_chart((7, 4), draw)
    atomic_write(result.folder / "frontier.svg", chart)
    head, rows = table(result)
    url = f"data:image/svg+xml;base64,{b64encode(chart).decode()}" if chart else ""
    values = {
        "result": result,
        "summary": summary(result),
        "held_out": f"{HELD_OUT}/report.html",
        "chart": url,
        "head": head,
        "rows": rows,
    }
    write_page(result.folder / "fit.html", __package__, "fit.html.j2", **values)
