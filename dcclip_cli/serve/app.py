"""The requests that `dcclip serve` answers: OpenAI's embeddings, classification, immich's protocol, image search."""

from __future__ import annotations

import asyncio
import base64
import gc
import json
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from fastapi import FastAPI, File, Form, Query, Request, UploadFile
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse, HTMLResponse, PlainTextResponse, Response
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from pydantic import BaseModel, Field
from pydantic_core import to_json
from starlette.exceptions import HTTPException
from starlette.formparsers import MultiPartParser

from dcclip_cli.errors import DcclipError, Message
from dcclip_cli.html import jpeg_thumbnail
from dcclip_cli.inference.encoder import Encoder
from dcclip_cli.inference.images import read
from dcclip_cli.inference.index import Index, direction, search_all
from dcclip_cli.inference.model import best
from dcclip_cli.inference.zero_shot import Labels
from dcclip_cli.model.known import unknown_of
from dcclip_cli.serve.batches import BatchedEncoder, RefusedError, data_url_bytes
from dcclip_cli.serve.guard import MAX_BODY, Guard, Metrics, error_response, language_of
from dcclip_cli.text import split
from dcclip_cli.versions import VERSION

MAX_LABELS = 1000
_THUMBNAIL_PX = 480
_PAGE_POLICY = "default-src 'self'; img-src 'self' blob:; style-src 'unsafe-inline'; script-src 'unsafe-inline'"
_OF_LABELS = "Labels in Chinese, English or both, separated by , ， or 、."


class Part(BaseModel):
    """A part of a chat message: a text, or an image as a data URL."""

    type: Literal["text", "image_url"]
    text: str = ""
    image_url: dict[str, str] = {}

    def input(self) -> str:
        return self.text if self.type == "text" else self.image_url.get("url", "data:")


class ChatMessage(BaseModel):
    """A message as vLLM takes them for embeddings; its parts are one input each."""

    role: str = "user"
    content: str | list[Part]


class EmbeddingRequest(BaseModel):
    """OpenAI's request for embeddings. An input that begins with `data:image/` is an image."""

    input: str | list[str] | list[int] | list[list[int]] | None = None
    messages: list[ChatMessage] = []
    model: str = ""
    encoding_format: Literal["float", "base64"] = "float"
    dimensions: int | None = Field(None, ge=1, le=8192)

    def inputs(self) -> list[str]:
        """The texts and data URLs that are asked for. Raises DcclipError for token ids."""
        if self.input is not None:
            given = [self.input] if isinstance(self.input, str) else self.input
            if any(not isinstance(one, str) for one in given):
                hint = Message("send texts; with LangChain's OpenAIEmbeddings: check_embedding_ctx_length=False")
                raise DcclipError("the input is token ids of another model's tokenizer", hint)
            return [one for one in given if isinstance(one, str)]
        parts = [[one.content] if isinstance(one.content, str) else [part.input() for part in one.content]
                 for one in self.messages]  # fmt: skip
        return [text for texts in parts for text in texts if text]


class Server:
    """What the routes share: the encoder, indexes of folders, labels that were asked for, and what immich asks for."""

    def __init__(
        self, encoder: Encoder, indexes: Sequence[Index], immich_dims: int, say: Callable[[str], object]
    ) -> None:
        self.metrics = Metrics(lambda kind: (self.encoder.texts if kind == "text" else self.encoder.images).waiting)
        self.encoder = BatchedEncoder(encoder, lambda kind, size: self.metrics.batches.labels(kind).observe(size))
        self.indexes, self.immich_dims, self._say = indexes, immich_dims, say
        self.stopping = False  # set once no more requests are taken
        self.dims = encoder.encode_texts(["狗"]).shape[1]
        self._labels: dict[tuple[Any, ...], Labels] = {}
        self._immich_names: set[str] = set()

    async def vectors(self, inputs: Sequence[str]) -> np.ndarray:
        """Embeddings (N, D) of texts and data URLs of images, in their order."""
        if not inputs:
            raise DcclipError("there is no input", "send a text, or an image as a data URL")
        is_image = np.array([one.startswith("data:") for one in inputs])
        files = [data_url_bytes(one) for one in inputs if one.startswith("data:")]
        texts = [one for one in inputs if not one.startswith("data:")]
        asked = [self.encoder.embed_images(files)] if files else []
        asked += [self.encoder.embed_texts(texts)] if texts else []
        found = await asyncio.gather(*asked)
        rows = np.empty((len(inputs), self.dims), np.float32)
        if files:
            rows[is_image] = found[0]
        if texts:
            rows[~is_image] = found[-1]
        return rows

    async def labels(self, names: Sequence[str], multi_label: bool) -> Labels:
        """The labels' embeddings, of which the last 100 sets are kept."""
        if len(names) > MAX_LABELS:
            raise DcclipError("{:,} labels in a request", "send up to {:,}", len(names), MAX_LABELS)
        key = (*names, multi_label)
        if key not in self._labels:
            made = await self.encoder.in_pool(Labels, self.encoder.encoder, names, None, multi_label)
            while len(self._labels) >= 100:
                del self._labels[next(iter(self._labels))]
            self._labels[key] = made
        return self._labels[key]

    def for_immich(self, vector: np.ndarray) -> str:
        """An embedding as immich takes it: a list in JSON as a text. Zeros at its end change no cosine."""
        return to_json(np.pad(vector, (0, max(0, self.immich_dims - len(vector)))).tolist()).decode()

    def note_immich(self, name: str) -> None:
        """Say once which model immich asks for; it gets this one."""
        if name not in self._immich_names and len(self._immich_names) < 100:
            self._immich_names.add(name)
            self._say(Message("serve: immich asks for {!r}, and gets {}", name[:100], self.encoder.encoder.name))


def application(
    encoder: Encoder,
    indexes: Sequence[Index] = (),
    token: str | None = None,
    immich_dims: int = 512,
    hosts: Sequence[str] = (),
    say: Callable[[str], object] = lambda _: None,
) -> FastAPI:
    """The ASGI application. `hosts` are the names it answers to, all by default."""
    server = Server(encoder, indexes, immich_dims, say)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        gc.freeze()  # what the imports made is never garbage: going through it takes 50 ms, in which nobody is answered
        async with server.encoder.running():
            yield

    MultiPartParser.spool_max_size = MAX_BODY  # no uploads on disk
    app = FastAPI(title="dcclip", version=VERSION, lifespan=lifespan)
    app.state.server = server
    app.add_middleware(Guard, metrics=server.metrics, token=token, stopping=lambda: server.stopping)
    if hosts:
        from starlette.middleware.trustedhost import TrustedHostMiddleware

        app.add_middleware(TrustedHostMiddleware, allowed_hosts=list(hosts))
    _add_errors(app)
    _add_status(app, server)
    _add_model(app, server)
    _add_immich(app, server)
    _add_search(app, server)
    return app


def _add_errors(app: FastAPI) -> None:
    @app.exception_handler(DcclipError)
    async def refused(request: Request, error: DcclipError) -> Response:
        status = error.status if isinstance(error, RefusedError) else 422
        return error_response(status, error, language_of(request.scope), {"Retry-After": "1"} if status == 429 else {})

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> Response:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"] if isinstance(part, str))
        said = DcclipError("the request is not as it should be: {}: {}", "see /docs for its form", where, first["msg"])
        return error_response(422, said, language_of(request.scope))

    @app.exception_handler(HTTPException)
    async def other(request: Request, error: HTTPException) -> Response:
        said = DcclipError("{}", "see /docs for what there is", error.detail)
        return error_response(error.status_code, said, language_of(request.scope), error.headers)


def _add_status(app: FastAPI, server: Server) -> None:
    @app.get("/health")
    async def health() -> dict[str, Any]:
        """The model, and how many images can be searched."""
        images = sum(len(index.paths) for index in server.indexes)
        return {"status": "ok", "model": server.encoder.encoder.name, "dimensions": server.dims, "images": images}

    @app.get("/metrics")
    async def metrics() -> Response:
        """Counters in Prometheus's form."""
        return Response(generate_latest(server.metrics.registry), media_type=CONTENT_TYPE_LATEST)


def _add_model(app: FastAPI, server: Server) -> None:
    name = server.encoder.encoder.name

    @app.get("/v1/models")
    async def models() -> dict[str, Any]:
        """The one model, as OpenAI lists them."""
        return {"object": "list", "data": [{"id": name, "object": "model", "created": 0, "owned_by": "dcclip"}]}

    @app.post("/v1/embeddings")
    async def embeddings(asked: EmbeddingRequest) -> Response:
        """Embeddings of length 1 of texts and of images as data URLs, in OpenAI's form."""
        rows = await server.vectors(asked.inputs())
        if asked.dimensions is not None:
            if asked.dimensions > server.dims:
                raise DcclipError("{} has embeddings of {} numbers", "ask for no more dimensions", name, server.dims)
            rows = rows[:, : asked.dimensions]
            rows = rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)
        coded = asked.encoding_format == "base64"
        data = [
            {
                "object": "embedding",
                "index": index,
                "embedding": base64.b64encode(row.astype("<f4").tobytes()).decode() if coded else row.tolist(),
            }
            for index, row in enumerate(rows)
        ]
        usage = {"prompt_tokens": 0, "total_tokens": 0}  # nothing is charged
        return _json({"object": "list", "data": data, "model": name, "usage": usage})

    @app.post("/classify")
    async def classify(
        image: Annotated[UploadFile, File(description="The file of an image.")],
        labels: Annotated[str, Form(description=_OF_LABELS)],
        multi_label: Annotated[bool, Form(description="Judge each label by itself.")] = False,
        top_k: Annotated[int, Form(ge=1)] = 5,
    ) -> dict[str, Any]:
        """The most probable labels of an image, the best first, and those that the model never learnt."""
        ready = await server.labels(split(labels), multi_label)
        rows = ready.probabilities(await server.encoder.embed_images([await image.read()]))
        found = best(ready.names, rows[0], top_k)
        listed = [{"label": label, "probability": round(value, 6)} for label, value in found]
        return {"labels": listed, "unknown": ready.unknown}


def _add_immich(app: FastAPI, server: Server) -> None:
    @app.get("/ping")
    async def ping() -> PlainTextResponse:
        """What immich asks to see whether this server is there."""
        return PlainTextResponse("pong")

    @app.post("/predict")
    async def predict(
        entries: Annotated[str, Form(description='{"clip": {"visual" or "textual": {"modelName": "NAME"}}}')],
        image: Annotated[bytes | None, File()] = None,
        text: Annotated[str | None, Form()] = None,
    ) -> Response:
        """immich's machine-learning protocol, the part for its smart search; any model name gets this model."""
        server.note_immich(_immich_model(entries, "visual" if image is not None else "textual"))
        if image is not None:
            rows, [(width, height)] = await server.encoder.sized_images([image])
            return _json({"clip": server.for_immich(rows[0]), "imageHeight": height, "imageWidth": width})
        if text is None:
            raise RefusedError("there is neither an image nor a text", "send one of them", status=400)
        return _json({"clip": server.for_immich((await server.encoder.embed_texts([text]))[0])})


def _json(content: dict[str, Any]) -> Response:
    """Long lists of numbers take `json` three times as long as the model."""
    return Response(to_json(content), media_type="application/json")


def _immich_model(entries: str, kind: str) -> str:
    """The name of the model in immich's `entries`. Raises RefusedError for other tasks than `clip`."""
    try:
        asked = json.loads(entries)
        task, name = next(iter(asked)), asked["clip"][kind]["modelName"] if list(asked) == ["clip"] else ""
    except (ValueError, TypeError, KeyError, AttributeError, StopIteration, RecursionError):
        what = Message('entries should be {{"clip": {{"{}": {{"modelName": "NAME"}}}}}}', kind)
        raise DcclipError(what, "see immich's machine-learning/") from None
    if task != "clip" or len(asked) != 1 or not isinstance(name, str):
        what = Message("this server does clip, not {}", str(task)[:40])
        raise RefusedError(
            what, "turn it off in immich's settings, or name immich's own server after this one", status=422
        )
    return name


def _add_search(app: FastAPI, server: Server) -> None:
    shown = [frozenset(index.paths) for index in server.indexes]

    @app.post("/search")
    async def search(
        text: Annotated[list[str], Form(description="Texts that are added up.")] = [],  # noqa: B006
        without: Annotated[list[str], Form(alias="not", description="Texts that are subtracted.")] = [],  # noqa: B006
        image: Annotated[list[UploadFile], File(description="Images that are added up.")] = [],  # noqa: B006
        top_k: Annotated[int, Form(ge=1, le=1000)] = 24,
    ) -> dict[str, Any]:
        """The images nearest to what is asked for, scores are cosines; and the texts that the model never learnt."""
        if not server.indexes:
            raise RefusedError("no folder is searched", "start with: dcclip serve --folder DIR", status=404)
        texts, files = [one for one in text if one.strip()], [await one.read() for one in image]
        minus = [one for one in without if one.strip()]
        if not texts and not files:
            raise DcclipError("there is no text and no image", "send one of them")
        added = [await server.encoder.embed_texts(texts)] if texts else []
        unknown = unknown_of(server.encoder.encoder.known, texts, added[0]) if texts else []
        added += [await server.encoder.embed_images(files)] if files else []
        query = direction(np.concatenate(added), await server.encoder.embed_texts(minus) if minus else None)
        results = []
        for hit in await server.encoder.in_pool(search_all, server.indexes, query, top_k):
            number, index = next(
                (place, one) for place, one in enumerate(server.indexes) if hit.image.is_relative_to(one.folder)
            )
            name = hit.image.relative_to(index.folder)
            results.append({"image": str(hit.image), "folder": number, "path": str(name), "score": round(hit.score, 6)})
        return {"results": results, "unknown": unknown}

    @app.get("/images/{folder}/{path:path}")
    async def picture(folder: int, path: str, small: Annotated[bool, Query()] = False) -> Response:
        """An image of a folder that is searched, or a `small` one."""
        if not 0 <= folder < len(shown) or path not in shown[folder]:
            raise RefusedError("there is no such image", "take folder and path from an answer of /search", status=404)
        file = server.indexes[folder].folder / path
        if not small:
            return FileResponse(file)
        content = await server.encoder.in_pool(lambda: jpeg_thumbnail(read(file), _THUMBNAIL_PX))
        return Response(content, media_type="image/jpeg", headers={"Cache-Control": "private, max-age=3600"})

    page = Path(__file__).with_name("page.html").read_text("utf-8")

    @app.get("/", response_class=HTMLResponse)
    async def root(token: str | None = None) -> Response:
        """A page to search with; `?token=` is kept in a cookie."""
        response = HTMLResponse(page, headers={"Content-Security-Policy": _PAGE_POLICY})
        if token:
            response.set_cookie("dcclip_token", token, httponly=True, samesite="strict")
        return response
