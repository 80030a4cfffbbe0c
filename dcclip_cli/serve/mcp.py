"""The tools of `dcclip mcp`: an assistant searches, sees and labels the photographs of folders, and changes nothing."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from functools import wraps
from pathlib import Path
from threading import Lock
from typing import Annotated, Any

from mcp.server.mcpserver import Image, MCPServer
from mcp.server.mcpserver.exceptions import ToolError
from mcp.types import ToolAnnotations
from pydantic import Field

from dcclip_cli.errors import DcclipError, translated
from dcclip_cli.html import jpeg_thumbnail
from dcclip_cli.inference import files
from dcclip_cli.inference.images import read
from dcclip_cli.inference.model import Model
from dcclip_cli.text import printable
from dcclip_cli.versions import VERSION

_INSTRUCTIONS = (
    "Search the user's photographs by what they show, in Chinese or English, look at them, and label them. "
    "Short queries that name things work best. Nothing is changed."
)
Photo = Annotated[str, Field(description="Path of a photograph, as search returns it.")]


def tool_server(model: Model, folders: Sequence[Path]) -> MCPServer:
    """A server whose tools read nothing outside `folders`."""
    roots = [Path(os.path.realpath(folder)) for folder in folders]
    server = MCPServer("dcclip", version=VERSION, instructions=_INSTRUCTIONS, log_level="WARNING")
    one_at_a_time = Lock()  # the server calls tools in threads, and models already use all cores

    def tool(function: Callable[..., Any]) -> None:
        @wraps(function)
        def call(*arguments: Any, **named: Any) -> Any:
            try:
                with one_at_a_time:
                    return function(*arguments, **named)
            except DcclipError as error:
                raise ToolError(f"{translated(error.what)} ({translated(error.hint)})") from None

        server.tool(annotations=ToolAnnotations(read_only_hint=True, open_world_hint=False))(call)

    def is_inside(path: Path) -> bool:
        return any(map(Path(os.path.realpath(path)).is_relative_to, roots))  # with links followed

    def file_of(photo: str) -> Path:
        paths = [root / photo for root in roots if "\0" not in photo]
        for path in paths:
            if is_inside(path) and path.is_file():
                return path
        raise DcclipError("{!r} is not a photo in the served folders", "use a path from a search result", photo)

    @tool
    def search(
        text: Annotated[str, Field(description="What the photographs show, in Chinese or English.")] = "",
        like: Annotated[str, Field(description="Path of a photograph that they resemble.")] = "",
        without: Annotated[str, Field(description="What they do not show.")] = "",
        top_k: Annotated[int, Field(ge=1, le=100)] = 12,
    ) -> dict[str, Any]:
        """Find photographs that show a text, or resemble a photograph; the best first.

        Scores are cosines, to compare photographs of one search. If `fits` is false, the photographs most likely show
        something else. The model does not know the words in `unknown`.
        """
        texts, images = [text] if text.strip() else [], [file_of(like)] if like else []
        minus = [without] if without.strip() else []
        result = files.search(texts, roots, images=images, without=minus, model=model, top_k=top_k)
        hits = [hit for hit in result.hits if is_inside(hit.image)]
        photos = [{"photo": printable(str(hit.image)), "score": round(hit.score, 3)} for hit in hits]
        return {"photos": photos, "fits": result.fits, "unknown": list(result.unknown)}

    @tool
    def show(photo: Photo, max_px: Annotated[int, Field(ge=64, le=1536)] = 768) -> Image:
        """Look at a photograph, as a JPEG of at most `max_px` pixels a side, without its metadata."""
        return Image(data=jpeg_thumbnail(read(file_of(photo)), max_px), format="jpeg")

    @tool
    def label(
        photos: Annotated[list[Photo], Field(min_length=1, max_length=100)],
        labels: Annotated[list[str], Field(min_length=1, max_length=1000, description="In Chinese or English.")],
        multi_label: Annotated[bool, Field(description="Judge each label by itself.")] = False,
    ) -> dict[str, Any]:
        """The probabilities of labels for photographs; add a label such as "other" if it may be none of them."""
        predictions = files.predict(list(map(file_of, photos)), labels, model=model, multi_label=multi_label)
        rows = [row.error.what if row.error else dict(row.labels) for row in predictions]
        names = ["error" if row.error else "labels" for row in predictions]
        return {"photos": [{"photo": photo, name: row} for photo, name, row in zip(photos, names, rows, strict=True)]}

    return server
