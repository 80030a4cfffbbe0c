"""What stands before every request: the token, the limits of bodies and of requests at a time, and the counters."""

from __future__ import annotations

import asyncio
import hmac
import time
from collections.abc import Callable, MutableMapping
from contextlib import suppress
from functools import partial
from typing import Any

from fastapi.responses import JSONResponse
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector
from starlette.requests import Request

from dcclip_cli.errors import DcclipError, Language, Message, translated
from dcclip_cli.serve.batches import RefusedError, busy
from dcclip_cli.text import size_in_words

MAX_BODY = 32 << 20  # bytes of one request
_ALL_BODIES = 256 << 20  # bytes of the requests that are here
_BODY_S = 30.0  # in which a body has to arrive
_DISCARD_S = 2.0  # in which the rest of a refused body may arrive
_AT_A_TIME = 512  # requests
_OPEN = ("/health", "/ping")  # to anyone
_COOKIE = "dcclip_token"

Scope = MutableMapping[str, Any]


def error_response(status: int, error: DcclipError, language: Language, headers: Any = None) -> JSONResponse:
    """An error in OpenAI's form, in the client's language, with a hint."""
    kind = "invalid_request_error" if status < 500 and status != 429 else "server_error"
    content = {"message": translated(error.what, language), "hint": translated(error.hint, language)}
    return JSONResponse({"error": content | {"type": kind, "code": status}}, status, headers)


def language_of(scope: Scope) -> Language:
    """The language that the client prefers."""
    accepted = dict(scope["headers"]).get(b"accept-language", b"")
    return "zh" if accepted[:2].lower() == b"zh" else "en"


class Metrics:
    """The numbers of GET /metrics."""

    def __init__(self, waiting: Callable[[str], int]) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        given: Any = {"registry": self.registry}
        self.requests = Counter("dcclip_requests", "Requests answered.", ["path", "status"], **given)
        self.seconds = Histogram("dcclip_request_seconds", "Time to answer a request.", ["path"], **given)
        sizes = (1, 2, 4, 8, 16, 32, 64)
        self.batches = Histogram("dcclip_batch_size", "Inputs in a batch.", ["kind"], buckets=sizes, **given)
        for kind in ("text", "image"):
            gauge = Gauge(f"dcclip_waiting_{kind}s", "Inputs in the queue.", **given)
            gauge.set_function(partial(waiting, kind))


class Guard:
    """ASGI middleware that reads each body, within limits, before the application sees the request."""

    def __init__(self, app: Any, metrics: Metrics, token: str | None, stopping: Callable[[], bool]) -> None:
        self._app, self._metrics, self._token, self._stopping = app, metrics, token, stopping
        self._requests = self._bytes = 0

    async def __call__(self, scope: Scope, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        begin, status, size, more = time.perf_counter(), 0, 0, True

        async def noting(message: Any) -> None:
            nonlocal status
            status = message.get("status", status)
            await send(message)

        self._requests += 1
        try:
            self._admit(scope)
            body = bytearray()
            async with asyncio.timeout(_BODY_S):
                while more:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        return
                    size += len(message.get("body", b""))
                    self._bytes += len(message.get("body", b""))
                    more = message.get("more_body", False)
                    self._check_size(size)
                    body += message.get("body", b"")
            await self._app(scope, _replayed(bytes(body), receive), noting)
        except RefusedError as error:
            if more:
                await _discard(receive)
            headers = {"Retry-After": "1"} if error.status == 429 else {"Connection": "close"}
            await error_response(error.status, error, language_of(scope), headers)(scope, receive, noting)
        except TimeoutError:
            late = DcclipError("the body did not arrive within {:.0f} s", "send it again", _BODY_S)
            await error_response(408, late, language_of(scope), {"Connection": "close"})(scope, receive, noting)
        finally:
            self._requests -= 1
            self._bytes -= size
            path = getattr(scope.get("route"), "path", "other")
            self._metrics.requests.labels(path, status).inc()
            self._metrics.seconds.labels(path).observe(time.perf_counter() - begin)

    def _admit(self, scope: Scope) -> None:
        request = Request(scope)
        if self._token is not None and scope["path"] not in _OPEN:
            given = (
                request.headers.get("authorization", "").removeprefix("Bearer ").strip(),
                request.cookies.get(_COOKIE, ""),
                *request.query_params.getlist("token"),
            )
            if not any(hmac.compare_digest(one.encode(), self._token.encode()) for one in given):
                raise RefusedError(
                    "the token is missing or wrong", "send the header Authorization: Bearer TOKEN", status=401
                )
        if self._stopping():
            raise RefusedError("the server is stopping", "try again in a minute", status=503)
        if self._requests > _AT_A_TIME:
            raise busy()
        length = request.headers.get("content-length", "0")
        self._check_size(int(length) if length.isdigit() else 0)

    def _check_size(self, size: int) -> None:
        if size > MAX_BODY:
            larger = Message("the body is larger than {}", size_in_words(MAX_BODY))
            raise RefusedError(larger, "send fewer or smaller images", status=413)
        if self._bytes > _ALL_BODIES:
            raise busy()


async def _discard(receive: Any) -> None:
    """Read on for a while: a connection that is closed with data unread is reset, and its client loses the answer."""
    with suppress(TimeoutError):
        async with asyncio.timeout(_DISCARD_S):
            left = MAX_BODY
            while left > 0 and (message := await receive()).get("more_body", False):
                left -= len(message["body"])


def _replayed(body: bytes, receive: Any) -> Any:
    """A `receive` that gives the whole body once, and then what the server says."""
    given = False

    async def again() -> Any:
        nonlocal given
        if given:
            return await receive()
        given = True
        return {"type": "http.request", "body": body, "more_body": False}

    return again
