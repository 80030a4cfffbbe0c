"""`dcclip search "一只在雪地里的狗" FOLDER`: the images that match a text best."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from typer import Argument, Exit, Option

from dcclip_cli.cli import console, flags
from dcclip_cli.errors import DcclipError

if TYPE_CHECKING:
    from dcclip_cli.predict.index import Hit

_THUMBNAIL_PX = 240


def search(
    text: Annotated[
        str, Argument(metavar="TEXT", help="Text to search for, in Chinese or English.", show_default=False)
    ],
    folder: Annotated[
        Path, Argument(metavar="FOLDER", help="Folder of images, searched recursively.", show_default=False)
    ],
    model: flags.Model = None,
    top_k: Annotated[int, Option("--top-k", min=1, help="Number of images to show.")] = 12,
    as_json: Annotated[bool, Option("--json", help="Print a JSON list.")] = False,
    page: Annotated[
        Path | None,
        Option("--html", metavar="FILE", help="Also write an HTML page with thumbnails.", show_default=False),
    ] = None,
    fresh: Annotated[bool, Option("--fresh", help="Embed all images again.")] = False,
    device: flags.Where = "auto",
    threads: flags.Threads = None,
    quiet: flags.Quiet = False,
    verbose: flags.Verbose = False,
) -> None:
    """Find the images in a folder that match a text best.

    Each image is embedded once: the index is stored in FOLDER/.dcclip and updated when files change.
    Scores are cosines: they rank images and are not probabilities.
    Exit code 1 if an image cannot be read; the others are still searched.
    """
    if not text.strip():
        raise DcclipError("the text is empty", 'give one, for example: dcclip search "一只狗" FOLDER')
    talk = console.talk(quiet, verbose)

    from dcclip_cli.machine import keep_freed_memory
    from dcclip_cli.model.reference import resolve
    from dcclip_cli.predict.encoder import load_encoder
    from dcclip_cli.predict.index import open_index
    from dcclip_cli.predict.zero_shot import text_embeddings

    reference = resolve(model)
    talk.say(reference.description)
    encoder = load_encoder(reference, device, threads=threads)
    keep_freed_memory()
    index = open_index(encoder, folder, fresh, talk)
    talk.say(f"search: {len(index.paths)} images, {index.embedded} of them embedded now")
    hits = index.search(text_embeddings(encoder, [text])[0], top_k)
    if as_json:
        console.show_json([{"image": str(hit.image), "score": round(hit.score, 6)} for hit in hits])
    else:
        rows = [(str(hit.image), f"{hit.score:.3f}") for hit in hits]
        console.show_table(f"{text}, in {folder}", ("image", "score"), rows)
    if page:
        page.write_text(_page(text, hits), encoding="utf-8")
        talk.say(f"search: {page}")
    for error in index.errors.values():
        console.error_line(error)
    if index.errors:
        raise Exit(1)


def _page(text: str, hits: Sequence[Hit]) -> str:
    """The hits as one HTML file without scripts or external resources."""
    figures = "\n".join(
        f'<figure><a href="{html.escape(hit.image.resolve().as_uri())}"><img alt="" src="{_thumbnail(hit.image)}"></a>'
        f"<figcaption>{html.escape(str(hit.image))}<br>{hit.score:.3f}</figcaption></figure>"
        for hit in hits
    )
    return f"""<!DOCTYPE html>
<html lang="zh">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{html.escape(text)}</title>
<style>
body {{ font: 15px/1.5 system-ui, "Noto Sans CJK SC", sans-serif; margin: 2rem; color: #222; background: #fff; }}
main {{ display: grid; grid-template-columns: repeat(auto-fill, minmax({_THUMBNAIL_PX}px, 1fr)); gap: 1.5rem; }}
figure {{ margin: 0; }}
img {{ display: block; width: 100%; height: {_THUMBNAIL_PX}px; object-fit: contain; background: #f4f4f4; }}
figcaption {{ font-size: 13px; color: #555; overflow-wrap: anywhere; }}
</style>
<h1>{html.escape(text)}</h1>
<main>
{figures}
</main>
</html>
"""


def _thumbnail(path: Path) -> str:
    from dcclip_cli.model.preprocess import decode, flatten

    picture = flatten(decode(path))
    picture.thumbnail((2 * _THUMBNAIL_PX, 2 * _THUMBNAIL_PX))
    stream = io.BytesIO()
    picture.save(stream, "JPEG", quality=80)
    return "data:image/jpeg;base64," + base64.b64encode(stream.getvalue()).decode()
