"""Charts drawn by matplotlib as SVG images: the same bytes for the same data."""

from __future__ import annotations

import base64
import io
import warnings
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Colour-blind safe (Okabe and Ito).
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#8a8a8a")
_STYLE: dict[str, Any] = {
    "svg.fonttype": "none",  # text stays text, which the browser's fonts show in any language
    "svg.hashsalt": "dcclip",  # ids depend on the drawing alone
    "font.family": "sans-serif",
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "hatch.linewidth": 0.6,
}


def svg_chart(size: tuple[float, float], draw: Callable[[Axes], None], **style: Any) -> str:
    """The chart that `draw` makes on the axes given to it, as a data URL of an SVG image with a transparent background.

    `size` is in inches; `style` has further parameters of matplotlib, with `_` for the dots in their names.
    """
    from matplotlib import rc_context
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    with rc_context(_STYLE | {name.replace("_", "."): value for name, value in style.items()}):
        figure = Figure(size, layout="constrained")
        FigureCanvasSVG(figure)
        draw(figure.add_subplot())
        stream = io.BytesIO()
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Glyph")  # missing here, but not in the browser's fonts
            figure.savefig(stream, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    return "data:image/svg+xml;base64," + base64.b64encode(stream.getvalue()).decode()
