"""HTTP as it comes in: uvicorn's protocol, which bounds neither what it keeps of a request nor how long that takes.

Here a head (request line and headers) has a size and a time, as have trailers, requests sent ahead of answers, and what
a client goes on to send after its answer. Bodies that routes read are bounded in ``bodies.py``.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Callable

from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from featurespeed_service import logs
from featurespeed_service.api.middleware import REQUEST_ID
from featurespeed_service.api.problems import MEDIA_TYPE, problem

HEAD_BYTES = 2**16
HEADER_OVERHEAD_BYTES = 32
"""What a header counts beyond its text."""
HEAD_SECONDS = 10.0
DISCARDED_BYTES = 16 * 2**20
"""Of a body, still read after the answer, so that a client which sends first hears it."""
LINGER_SECONDS = 10.0
"""How long that, or the end of a connection, may take."""
WRITE_SECONDS = 60.0
"""How long a client may take nothing of an answer."""
MOST_PIPELINED = 16

TOO_LARGE = f"URL and headers have more than {HEAD_BYTES} bytes, the limit here"
TOO_SLOW = f"URL and headers were not there within {HEAD_SECONDS:g} s, the limit here"

log = logs.get(__name__)


class _Refused(Exception):
    """Ends the parser's work on what has come in."""


class BoundedProtocol(HttpToolsProtocol):
    """One connection."""

    _why = ("invalid-http", "this is not HTTP/1.1, or not as RFC 9112 has it")
    _deadline: asyncio.TimerHandle | None = None
    _stalled: asyncio.TimerHandle | None = None
    _in_head = False
    _in_message = False
    _head_bytes = 0
    _unused_bytes = 0  # that gave neither a head nor a piece of a body
    _discarded_bytes = 0

    # what the transport calls

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begin to wait for a request."""
        super().connection_made(transport)
        self._within(HEAD_SECONDS, self._head_too_slow)

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget the connection."""
        self._set_deadline(None)
        self.resume_writing()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Parse what has come in."""
        if self.transport.is_closing():
            return
        is_idle = self.cycle is None or self.cycle.response_complete
        if is_idle and not self._in_message and not self._in_head:  # perhaps but line ends, which begin no message
            self._in_head = True
            self._within(HEAD_SECONDS, self._head_too_slow)
        self._unused_bytes += len(data)
        super().data_received(data)
        if self._unused_bytes > HEAD_BYTES and not self.transport.is_closing():
            self._refuse("headers-too-large", TOO_LARGE)

    def pause_writing(self) -> None:
        """Wait for the client to take what was written."""
        super().pause_writing()
        if self._stalled is None:
            self._stalled = self.loop.call_later(WRITE_SECONDS, self.transport.abort)

    def resume_writing(self) -> None:
        """Write again."""
        super().resume_writing()
        if self._stalled is not None:
            self._stalled.cancel()
            self._stalled = None

    # what the parser calls

    def on_message_begin(self) -> None:
        """Begin a request."""
        super().on_message_begin()
        self._in_message = self._in_head = True
        self._head_bytes = self._discarded_bytes = 0
        self._within(HEAD_SECONDS, self._head_too_slow)

    def on_url(self, url: bytes) -> None:
        """Keep a part of the URL."""
        self._count_head(len(url))
        super().on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        """Keep a header or, after the body, a trailer."""
        self._count_head(len(name) + len(value) + HEADER_OVERHEAD_BYTES)
        super().on_header(name, value)

    def on_headers_complete(self) -> None:
        """Let the application answer."""
        if len(self.pipeline) >= MOST_PIPELINED:
            self._stop_parsing("invalid-http", f"more than {MOST_PIPELINED} requests were sent ahead of their answers")
        super().on_headers_complete()  # which may find that the URL is none
        self._in_head, self._unused_bytes = False, 0
        self._set_deadline(None)

    def on_body(self, body: bytes) -> None:
        """Give a piece of the body to the application, or count it if nobody wants it any more."""
        self._unused_bytes = 0
        if self.cycle.response_complete:
            self._discarded_bytes += len(body)
            if self._discarded_bytes > DISCARDED_BYTES:
                self._end()
        super().on_body(body)

    def on_message_complete(self) -> None:
        """End a request."""
        self._in_message, self._unused_bytes = False, 0
        self._set_deadline(None)
        super().on_message_complete()
        if self.cycle.response_complete:
            self._within(self.timeout_keep_alive, self._end)

    # what the application's answers call

    def on_response_complete(self) -> None:
        """Go on with what the client sent meanwhile, if it does send it."""
        super().on_response_complete()
        if self._in_message and not self._in_head and self.cycle.response_complete:
            self._within(LINGER_SECONDS, self._end)

    # bounds

    def _within(self, seconds: float, otherwise: Callable[[], None]) -> None:
        self._set_deadline(self.loop.call_later(seconds, otherwise))

    def _set_deadline(self, deadline: asyncio.TimerHandle | None) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
        self._deadline = deadline

    def _count_head(self, size: int) -> None:
        self._head_bytes += size
        if self._head_bytes > HEAD_BYTES:
            self._stop_parsing("headers-too-large", TOO_LARGE)

    def _head_too_slow(self) -> None:
        if self._in_head:
            self._refuse("too-slow", TOO_SLOW)
        else:
            self._end()

    def _stop_parsing(self, slug: str, detail: str) -> None:
        """From within the parser, which makes of it an error that uvicorn answers by :meth:`send_400_response`."""
        self._why = (slug, detail)
        raise _Refused

    def send_400_response(self, msg: str) -> None:
        """Answer what cannot be parsed."""
        self._refuse(*self._why)

    def _refuse(self, slug: str, detail: str) -> None:
        """Answer with a problem, unless an answer is under way or was given, and end the connection."""
        log.info("request refused", type=slug, detail=detail)
        self.pipeline.clear()
        cycle = self.cycle
        is_awaited = cycle is not None and not cycle.response_complete
        is_next = not is_awaited if self._in_head else is_awaited and not cycle.response_started
        if is_awaited:
            cycle.disconnected = True  # what the application has yet to say goes nowhere
            cycle.message_event.set()
        if is_next:
            self.transport.write(_answer(slug, detail))
        self._end()

    def _end(self) -> None:
        self._set_deadline(None)
        self.transport.close()
        self.loop.call_later(LINGER_SECONDS, self.transport.abort)  # a client that reads nothing keeps it open


def _answer(slug: str, detail: str) -> bytes:
    answer = problem(slug, detail)
    body = answer.model_dump_json().encode()
    headers = {
        "content-type": MEDIA_TYPE,
        "content-length": str(len(body)),
        REQUEST_ID: secrets.token_hex(8),
        "connection": "close",
    }
    lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
    return STATUS_LINE[answer.status] + lines.encode() + b"\r\n" + body
