"""`dcclip datasets`: the data set names that `eval --dataset` takes."""

from __future__ import annotations

from dcclip_cli.cli import console


def datasets() -> None:
    """List the data sets that eval knows by name."""
    from dcclip_cli.eval import prompts

    rows = []
    for name in prompts.known():
        known = prompts.read(name)
        for language, suffix in (("en", ""), ("zh", "-cn")):
            if language in known.names:
                where = f"DIR/{name}/{known.split}/{known.folders[0]}/, ..."
                rows.append((name + suffix, language, f"{len(known.folders):,}", where))
    console.show_table("dcclip eval --dataset NAME --data-root DIR", ("name", "language", "classes", "pictures"), rows)
