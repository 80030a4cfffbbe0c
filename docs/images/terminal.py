"""What does the quick start end with? Draws terminal.svg from the real output of a finished run.

    make quickstart
    python docs/images/terminal.py

Runs again what `make quickstart` runs. `dcclip run` finds its stages finished in runs/quickstart
and shows the table that it keeps in summary.json; nothing is measured anew but the prediction.
"""

import io
import re
import subprocess
import sys
from pathlib import Path

from rich.console import Console
from rich.terminal_theme import MONOKAI
from rich.text import Text

ROOT = Path(__file__).resolve().parents[2]
COMMANDS = (
    ("run", "recipes/quickstart.yaml"),
    ("predict", "docs/images/cat.png", "--labels", "猫,dog"),
)
# A picture must not fetch anything: without the web fonts that rich names, the viewer's own
# monospace is taken.
WEB_FONT = re.compile(r"\s*@font-face \{[^}]*\}")


def output(arguments: tuple[str, ...]) -> str:
    """What a command prints on stdout; its talk on stderr goes to the terminal of whoever draws."""
    command = [sys.executable, "-m", "dcclip_cli", *arguments]
    return subprocess.run(
        command, cwd=ROOT, stdout=subprocess.PIPE, encoding="utf-8", check=True
    ).stdout.rstrip()


def draw(screens: dict[str, str]) -> str:
    """An SVG of a terminal in which each command stands above its output."""
    lines: list[Text] = []
    for command, shown in screens.items():
        lines += [Text(), Text.assemble(("$ ", "bold green"), (command, "bold"))]
        lines += [Text(line.rstrip()) for line in shown.splitlines()]
    console = Console(
        record=True, width=max(line.cell_len for line in lines) + 2, file=io.StringIO()
    )
    for line in lines[1:]:
        console.print(line, highlight=False, no_wrap=True)
    svg = console.export_svg(title="dcclip", theme=MONOKAI, unique_id="dcclip")
    return WEB_FONT.sub("", svg).replace("Fira Code, monospace", "monospace")


def main() -> None:
    screens = {" ".join(("dcclip", *arguments)): output(arguments) for arguments in COMMANDS}
    Path(__file__).with_suffix(".svg").write_text(draw(screens), encoding="utf-8")


if __name__ == "__main__":
    main()
