"""What stands before every request: its host, the token, limits of bodies and answers, and the
counters.
"""

import asyncio
import hmac
import re
import time
from collections.abc import Callable, Collection, MutableMapping
from functools import partial
from typing import Any
from urllib.parse import urlencode

import anyio
from fastapi.responses import JSONResponse, RedirectResponse, Response
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector
from starlette.requests import Request

from dcclip_cli.core.errors import DcclipError, Language, Message, translated
from dcclip_cli.core.text import size_in_words
from dcclip_cli.serve.batches import RefusedError, busy

MAX_BODY = 32 << 20  # bytes of one request
_MAX_BYTES = 128 << 20  # of all requests and answers
_SMALL_BYTES = (
    64 << 10
)  # of a request or an answer that is taken although others have used _MAX_BYTES up
_SENT_BYTES = 256 << 10  # of an answer at a time: the rest counts until the client has taken them
_BODY_S = 30.0  # in which a body has to arrive
_OPEN = re.compile("/|/health|/ping|/page/.*")  # to anyone: the page without its pictures
_HOST = re.compile(
    r"(\[[\da-fA-F:.]+\]|[\w.-]+)(?::\d{1,5})?", re.ASCII
)  # a name, or an IPv6 address, and a port
_SIGN_IN = "/token"  # where the page sends a token that a user types
_COOKIE = "dcclip_token"
_SAFETY = [
    (b"content-security-policy", b"frame-ancestors 'none'"),
    (b"cross-origin-resource-policy", b"same-origin"),  # no page of another site shows pictures
    (b"referrer-policy", b"no-referrer"),
    (b"x-content-type-options", b"nosniff"),
]

Scope = MutableMapping[str, Any]


def error_response(
    scope: Scope, error: DcclipError, status: int = 422, headers: Any = None
) -> JSONResponse:
    """An error in OpenAI's form, in the language that the client prefers, with a hint."""
    chinese = dict(scope["headers"]).get(b"accept-language", b"")[:2].lower() == b"zh"
    language: Language = "zh" if chinese else "en"
    status = error.status if isinstance(error, RefusedError) else status
    kind = "invalid_request_error" if status < 500 and status != 429 else "server_error"
    texts = {"message": translated(error.what, language), "hint": translated(error.hint, language)}
    content = {
        name: text.encode(errors="replace").decode() for name, text in texts.items()
    }  # half a surrogate pair
    headers = {429: {"Retry-After": "1"}, 408: {"Connection": "close"}}.get(status, headers)
    for_mt_photos = {"detail": "Invalid API key"} if status == 401 else {}
    return JSONResponse(
        {"error": content | {"type": kind, "code": status}, **for_mt_photos}, status, headers
    )


class Metrics:
    def __init__(self, waiting: Callable[[str], int]) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        registered: Any = {"registry": self.registry}
        self.requests = Counter(
            "dcclip_requests", "Requests answered.", ["path", "status"], **registered
        )
        self.seconds = Histogram(
            "dcclip_request_seconds", "Time to answer a request.", ["path"], **registered
        )
        sizes = (1, 2, 4, 8, 16, 32, 64)
        self.batches = Histogram(
            "dcclip_batch_size", "Inputs in a batch.", ["kind"], buckets=sizes, **registered
        )
        for kind in ("text", "image"):
            gauge = Gauge(f"dcclip_waiting_{kind}s", "Inputs in the queue.", **registered)
            gauge.set_function(partial(waiting, kind))


class Guard:
    """ASGI middleware that reads bodies within limits, answers to `hosts` only, and cancels
    abandoned requests.
    """

    def __init__(
        self, app: Any, metrics: Metrics, token: str | None, hosts: Collection[str]
    ) -> None:
        self._app = app
        self._metrics = metrics
        self._token = token
        self._hosts = hosts
        self._sizes: dict[object, int] = {}  # bytes of the body and the answer of each request

    async def __call__(self, scope: Scope, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        begin = time.perf_counter()
        request = object()
        start: Any = {"status": 0}
        is_begun = False  # of a video, there are many messages

        async def answer(message: Any) -> None:
            nonlocal start, is_begun
            if message["type"] == "http.response.start":
                start = message
                return
            content = message.get("body", b"")
            continues = message.get("more_body", False)
            self._sizes[request] += len(content)
            if self._is_full(len(content)):
                self._sizes[request] -= len(content)
                return await error_response(scope, busy())(scope, receive, answer)
            if not is_begun:
                await send(start | {"headers": [*start["headers"], *_SAFETY]})
            is_begun = True
            for first in range(0, len(content) or 1, _SENT_BYTES):
                part = content[first : first + _SENT_BYTES]
                is_part = continues or first + len(part) < len(content)
                await send({"type": "http.response.body", "body": part, "more_body": is_part})
            self._sizes[request] -= len(content) if continues else 0

        self._sizes[request] = 0
        try:
            response = self._admit(scope)
            body = await self._read(request, receive)
            if response is not None:
                await response(scope, receive, answer)
            elif body is not None:
                await self._run_while_connected(scope, body, receive, answer)
        except RefusedError as error:
            self._sizes[request] = 0
            await error_response(scope, error)(scope, receive, answer)
        finally:
            del self._sizes[request]
            path = getattr(scope.get("route"), "path", "other")
            self._metrics.requests.labels(path, start["status"]).inc()
            self._metrics.seconds.labels(path).observe(time.perf_counter() - begin)

    def _admit(self, scope: Scope) -> Response | None:
        """The answer to a page that sends a token, in its address or as a header: the token goes
        to a cookie.
        """
        request = Request(scope)
        host = _HOST.fullmatch(request.headers.get("host", ""))
        if self._hosts and (host is None or host[1].strip("[]").lower() not in self._hosts):
            raise RefusedError(
                "the Host header names another server",
                "use the address that dcclip serve prints",
                status=400,
            )
        path = scope["path"]
        token = request.headers.get("authorization", "").removeprefix("Bearer ").strip()
        token = token or request.headers.get("api-key", "")  # of MT Photos
        is_link = path == "/" and "token" in request.query_params
        if is_link:
            token = request.query_params["token"]
            query = urlencode(
                [item for item in request.query_params.multi_items() if item[0] != "token"]
            )
            scope["query_string"] = query.encode()  # which uvicorn logs
        token = token or request.cookies.get(_COOKIE, "")
        is_admitted = self._token is None or hmac.compare_digest(
            token.encode(), self._token.encode()
        )
        if not is_admitted and not _OPEN.fullmatch(path):
            raise RefusedError(
                "the token is missing or wrong",
                "send the header Authorization: Bearer TOKEN",
                status=401,
            )
        length = request.headers.get("content-length", "0")
        self._check_size(int(length) if length.isdigit() else 0)
        if not is_link and path != _SIGN_IN:
            return None
        response = (
            RedirectResponse(f"./?{query}".rstrip("?"), 303)
            if is_link
            else Response(status_code=204)
        )
        if self._token is not None and is_admitted:
            response.set_cookie(_COOKIE, self._token, httponly=True, samesite="strict")
        return response

    async def _run_while_connected(
        self, scope: Scope, body: bytes, receive: Any, send: Any
    ) -> None:
        messages = iter([{"type": "http.request", "body": body, "more_body": False}])

        async def receive_body() -> Any:
            if (message := next(messages, None)) is None:
                await anyio.sleep_forever()  # the other task waits for the client to leave
            return message

        async with anyio.create_task_group() as tasks:

            async def cancel_without_client() -> None:
                await receive()
                tasks.cancel_scope.cancel()

            tasks.start_soon(cancel_without_client)
            await self._app(scope, receive_body, send)
            tasks.cancel_scope.cancel()

    async def _read(self, request: object, receive: Any) -> bytes | None:
        """The body; None if the client leaves before it is complete."""
        body = bytearray()
        continues = True
        try:
            async with asyncio.timeout(_BODY_S):
                while continues:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        return None
                    body += message.get("body", b"")
                    continues = message.get("more_body", False)
                    self._sizes[request] = len(body)
                    self._check_size(len(body))
        except TimeoutError:
            raise RefusedError(
                "the request body did not arrive within {:.0f} s",
                "send the request again",
                _BODY_S,
                status=408,
            ) from None
        return bytes(body)

    def _check_size(self, size: int) -> None:
        if size > MAX_BODY:
            larger = Message("the request body is larger than {}", size_in_words(MAX_BODY))
            raise RefusedError(larger, "send fewer or smaller images", status=413)
        if self._is_full(size):
            raise busy()

    def _is_full(self, size: int) -> bool:
        return size > _SMALL_BYTES and sum(self._sizes.values()) > _MAX_BYTES
