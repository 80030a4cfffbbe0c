"""HTML reports: pages from templates without scripts or external resources, thumbnails, and charts
as SVG images.
"""

from __future__ import annotations

import base64
import io
import math
import re
import warnings
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image

from dcclip_cli.core.errors import Language, Message, language, translated
from dcclip_cli.core.files import atomic_write

if TYPE_CHECKING:
    import numpy as np
    from matplotlib.axes import Axes

THUMBNAIL_PX = 96
SHARED_PAGE = Path(__file__).with_name("page")
"""Files that the exported web page and the page of `dcclip serve` have in common."""
HTML_LANGUAGES: dict[Language, str] = {"en": "en", "zh": "zh-CN"}
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

# Characters that hide text or change the page around it: control characters, marks of text
# direction. U+200D is not among them: it joins emoji.
_UNSEEN = re.compile(
    "[\x00-\x09\x0b-\x1f\x7f-\x9f\xad\u200b\u200c\u200e\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb]"
)


def write_page(path: Path, package: str, template: str, /, **values: Any) -> None:
    """Write a package's template with `values`, in the user's language; the same values give the
    same bytes.
    """
    from jinja2 import Environment, PackageLoader, StrictUndefined
    from markupsafe import Markup

    environment = Environment(
        loader=PackageLoader(package, "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "visible": visible,
        "number": lambda number: f"{number:,}",
        "percent": percent,
    }
    environment.filters |= {"picture": jpeg_data_url, "translated": translated}
    environment.globals |= {
        "_": lambda text, **fields: translated(Message(text, **fields)),
        "message": Message,
        "html_lang": HTML_LANGUAGES[language()],
    }
    style = Markup(Path(__file__).with_name("html.css").read_text("utf-8"))
    text = environment.get_template(template).render(style=style, **values)
    atomic_write(path, text.encode(errors="replace"))


def visible(text: str) -> str:
    """The text with invisible characters spelled out, like ⟨U+202E⟩."""
    return _UNSEEN.sub(lambda match: f"⟨U+{ord(match[0]):04X}⟩", text)


def percent(part: float, total: float) -> str:
    """`part / total` as a percentage of two or three digits; 0 % and 100 % only if exact."""
    if not total or not part:
        return "0 %"
    share = 100 * part / total
    if part == total:
        return "100 %"
    if share < 0.01:
        return "< 0.01 %"
    if share > 99.9:
        return f"{min(share, 99.99):.2f} %"
    return f"{share:.2f} %" if share < 1 else f"{share:.1f} %"


def ticks(first: float, last: float, count: int, is_integer: bool) -> np.ndarray:
    """At most `count` round numbers, evenly spaced, for an axis."""
    import numpy as np

    step = 10.0 ** math.floor(math.log10((last - first) / count))
    steps = [max(step * factor, 1 if is_integer else 0) for factor in (1, 2, 5, 10)]
    step = next((candidate for candidate in steps if (last - first) / candidate < count), steps[-1])
    return np.arange(math.ceil(first / step - 1e-9), math.floor(last / step + 1e-9) + 1) * step


def readable(value: float, unit: str = "") -> str:
    """A value as a person writes it: 1.5, 12,000, 64 K (bytes)."""
    if unit == "bytes":
        for size, letter in ((1 << 20, " M"), (1 << 10, " K")):
            if value >= size:
                return f"{value / size:.3g}{letter}"
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def jpeg_data_url(content: bytes) -> str:
    return "data:image/jpeg;base64," + base64.b64encode(content).decode()


def jpeg_thumbnail(image: Image.Image, max_px: int = THUMBNAIL_PX) -> bytes:
    """A JPEG file of at most `max_px` pixels a side, transparent parts on white."""
    scale = min(1.0, max_px / max(image.size))
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    small = image.resize(size, Image.Resampling.BILINEAR, reducing_gap=2.0)
    if small.mode != "RGB":
        small = Image.alpha_composite(
            Image.new("RGBA", small.size, "white"), small.convert("RGBA")
        ).convert("RGB")
    stream = io.BytesIO()
    small.save(stream, "JPEG", quality=80)
    return stream.getvalue()


def svg_chart(size: tuple[float, float], draw: Callable[[Axes], None]) -> bytes:
    """The chart that `draw` makes on axes, `size` in inches, as an SVG file; an empty one without
    matplotlib.
    """
    if find_spec("matplotlib") is None:
        return b""
    from matplotlib import rc_context
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    with rc_context(_STYLE):
        figure = Figure(size, layout="constrained")
        FigureCanvasSVG(figure)
        draw(figure.add_subplot())
        stream = io.BytesIO()
        with warnings.catch_warnings():
            warnings.filterwarnings(
                "ignore", "Glyph"
            )  # missing here, but not in the browser's fonts
            metadata = {"Date": None, "Creator": None}
            figure.savefig(
                stream, format="svg", facecolor="white", edgecolor="none", metadata=metadata
            )
    return stream.getvalue()
