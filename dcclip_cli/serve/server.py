"""uvicorn with limits for clients that send no request or take no answer."""

import asyncio
import socket

import h11
import uvicorn
from fastapi import FastAPI
from uvicorn.protocols.http.h11_impl import H11Protocol

from dcclip_cli.core.machine import allow_open_files

_HEAD_BYTES = 16 << 10  # of a request's line and headers
# in which a head has to arrive, the rest of a refused body, or what is sent of an answer at a time
_CLIENT_S = 10.0
_MOST_CONNECTIONS = 1024
_OTHER_FILES = 64
_MOST_WAITING = 512  # connections that are not accepted yet
_ACCEPTED = 8  # at a time, each with a descriptor, before others are closed for them
_STOP_S = 7  # in which requests that were accepted are answered; Docker kills after 10


class Connection(H11Protocol):
    """A connection that ends if its client stalls; a new one too many ends the one that waited
    longest.
    """

    # connections that wait for a complete request, the oldest first
    _incomplete: "dict[Connection, None]" = {}
    _timer: asyncio.TimerHandle | None = None  # ends the connection

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        # Without it, an answer's second part waits 40 ms. asyncio sets it for sockets of its own
        # only.
        transport.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._note_state()
        if len(self.connections) >= (self.limit_concurrency or _MOST_CONNECTIONS):
            oldest = next(iter(self._incomplete))
            self.connections.discard(oldest)
            del self._incomplete[oldest]
            oldest.transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self._incomplete.pop(self, None)
        self._stop_timer()

    def handle_events(self) -> None:
        super().handle_events()
        self._note_state()
        if (
            self.conn.their_state is h11.DONE
        ):  # uvicorn reads on after the answer, and would not see the client leave
            if len(self.conn.trailing_data[0]) > _HEAD_BYTES:
                self.transport.abort()
            self.flow.resume_reading()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._note_state()

    def resume_writing(self) -> None:
        super().resume_writing()
        self._note_state()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self._note_state()

    def _note_state(self) -> None:
        state = self.conn.their_state
        if state in (h11.IDLE, h11.SEND_BODY) and self in self.connections:
            self._incomplete.setdefault(self, None)
        else:
            self._incomplete.pop(self, None)
        is_refused = state is h11.SEND_BODY and self.cycle.response_complete
        is_client_slow = (
            state is h11.IDLE or is_refused or self.flow.write_paused or self.transport.is_closing()
        )
        if not is_client_slow:
            self._stop_timer()
        elif not self._timer:
            self._timer = self.loop.call_later(_CLIENT_S, self.transport.abort)

    def _stop_timer(self) -> None:
        if self._timer:
            self._timer.cancel()
            self._timer = None


class _Server(uvicorn.Server):
    """asyncio accepts as many connections at a time as wait at most; the system may let more wait."""

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        for listening in sockets or ():
            listening.listen(_MOST_WAITING)


def make_server(app: FastAPI, verbose: bool) -> uvicorn.Server:
    """A server that ends once the requests that it accepted are answered."""
    config = uvicorn.Config(
        app,
        http=Connection,
        ws="none",
        loop="asyncio",
        log_level="info" if verbose else "error",
        access_log=verbose,
        backlog=_ACCEPTED,
        timeout_graceful_shutdown=_STOP_S,
        h11_max_incomplete_event_size=_HEAD_BYTES,
        limit_concurrency=max(8, min(_MOST_CONNECTIONS, allow_open_files() - _OTHER_FILES)),
    )
    return _Server(config)
