"""The page of layers, from the table that tests/test_layers.py enforces."""

from graphlib import TopologicalSorter

from docs.generate.markdown import MADE, code, table
from tests.test_layers import LATE, LIGHT, MAY, ON_TOP, SHARED

HEAD = """\
# Layers

Which part of `dcclip_cli/` may import which; `tests/test_layers.py` enforces it. All may import the modules next to the
parts: {shared}. A heavy import, such as torch, is inside a function in the modules that define options, so that
`dcclip --help` and `dcclip predict` on a bundle never load it.

"""


def page() -> str:
    below = {part: others - ON_TOP - {part} for part, others in MAY.items()}
    rows = []
    for part in reversed(list(TopologicalSorter(below).static_order())):
        late = {other for other in below[part] if (part, other) in LATE}
        cells = (
            ", ".join(map(code, sorted(others))) or "-" for others in (below[part] - late, late)
        )
        rows.append((code(part), *cells))
    shared, light = (", ".join(map(code, sorted(names))) for names in (SHARED, LIGHT))
    head = ("part", "may import", "inside functions only")
    return (
        f"{MADE}{HEAD.format(shared=shared)}{table(head, rows)}\nWithout torch, so "
        f"imported anywhere: {light}.\n"
    )
