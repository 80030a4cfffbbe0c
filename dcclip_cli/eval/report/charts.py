"""How are figures drawn? As SVG files by matplotlib, with their texts as texts, so that any language shows."""

from __future__ import annotations

import base64
import io
import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from dcclip_cli.eval.result import EvalResult
from dcclip_cli.eval.tables import base_name, table

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Colour-blind safe (Okabe and Ito), a model each; English lies in full colour, Chinese hatched beside it.
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#8a8a8a")
_STYLE: dict[str, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "dcclip",  # ids that depend on nothing but the drawing
    "font.family": "sans-serif",
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "hatch.linewidth": 0.6,
}


def overview(results: Sequence[EvalResult]) -> str:
    """Bars of every data set's figure for each model and language, as a data URL."""
    found = table(results)
    columns = [(at, column) for at, column in enumerate(found.columns) if column.language]
    models = list(dict.fromkeys(column.model for _, column in columns))

    def draw(axes: Axes) -> None:
        height = 0.8 / len(columns)
        for number, (at, column) in enumerate(columns):
            colour = _COLOURS[models.index(column.model) % len(_COLOURS)]
            places = [row + height * number for row in range(len(found.rows))]
            values = [100 * (row.values[at] or 0) for row in found.rows]
            hatch = "////" if column.language == "zh" else None
            label = f"{column.model} {column.language}"
            axes.barh(
                places, values, height * 0.92, color=colour, alpha=0.55 if hatch else 1, hatch=hatch, edgecolor="white",
                linewidth=0, label=label,
            )  # fmt: skip
        middle = 0.4 - height / 2
        axes.set_yticks([row + middle for row in range(len(found.rows))], [row.name for row in found.rows])
        axes.invert_yaxis()
        axes.set_xlim(0, 100)
        axes.set_xlabel("per cent, each data set's own metric")
        axes.xaxis.grid(True, alpha=0.3)
        axes.set_axisbelow(True)
        axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1), ncols=2, frameon=False)

    return _svg((8.5, 1.4 + 0.26 * len(found.rows) * max(1, len(columns) / 2)), draw)


def probes(results: Sequence[EvalResult]) -> str | None:
    """Curves of what probes reach with more images a class, as a data URL; None where there are none."""
    curves: dict[tuple[str, str], list[tuple[str, float, float]]] = {}
    for result in results:
        if result.task.startswith("linear probe"):
            name = base_name(result).partition(",")[0]
            shots = result.task.partition(", ")[2].removesuffix(" shots") or "all"
            spread = result.metrics.get(f"{result.metric}_std", 0.0)
            curves.setdefault((result.model, name), []).append((shots, result.value, spread))
    if not curves:
        return None

    def draw(axes: Axes) -> None:
        for number, ((model, name), points) in enumerate(curves.items()):
            axes.errorbar(
                [shots for shots, _, _ in points], [100 * value for _, value, _ in points],
                [100 * spread for _, _, spread in points],
                marker="o", capsize=3, color=_COLOURS[number % len(_COLOURS)], label=f"{model}, {name}",
            )  # fmt: skip
        axes.set_xlabel("training images a class")
        axes.set_ylabel("per cent")
        axes.grid(True, alpha=0.3)
        axes.legend(frameon=False)

    return _svg((8.5, 4), draw)


def _svg(size: tuple[float, float], draw: Any) -> str:
    from matplotlib import rc_context
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    with rc_context(_STYLE), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph")  # which the browser's fonts have
        figure = Figure(size, layout="constrained")
        FigureCanvasSVG(figure)
        draw(figure.add_subplot())
        stream = io.BytesIO()
        figure.savefig(stream, format="svg", metadata={"Date": None, "Creator": None})
    return "data:image/svg+xml;base64," + base64.b64encode(stream.getvalue()).decode()
