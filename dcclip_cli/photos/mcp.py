"""The tools of `dcclip mcp`: an assistant searches, sees and labels the photographs of folders,
and changes nothing.
"""

import json
import logging
import os
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import suppress
from functools import wraps
from io import BufferedReader, TextIOWrapper, UnsupportedOperation
from itertools import islice
from pathlib import Path
from threading import Lock
from typing import Annotated, Any

from mcp.server.mcpserver import Image, MCPServer
from mcp.server.mcpserver.exceptions import ToolError
from mcp.types import ToolAnnotations
from pydantic import Field

from dcclip_cli.core.errors import DcclipError, translated
from dcclip_cli.core.files import is_within
from dcclip_cli.core.html import jpeg_thumbnail
from dcclip_cli.core.text import printable, unprintable
from dcclip_cli.core.versions import VERSION
from dcclip_cli.inference.images import read
from dcclip_cli.inference.limits import MAX_LABELS, check_texts
from dcclip_cli.inference.model import Model
from dcclip_cli.inference.videos import split_frame
from dcclip_cli.photos import files
from dcclip_cli.photos.duplicates import duplicates

_INSTRUCTIONS = (
    "Search, look at and label the user's photographs. Short queries that name things work best."
)
_MAX_HITS = 1000  # of a search, among which links may lead out of the folders
_SIGNAL_S = 0.5  # in which the main thread sees a signal that another thread got
Photo = Annotated[str, Field(description="Path of a photograph, as search returns it.")]


class Tools:
    """The tools, for photographs in `folders`; their docstrings are what the assistant reads."""

    def __init__(self, model: Model, folders: Sequence[Path]) -> None:
        self._model = model
        self._folders = [Path(os.path.realpath(folder)) for folder in folders]

    def search(
        self,
        text: Annotated[
            str,
            Field(description="What they show, in Chinese or English; -word: what they do not."),
        ] = "",
        like: Annotated[str, Field(description="Path of a photograph that they resemble.")] = "",
        without: Annotated[str, Field(description="What they do not show.")] = "",
        top_k: Annotated[int, Field(ge=1, le=100)] = 12,
    ) -> dict[str, Any]:
        """Find photographs that show a text, or resemble a photograph; the best first.

        Scores are cosines, to compare photographs of one search. If `fits` is false, the
        photographs most likely show something else. The model ignores the words in `unknown`.
        clip.mp4#t=83.2 is a frame of a video, at 83.2 s.
        """
        texts, minus = ([query] if query.strip() else [] for query in (text, without))
        images = [self._file(like)] if like else []
        if not (texts or images):
            raise DcclipError("the request has neither text nor an image", "send an image or text")
        if texts or minus:
            check_texts([*texts, *minus])
        options: dict[str, Any] = {
            "images": images,
            "without": minus,
            "model": self._model,
            "top_k": _MAX_HITS,
        }
        result = files.search(texts, self._folders, **options)
        hits = islice((hit for hit in result.hits if is_within(hit.image, self._folders)), top_k)
        photos = [
            {"photo": printable(str(hit.frame)), "score": round(hit.score, 3)} for hit in hits
        ]
        return {"photos": photos, "fits": result.fits, "unknown": list(result.unknown)}

    def show(self, photo: Photo, max_px: Annotated[int, Field(ge=64, le=1536)] = 768) -> Image:
        """Look at a photograph, as a JPEG of at most `max_px` pixels a side, without its metadata."""
        return Image(data=jpeg_thumbnail(read(self._file(photo)), max_px), format="jpeg")

    def label(
        self,
        photos: Annotated[list[Photo], Field(min_length=1, max_length=100)],
        labels: Annotated[
            list[str],
            Field(min_length=1, max_length=MAX_LABELS, description="In Chinese or English."),
        ],
        multi_label: Annotated[bool, Field(description="Judge each label by itself.")] = False,
        top_k: Annotated[
            int, Field(ge=1, le=1000, description="Labels of each photograph, the best first.")
        ] = 5,
    ) -> dict[str, Any]:
        """The most probable labels of photographs; add a label such as "other" if it may be none
        of them.

        The model ignores the words in `unknown`.
        """
        check_texts(labels)
        options: dict[str, Any] = {"model": self._model, "multi_label": multi_label, "top_k": top_k}
        predictions = files.predict([*map(self._file, photos)], labels, **options)
        rows = [
            {"error": row.error.what} if row.error else {"labels": dict(row.labels)}
            for row in predictions
        ]
        listed = [{"photo": photo} | row for photo, row in zip(photos, rows, strict=True)]
        return {"photos": listed, "unknown": self._model.unknown(labels)}

    def duplicates(self, top_k: Annotated[int, Field(ge=1, le=1000)] = 100) -> dict[str, Any]:
        """Find duplicates among all photographs, up to `top_k` groups of each kind.

        `copies` are resized, compressed again, slightly cropped or watermarked, the largest
        photograph first. `bursts` are similar photographs that were taken within seconds. Videos
        are not compared.
        """
        result = duplicates(self._folders, model=self._model)
        answer = dict[str, Any]()
        for kind, groups in (("copies", result.copies), ("bursts", result.bursts)):
            inside = (
                [photo for photo in group if is_within(photo.image, self._folders)]
                for group in groups
            )
            rows = [
                [
                    {
                        "photo": printable(str(photo.image)),
                        "width": photo.width,
                        "height": photo.height,
                    }
                    for photo in group
                ]
                for group in inside
                if len(group) > 1
            ]
            answer |= {kind: rows[:top_k], f"{kind}_count": len(rows)}
        return answer

    def _file(self, photo: str) -> Path:
        for path in [
            folder / name for name in (photo, unprintable(photo)) for folder in self._folders
        ]:
            file = Path(split_frame(path)[0])
            with suppress(OSError, ValueError):  # of a name that is too long, or has a zero byte
                if is_within(file, self._folders) and file.is_file():
                    return path
        raise DcclipError(
            "{!r:.200} is not a photo in the served folders",
            "use a path from a search result",
            photo,
        )


class _Lines(BufferedReader):
    """stdin by lines of JSON, in which halves of surrogate pairs, which the server's parser
    refuses, are `?`.
    """

    def read1(self, size: int = -1) -> bytes:
        line = self.readline()
        if b"\\ud" in line.lower():
            with suppress(ValueError, RecursionError):  # the server refuses such a line
                text = json.dumps(json.loads(line), ensure_ascii=False)
                line = text.encode(errors="replace") + b"\n"
        return line

    def fileno(self) -> int:
        raise UnsupportedOperation  # the server would read from the file itself


def tool_server(model: Model, folders: Sequence[Path]) -> MCPServer:
    """A server whose tools read nothing outside `folders`."""
    server = MCPServer("dcclip", version=VERSION, instructions=_INSTRUCTIONS, log_level="WARNING")
    logging.getLogger("mcp.shared").setLevel(
        logging.CRITICAL
    )  # tracebacks of requests that it refuses
    annotations = ToolAnnotations(read_only_hint=True, open_world_hint=False)
    one_at_a_time = Lock()  # the server calls tools in threads, and models already use all cores

    def explained(tool: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(tool)
        def call(*arguments: Any, **named: Any) -> Any:
            try:
                with one_at_a_time:
                    return tool(*arguments, **named)
            except DcclipError as error:
                raise ToolError(f"{translated(error.what)} ({translated(error.hint)})") from None

        return call

    tools = Tools(model, folders)
    for tool in (tools.search, tools.show, tools.label, tools.duplicates):
        server.tool(annotations=annotations)(explained(tool))
    return server


def run(server: MCPServer) -> None:
    """Answer an assistant on stdin and stdout, until it ends."""
    stdin: Any = sys.stdin  # which closes the file when nothing refers to it
    sys.stdin = TextIOWrapper(_Lines(stdin.buffer.raw), encoding="utf-8")
    # In a thread: an event loop prints tracebacks if a signal raises an exception in it.
    serving = ThreadPoolExecutor(1).submit(server.run)
    while not serving.done():
        wait([serving], _SIGNAL_S)
    try:
        serving.result()
    except* BrokenPipeError:
        pass
