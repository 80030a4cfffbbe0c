"""The requests that `dcclip serve` answers: OpenAI's embeddings, immich, MT Photos, labels, image
search.
"""

import asyncio
import base64
import gc
import json
import os
import re
import time
from collections.abc import AsyncIterator, Callable, Collection, Sequence
from contextlib import asynccontextmanager, suppress
from datetime import date
from functools import partial
from itertools import chain, filterfalse
from pathlib import Path
from types import SimpleNamespace
from typing import Annotated, Any, Literal
from urllib.parse import quote, unquote_to_bytes

import h11
import numpy as np
from fastapi import Body, FastAPI, File, Form, Query, Request, UploadFile
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse, HTMLResponse, PlainTextResponse, Response
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from pydantic import BaseModel, FailFast, Field
from pydantic_core import to_json
from starlette.convertors import PathConvertor
from starlette.exceptions import HTTPException
from starlette.formparsers import MultiPartParser

from dcclip_cli.core.errors import DcclipError, Message, translated
from dcclip_cli.core.files import is_within, refuse_special
from dcclip_cli.core.html import SHARED_PAGE, jpeg_thumbnail
from dcclip_cli.core.progress import clock
from dcclip_cli.core.text import split, split_excluded
from dcclip_cli.core.versions import VERSION
from dcclip_cli.inference.encoder import Encoder
from dcclip_cli.inference.images import batched, mime_type
from dcclip_cli.inference.limits import MAX_LABELS, MAX_TEXTS
from dcclip_cli.inference.model import best
from dcclip_cli.inference.videos import frame_name, is_video, is_video_start, split_frame
from dcclip_cli.inference.zero_shot import Labels, label_prompts, unknown_of
from dcclip_cli.photos.duplicates import find_duplicates
from dcclip_cli.photos.files import query_fits
from dcclip_cli.photos.filters import Filters
from dcclip_cli.photos.index import Hit, ImageIndex, count_all, direction, search_all
from dcclip_cli.photos.live import LiveIndexes
from dcclip_cli.serve.batches import (
    IMAGE_URL,
    MAX_IMAGES,
    BatchedEncoder,
    RefusedError,
    bad_url,
    decode_url,
)
from dcclip_cli.serve.guard import MAX_BODY, Guard, Metrics, Scope, error_response

_STORED_LABELS = 10_000  # whose embeddings are stored
_MAX_PARTS = MAX_TEXTS + MAX_IMAGES  # of a chat, and of errors that pydantic collects
_LARGE_TEXTS = (
    64 << 10
)  # characters that are tokenized in a thread, so that others are answered meanwhile
_MAX_PICTURE = 128 << 20  # bytes of a file that is shown
_START_BYTES = 64  # of a file, by which its format is known
_THUMBNAIL_PX = 480
_PREVIEW_PX = 2048
_SHOWN = {
    f"image/{name}" for name in ("jpeg", "png", "webp", "gif", "bmp", "avif")
}  # by all browsers
_PAGE_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "img-src 'self' blob:; "
    "media-src 'self'; base-uri 'none'; form-action 'none'"
)
_PAGE_TYPES = {
    ".html": "text/html",
    ".css": "text/css",
    ".js": "text/javascript",
    ".svg": "image/svg+xml",
}
# images and searches that the page shows at first
_SAMPLES = 18
_EXAMPLES = 4
_EXAMPLES_S = 60.0  # after which they are chosen again, if images have changed
_MOST_SUBFOLDERS = 500  # of a folder, among which the page lets choose
_NEAREST = 8  # images whose scores say how well an example search fits a folder
_EXAMPLE_SEARCHES = {
    "dog": "狗", "cat": "猫", "bird": "鸟", "horse": "马", "flower": "花", "tree": "树", "beach": "海滩", "lake": "湖",
    "mountain": "山", "snow": "雪", "boat": "船", "car": "汽车", "train": "火车", "airplane": "飞机", "bridge": "桥",
    "castle": "城堡", "church": "教堂", "coffee": "咖啡", "cake": "蛋糕", "fruit": "水果", "guitar": "吉他",
}  # fmt: skip
_OF_LABELS = "Labels in Chinese, English or both, separated by , ， or 、."


class Part(BaseModel):
    """A part of a chat message: a text, or an image as a data URL."""

    type: Literal["text", "image_url"]
    text: str = ""
    image_url: dict[str, Any] = {}

    def input(self) -> str:
        if self.type == "text":
            return self.text
        url = str(self.image_url.get("url", ""))
        if not url.startswith(IMAGE_URL):
            raise bad_url(url)
        return url


class ChatMessage(BaseModel):
    """A message as vLLM takes them for embeddings; its parts are one input each."""

    role: str = "user"
    content: str | Annotated[list[Part], Field(max_length=_MAX_PARTS)]


class EmbeddingRequest(BaseModel):
    """OpenAI's request for embeddings. An input that begins with `data:image/` is an image."""

    input: str | list[Any] | None = None
    messages: Annotated[list[ChatMessage], FailFast(), Field(max_length=_MAX_PARTS)] = []
    model: str = ""
    encoding_format: Literal["float", "base64"] = "float"
    dimensions: int | None = Field(None, ge=1, le=8192)

    def inputs(self) -> list[str]:
        """The texts and data URLs, in their order. Raises DcclipError for web addresses and what
        is no text.
        """
        contents = (
            [message.content for message in self.messages] if self.input is None else [self.input]
        )
        inputs: list[Any] = [
            item
            for content in contents
            for item in ([content] if isinstance(content, str) else content)
        ]
        texts = [item.input() if isinstance(item, Part) else item for item in inputs]
        if not all(isinstance(text, str) for text in texts):
            hint = Message(
                "send strings; for LangChain's OpenAIEmbeddings, set "
                "check_embedding_ctx_length=False"
            )
            raise DcclipError("the input contains an item that is not a string", hint)
        if self.input and (
            address := next((text for text in texts if re.fullmatch(r"https?://\S+", text)), None)
        ):
            raise bad_url(address)
        return texts


class Server:
    """What the routes share: the encoder, indexes of folders, labels that were asked for, and what
    immich asks for.
    """

    def __init__(
        self,
        encoder: Encoder,
        indexes: Sequence[ImageIndex],
        immich_dims: int,
        say: Callable[[str], object],
    ) -> None:
        self.metrics = Metrics(lambda kind: self.encoder.waiting(kind))
        self.encoder = BatchedEncoder(
            encoder, lambda kind, size: self.metrics.batches.labels(kind).observe(size)
        )
        self.live = LiveIndexes(encoder, indexes, say)
        self.immich_dims = immich_dims
        self._say = say
        self.dims = encoder.encode_texts(["狗"]).shape[1]
        self._labels: dict[tuple[Any, ...], Labels] = {}
        self._immich_names: set[str] = set()

    def folders(self) -> Sequence[ImageIndex]:
        """The indexes as they are now. Raises RefusedError if there are none."""
        if not self.live.current:
            raise RefusedError(
                "the server has no image folder",
                "start the server with: dcclip serve --folder DIR",
                status=404,
            )
        return self.live.current

    async def vectors(self, inputs: Sequence[str]) -> np.ndarray:
        """Embeddings (N, D) of texts and data URLs of images, in their order."""
        if not inputs:
            raise DcclipError("the input is missing", "send text, or an image as a data URL")
        urls = [url for url in inputs if url.startswith(IMAGE_URL)]
        texts = [text for text in inputs if not text.startswith(IMAGE_URL)]
        files = (
            await self.encoder.in_pool(lambda: [decode_url(url) for url in urls]) if urls else []
        )
        parts = [self.encoder.embed_images(files)] if files else []
        parts += [self.encoder.embed_texts(texts)] if texts else []
        tasks = [asyncio.create_task(part) for part in parts]
        try:
            embedded = np.concatenate(await asyncio.gather(*tasks))  # images first
        finally:
            for task in tasks:
                task.cancel()  # the images of a text that is refused
        is_text = np.array([not text.startswith(IMAGE_URL) for text in inputs])
        return np.asarray(embedded[np.argsort(np.argsort(is_text, kind="stable"))])

    async def query(
        self, texts: Sequence[str], without: Sequence[str], files: Sequence[bytes]
    ) -> tuple[np.ndarray, list[str]]:
        """What to search for (D,): texts and images are added, texts `without` subtracted. And
        what the model never learnt.
        """
        queries = [*texts, *without]
        vectors = np.zeros((0, 1), np.float32)
        if queries:
            vectors = await self.encoder.embed_texts(queries)
        unknown = await self.encoder.in_pool(unknown_of, self.encoder.encoder, queries, vectors)
        added = [vectors[: len(texts)]] if texts else []
        added += [await self.encoder.embed_images(files)] if files else []
        return direction(np.concatenate(added), vectors[len(texts) :]), unknown

    async def count_tokens(self, inputs: Sequence[str]) -> int:
        """How many tokens the model reads of those inputs that are texts."""
        texts = [text for text in inputs if not text.startswith(IMAGE_URL)]
        tokenize = self.encoder.encoder.tokenize
        size = sum(
            max(len(text), 1000) for text in texts
        )  # a text takes as long as 1,000 characters, or longer

        def count() -> int:
            return sum(tokenize([text]).size for text in texts)

        return await self.encoder.in_pool(count) if size > _LARGE_TEXTS else count()

    async def labels(self, names: Sequence[str], multi_label: bool) -> Labels:
        """The labels' embeddings; those of the last 10,000 labels are stored."""
        if len(names) > MAX_LABELS:
            raise DcclipError(
                "a request cannot contain {:,} labels", "send at most {:,}", len(names), MAX_LABELS
            )
        key = (*names, multi_label)
        if (labels := self._labels.get(key)) is None:
            texts, neutral_texts = label_prompts(self.encoder.encoder, names, None, multi_label)
            prompts = list(dict.fromkeys(chain(*texts, *neutral_texts.values())))
            rows: dict[str, np.ndarray] = {}
            for batch in batched(prompts, MAX_TEXTS):
                rows |= zip(batch, await self.encoder.embed_texts(batch), strict=True)
            fields = ("prompts", "logit_scale", "logit_bias", "known", "tokenize")
            embedded: Any = SimpleNamespace(
                **{name: getattr(self.encoder.encoder, name) for name in fields}
            )
            embedded.encode_texts = lambda texts: (
                np.stack([rows[text] for text in texts])
                if rows.keys() >= set(texts)
                else self.encoder.encoder.encode_texts(texts)  # words of labels
            )
            labels = await self.encoder.in_pool(Labels, embedded, names, None, multi_label)
            while (
                self._labels
                and sum(len(stored.names) for stored in self._labels.values()) > _STORED_LABELS
            ):
                del self._labels[next(iter(self._labels))]
            self._labels[key] = labels
        return labels

    def padded(self, vector: np.ndarray) -> list[float]:
        """An embedding as long as photo apps expect it. Zeros at its end change no cosine."""
        return np.pad(vector, (0, max(0, self.immich_dims - len(vector)))).tolist()

    def for_immich(self, vector: np.ndarray) -> str:
        """An embedding as immich takes it: a list in JSON as a text."""
        return to_json(self.padded(vector)).decode()

    def note_immich(self, name: str) -> None:
        """Say once which model immich asks for; it gets this one."""
        if name not in self._immich_names and len(self._immich_names) < 100:
            self._immich_names.add(name)
            self._say(
                Message(
                    "serve: immich requests {!r}; the server uses {}",
                    name[:100],
                    self.encoder.encoder.name,
                )
            )


def application(
    encoder: Encoder,
    indexes: Sequence[ImageIndex] = (),
    token: str | None = None,
    immich_dims: int = 512,
    hosts: Collection[str] = (),
    say: Callable[[str], object] = lambda _: None,
    follow_s: float | None = None,
) -> FastAPI:
    """The ASGI application. `hosts` are the names it answers to, all by default. It lists folders
    every `follow_s`.
    """
    server = Server(encoder, indexes, immich_dims, say)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        # what the imports made is never garbage: going through it takes 50 ms, in which nobody is
        # answered
        gc.freeze()
        following = asyncio.create_task(server.live.follow(follow_s))
        async with server.encoder.running():
            yield
        server.live.stopping = True
        following.cancel()
        await asyncio.wait([following])

    MultiPartParser.spool_max_size = MAX_BODY  # no uploads on disk
    PathConvertor.regex = "(?s:.*)"  # a file's name may contain a line end
    app = FastAPI(title="dcclip", version=VERSION, lifespan=lifespan, redoc_url=None)
    app.state.server = server
    app.add_middleware(Guard, metrics=server.metrics, token=token, hosts=hosts)

    _add_errors(app)
    _add_status(app, server)
    _add_model(app, server)
    _add_immich(app, server)
    _add_mt_photos(app, server)
    _add_search(app, server)
    _add_duplicates(app, server)
    _add_images(app, server)
    _add_page(app, server)
    return app


def _add_errors(app: FastAPI) -> None:
    @app.exception_handler(DcclipError)
    async def refused(request: Request, error: DcclipError) -> Response:
        return error_response(request.scope, error)

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> Response:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"] if isinstance(part, str))
        problem = Message("invalid request: {}: {}", where, first["msg"])
        return error_response(
            request.scope, DcclipError(problem, "see /docs for the expected request")
        )

    @app.exception_handler(HTTPException)
    async def other(request: Request, error: HTTPException) -> Response:
        problem = DcclipError("{}", "see /docs for the available paths", error.detail)
        return error_response(request.scope, problem, error.status_code, error.headers)


def _add_status(app: FastAPI, server: Server) -> None:
    @app.get("/health")
    async def health() -> dict[str, Any]:
        """The model, how many images can be searched, how many are unreadable, and how many
        folders are missing.
        """
        counts = server.live.counts()
        status = "a folder is missing" if counts["missing_folders"] else "ok"
        return {
            "status": status,
            "model": server.encoder.encoder.name,
            "dimensions": server.dims,
        } | counts

    @app.get("/metrics")
    async def metrics() -> Response:
        """Counters in Prometheus's form."""
        return Response(generate_latest(server.metrics.registry), media_type=CONTENT_TYPE_LATEST)


def _add_model(app: FastAPI, server: Server) -> None:
    name = server.encoder.encoder.name
    described = {"id": name, "object": "model", "created": 0, "owned_by": "dcclip"}

    @app.get("/v1/models")
    async def models() -> dict[str, Any]:
        return {"object": "list", "data": [described]}

    @app.get("/v1/models/{model:path}")
    async def retrieve(model: str) -> dict[str, Any]:
        """The one model, by whatever name."""
        return described

    @app.post("/v1/embeddings")
    async def embeddings(request: EmbeddingRequest) -> Response:
        """Embeddings of length 1 of texts and of images as data URLs, in OpenAI's form."""
        if (dims := request.dimensions or server.dims) > server.dims:
            problem = Message(
                "dimensions={} exceeds the model's embedding size {}", dims, server.dims
            )
            raise DcclipError(problem, Message("use dimensions <= {}", server.dims))
        inputs = request.inputs()
        rows = await server.vectors(inputs)
        tokens = await server.count_tokens(inputs)
        if dims < server.dims:
            rows = rows[:, :dims]
            rows = rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)
        usage = {"prompt_tokens": tokens, "total_tokens": tokens}
        coded: list[Any]
        if request.encoding_format == "base64":
            coded = [base64.b64encode(row.astype("<f4").tobytes()).decode() for row in rows]
        else:
            coded = rows.tolist()
        data = [
            {"object": "embedding", "index": index, "embedding": row}
            for index, row in enumerate(coded)
        ]
        return _json({"object": "list", "data": data, "model": name, "usage": usage})

    @app.post("/classify")
    async def classify(
        image: Annotated[UploadFile, File(description="The file of an image.")],
        labels: Annotated[str, Form(description=_OF_LABELS)],
        multi_label: Annotated[bool, Form(description="Judge each label by itself.")] = False,
        top_k: Annotated[int, Form(ge=1)] = 5,
    ) -> dict[str, Any]:
        """The most probable labels of an image, the best first, and what in them the model never
        learnt.
        """
        ready = await server.labels(split(labels), multi_label)
        rows = ready.probabilities(await server.encoder.embed_images([await image.read()]))
        probable = best(ready.names, rows[0], top_k)
        listed = [{"label": label, "probability": round(value, 6)} for label, value in probable]
        return {"labels": listed, "unknown": ready.unknown}


def _add_immich(app: FastAPI, server: Server) -> None:
    @app.get("/ping")
    async def ping() -> PlainTextResponse:
        """What immich asks to see whether this server is there."""
        return PlainTextResponse("pong")

    @app.post("/predict")
    async def predict(
        entries: Annotated[
            str, Form(description='{"clip": {"visual" or "textual": {"modelName": "NAME"}}}')
        ],
        image: Annotated[bytes | None, File()] = None,
        text: Annotated[str | None, Form()] = None,
    ) -> Response:
        """immich's machine-learning protocol, the part for its smart search; any model name gets
        this model.
        """
        kind = "visual" if image is not None else "textual"
        try:
            tasks = json.loads(entries)
            task = next(iter(tasks))
            name = tasks["clip"][kind]["modelName"] if list(tasks) == ["clip"] else ""
        except (ValueError, TypeError, KeyError, AttributeError, StopIteration, RecursionError):
            problem = Message('entries must be {{"clip": {{"{}": {{"modelName": "NAME"}}}}}}', kind)
            raise DcclipError(problem, "see machine-learning/ in immich's repository") from None
        if task != "clip" or len(tasks) != 1 or not isinstance(name, str):
            problem = Message("this server provides clip only, not {}", str(task)[:40])
            hint = Message(
                "turn off this task in immich's settings, or add immich's own server after this one"
            )
            raise RefusedError(problem, hint, status=422)
        server.note_immich(name)
        if image is not None:
            rows, [(width, height)] = await server.encoder.sized_images([image])
            return _json(
                {"clip": server.for_immich(rows[0]), "imageHeight": height, "imageWidth": width}
            )
        if text is None:
            raise RefusedError(
                "the request has neither an image nor text", "send an image or text", status=400
            )
        return _json({"clip": server.for_immich((await server.encoder.embed_texts([text]))[0])})


def _add_mt_photos(app: FastAPI, server: Server) -> None:
    # Paths, fields and texts of numbers: MT-Photos/mt-photos-ai, onnx/server.py.
    def as_texts(vector: np.ndarray) -> dict[str, Any]:
        return {"result": [f"{number:.16f}" for number in server.padded(vector)]}

    @app.post("/clip/img")
    async def clip_image(file: Annotated[bytes, File()]) -> dict[str, Any]:
        """MT Photos: the embedding of an image; `msg` if it cannot be read."""
        try:
            return as_texts((await server.encoder.embed_images([file]))[0])
        except (
            RefusedError
        ):  # busy: with a status, so that the app does not count the image as broken
            raise
        except DcclipError as error:
            return {"result": [], "msg": translated(error.what)}

    @app.post("/clip/txt")
    async def clip_text(text: Annotated[str, Body(embed=True)]) -> dict[str, Any]:
        """MT Photos: the embedding of a text."""
        return as_texts((await server.encoder.embed_texts([text]))[0])

    @app.post("/check")
    async def check() -> dict[str, str]:
        """MT Photos: whether the server is up and the `api-key` is the token."""
        return {"result": "pass", "title": "dcclip"}


def _json(content: dict[str, Any]) -> Response:
    """Long lists of numbers take `json` three times as long as the model."""
    return Response(to_json(content), media_type="application/json")


def _add_search(app: FastAPI, server: Server) -> None:
    filters = Filters(server.live)
    filtering = asyncio.Lock()

    async def filtered(indexes: Sequence[ImageIndex], *choice: Any) -> Sequence[ImageIndex]:
        async with filtering:
            return await asyncio.to_thread(filters.apply, indexes, *choice)

    @app.post("/search")
    async def search(
        text: Annotated[
            list[str], Form(description="Texts that are added up, less words after a minus.")
        ] = [],  # noqa: B006
        without: Annotated[
            list[str], Form(alias="not", description="Texts that are subtracted.")
        ] = [],  # noqa: B006
        image: Annotated[list[UploadFile], File(description="Images that are added up.")] = [],  # noqa: B006
        top_k: Annotated[int, Form(ge=1, le=1000)] = 24,
        under: Annotated[
            str, Form(description="Search below this folder only, by its url in /folders.")
        ] = "",
        after: Annotated[
            date | None, Form(description="Search images of this day and later ones only.")
        ] = None,
        before: Annotated[
            date | None, Form(description="Search images of this day and earlier ones only.")
        ] = None,
    ) -> dict[str, Any]:
        """The images nearest to what is asked for, scores are cosines; and what the model never
        learnt.

        `images` are searched, of which `hits` have at least half of the best score.
        """
        indexes = server.folders()
        if under or after or before:
            # Another request waits for this one, also if its client leaves: it may read the dates
            # of all photographs.
            indexes = await asyncio.shield(
                asyncio.create_task(filtered(indexes, under, after, before))
            )
        texts, minus = split_excluded(filter(str.strip, text), filter(str.strip, without))
        files = [await upload.read() for upload in image]
        if not texts and not files:
            raise DcclipError("the request has neither text nor an image", "send an image or text")
        query, unknown = await server.query(texts, minus, files)
        nearest = await server.encoder.in_pool(search_all, indexes, query, top_k)
        results = [_shown_hit(indexes, hit) for hit in nearest]
        hits = 0
        fits = bool(results)
        if results:
            hits = await server.encoder.in_pool(count_all, indexes, query, results[0]["score"] / 2)
        if results and not files:
            encoder = server.encoder.encoder
            fits = await server.encoder.in_pool(query_fits, encoder, indexes, texts)
        images = sum(len(index.images) for index in indexes)
        answer = {"results": results, "unknown": unknown, "fits": fits}
        return answer | {"hits": hits, "images": images}


def _shown_hit(indexes: Sequence[ImageIndex], hit: Hit) -> dict[str, Any]:
    """A hit with its score, in the innermost of the folders that contain it."""
    above = [place for place, index in enumerate(indexes) if hit.image.is_relative_to(index.folder)]
    folder = max(above, key=lambda place: len(indexes[place].folder.parts))
    name = str(hit.frame.relative_to(indexes[folder].folder))
    return _shown_image(folder, name) | {"score": round(hit.score, 6)}


def _add_duplicates(app: FastAPI, server: Server) -> None:
    compared: Sequence[ImageIndex] = ()
    task: asyncio.Task[dict[str, Any]] | None = None

    def compare(indexes: Sequence[ImageIndex]) -> dict[str, Any]:
        places = {
            index.folder / name: (folder, name)
            for folder, index in enumerate(indexes)
            for name in filterfalse(is_video, index.images)
        }
        result = find_duplicates(places, lambda _: indexes, server.live)
        answer = dict[str, Any]()
        for kind, groups in (("copies", result.copies), ("bursts", result.bursts)):
            answer[kind] = [
                [
                    _shown_image(*places[photo.image])
                    | {"width": photo.width, "height": photo.height}
                    for photo in group
                ]
                for group in groups
            ]
        return answer

    @app.get("/duplicates")
    async def duplicates() -> Response:
        """Groups of copies, the largest image first, and bursts: similar images that were taken
        within seconds.
        """
        nonlocal compared, task
        while True:
            indexes = server.folders()
            if task is None or (task.done() and (compared is not indexes or task.exception())):
                compared = indexes
                task = asyncio.create_task(asyncio.to_thread(compare, indexes))
            is_current = compared is indexes
            answer = await asyncio.shield(task)  # which goes on for others if a client leaves
            if is_current:
                return _json(answer)


def _shown_image(folder: int, name: str) -> dict[str, Any]:
    """What a client sees of an image, or a frame of a video, whose name may not be UTF-8; no path
    of the server.
    """
    file, time_s = split_frame(name)
    path = os.fsencode(file).decode(errors="replace")
    url = f"images/{folder}/{quote(os.fsencode(file))}"
    if time_s is None:
        return {"folder": folder, "path": path, "url": url}
    shown = {
        "folder": folder,
        "path": f"{path} @ {clock(time_s)}",
        "url": url + quote(frame_name("", time_s)),
    }
    return shown | {"time_s": time_s, "video": frame_name(url, time_s)}


def _add_images(app: FastAPI, server: Server) -> None:
    thumbnail = partial(jpeg_thumbnail, max_px=_THUMBNAIL_PX)
    preview = partial(jpeg_thumbnail, max_px=_PREVIEW_PX)

    def missing() -> RefusedError:
        return RefusedError("unknown image", "use a url from a /search response", status=404)

    def read_file(file: Path, size: int) -> tuple[bytes, os.stat_result]:
        """The first bytes of a file that is in the folders now: it may have been replaced since it
        was indexed.
        """
        if not is_within(file, server.live.folders):
            raise missing()
        refuse_special(file)
        with file.open("rb") as stream:
            return stream.read(size), os.fstat(stream.fileno())

    @app.get("/images/{folder}/{path:path}")
    async def picture(
        request: Request,
        folder: int,
        path: str,
        small: Annotated[bool, Query(description="A thumbnail.")] = False,
        large: Annotated[
            bool, Query(description="A JPEG, where browsers do not show the format.")
        ] = False,
    ) -> Response:
        """An image or a video that is searched. A frame of a video is `small` in any case."""
        name = os.fsdecode(
            unquote_to_bytes(request.scope["raw_path"]).split(b"/", 3)[3]
        )  # `path` has to be UTF-8
        indexes = server.live.current
        video, time_s = split_frame(name)
        if not 0 <= folder < len(indexes) or video not in indexes[folder].images:
            raise missing()
        file = indexes[folder].folder / video
        is_original = time_s is None and (is_video(video) or not small)
        size = _MAX_PICTURE + 1 if is_original and not is_video(video) else _START_BYTES
        try:
            content, status = await server.encoder.in_pool(read_file, file, size)
            if is_video(video) and not is_video_start(content):
                raise missing()
            if is_video(video) and is_original:
                return _VideoResponse(file, stat_result=status)
            if not is_original:
                [content] = await server.encoder.make_of_images(
                    [(indexes[folder].folder / name, thumbnail)]
                )
            elif large and mime_type(content) not in _SHOWN:
                [content] = await server.encoder.make_of_images([(file, preview)])
        except (OSError, DcclipError) as error:  # it was removed or replaced
            raise error if isinstance(error, RefusedError) else missing() from None
        if (kind := mime_type(content)) is None or len(content) > _MAX_PICTURE:
            raise missing()
        return Response(
            content,
            media_type=kind,
            headers={"Cache-Control": "private, max-age=3600"} if small else {},
        )


class _VideoResponse(FileResponse):
    """A file that may change while it is sent: then the connection ends, without a traceback."""

    async def __call__(self, scope: Scope, receive: Any, send: Any) -> None:
        remaining = 0

        async def send_part(message: Any) -> None:
            nonlocal remaining
            if message["type"] == "http.response.start":
                remaining = int(dict(message["headers"])[b"content-length"])
            else:
                remaining -= len(message["body"])
                message["more_body"] |= (
                    remaining > 0
                )  # else a shorter file would be a complete answer
            await send(message)

        with suppress(h11.LocalProtocolError, OSError):
            await super().__call__(scope, receive, send_part)


def _shown_subfolders(indexes: Sequence[ImageIndex]) -> list[dict[str, Any]]:
    """The folders next below those that are searched; of several also these."""
    subfolders = []
    for folder, index in enumerate(indexes):
        tops = {name.split(os.sep)[0] for name in index.images if os.sep in name}
        if len(indexes) > 1:
            subfolders.append(_shown_image(folder, ""))
        subfolders += [_shown_image(folder, top) for top in sorted(tops)[:_MOST_SUBFOLDERS]]
    return subfolders


class _ExampleSearches:
    """The example searches that fit the folders best; chosen again after a minute."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self._vectors = np.empty(0)
        self._chosen: list[dict[str, str]] = []
        self._chosen_s = 0.0

    async def choose(self, indexes: Sequence[ImageIndex]) -> list[dict[str, str]]:
        if self._chosen and time.monotonic() - self._chosen_s <= _EXAMPLES_S:
            return self._chosen
        encoder = self._server.encoder
        if not len(self._vectors):
            texts = [*_EXAMPLE_SEARCHES, *_EXAMPLE_SEARCHES.values()]
            self._vectors = await encoder.embed_texts(texts)
        pairs = self._vectors.reshape(2, -1, self._server.dims).swapaxes(0, 1)
        scores = []
        for pair in pairs:
            nearest = await encoder.in_pool(search_all, indexes, direction(pair), _NEAREST)
            scores.append(nearest[len(nearest) // 2].score)
        fitting = best(list(_EXAMPLE_SEARCHES), np.array(scores), _EXAMPLES)
        self._chosen = [{"en": name, "zh": _EXAMPLE_SEARCHES[name]} for name, _ in fitting]
        self._chosen_s = time.monotonic()
        return self._chosen


def _add_page(app: FastAPI, server: Server) -> None:
    described: tuple[Sequence[ImageIndex], dict[str, Any]] | None = None
    examples = _ExampleSearches(server)

    @app.get("/folders")
    async def folders() -> dict[str, Any]:
        """The folders that are searched, those in them, some images, and searches that find
        something.
        """
        nonlocal described
        indexes = server.live.current
        if described and described[0] is indexes:
            return described[1]
        images = [
            (folder, name) for folder, index in enumerate(indexes) for name in index.images.values()
        ]
        samples = [_shown_image(*image) for image in images[:: max(1, -(-len(images) // _SAMPLES))]]
        names = [
            (index.folder.resolve().name or "/").encode(errors="replace").decode()
            for index in indexes
        ]
        answer = {
            "folders": names,
            "subfolders": _shown_subfolders(indexes),
            "images": len(images),
            "samples": samples,
            "examples": await examples.choose(indexes) if images else [],
        }
        described = indexes, answer
        return answer

    page_files = {}
    for folder in (SHARED_PAGE, Path(__file__).with_name("page")):
        for file in folder.iterdir():
            page_files[file.name] = file.read_bytes(), _PAGE_TYPES[file.suffix]

    @app.get("/page/{name}", include_in_schema=False)
    async def page_file(name: str) -> Response:
        if name not in page_files:
            raise HTTPException(404)
        content, kind = page_files[name]
        return Response(content, media_type=kind, headers={"Cache-Control": "no-cache"})

    @app.get("/", response_class=HTMLResponse)
    async def root() -> Response:
        """A page to search with; a `?token=` goes to a cookie."""
        return HTMLResponse(
            page_files["index.html"][0], headers={"Content-Security-Policy": _PAGE_POLICY}
        )
