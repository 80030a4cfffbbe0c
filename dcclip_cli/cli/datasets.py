"""`dcclip datasets`: the data set names of `eval --dataset`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from typer import Option

from dcclip_cli.cli import console

if TYPE_CHECKING:
    from dcclip_cli.eval.registry import KnownSet


def datasets(
    data_root: Annotated[
        Path | None, Option("--data-root", metavar="DIR", help="Show which of them are in DIR.", show_default=False)
    ] = None,
) -> None:
    """List the data sets that eval knows by name."""
    from dcclip_cli.eval import registry
    from dcclip_cli.eval.datasets import layout_of
    from dcclip_cli.eval.tables import METRIC_NAMES

    rows = []
    for known in registry.SETS.values():
        if languages := registry.languages_of(known):
            rows.append(
                (
                    ", ".join(registry.name_in(known, language) for language in languages),
                    METRIC_NAMES[known.metric],
                    known.split,
                    f"{known.size:,}" if known.size else "",
                    f"{known.classes:,}" if known.classes else "",
                    _sources(known) if data_root is None else layout_of(known, data_root) or "-",
                    known.remark,
                )
            )
    columns = ("name", "metric", "split", "images", "classes", "also from" if data_root is None else "found", "")
    console.show_table("dcclip eval --dataset NAME --data-root DIR, with DIR/NAME/", columns, rows)
    console.show(f"groups: {', '.join(registry.group_names())}")


def _sources(known: KnownSet) -> str:
    """Where the data set can be read from besides DIR/NAME/SPLIT/CLASS/ and DIR/NAME/SPLIT/*.tar."""
    hub = f"hub wds_{known.hub}" if known.hub else ""
    return ", ".join(one for one in (hub, known.torchvision.name if known.torchvision else "") if one)
