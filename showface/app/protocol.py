"""What uvicorn leaves out: a time limit for headers and for unread responses, and JSON for what is no HTTP."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from showface.app.guard import HEADERS

HEADER_SECONDS = 10.0  # time in which a request's headers must have arrived
STUCK_SECONDS = 30.0  # a connection whose client reads nothing for this long is cut
MAX_HEADERS = 32 * 1024  # bytes
MAX_CONNECTIONS = 200


class Protocol(H11Protocol):
    """An HTTP/1.1 connection of uvicorn's that no slow client keeps open."""

    header_seconds = HEADER_SECONDS
    stuck_seconds = STUCK_SECONDS
    _header_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        """Start the time for the first request's headers."""
        super().connection_made(transport)
        if len(self.connections) > MAX_CONNECTIONS:
            transport.abort()
            return
        self._watch_headers()

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop the timer."""
        self._stop_timer()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Start the time for headers with their first byte, and stop it with their last."""
        super().data_received(data)
        self._watch_headers()

    def on_response_complete(self) -> None:
        """Watch that the client reads the response."""
        super().on_response_complete()
        self._watch_reading(self.transport.get_write_buffer_size())

    def send_400_response(self, msg: str) -> None:
        """Answer what is no HTTP, or has too large headers, as every other error is answered."""
        if self.conn.our_state not in (h11.IDLE, h11.SEND_RESPONSE):
            self.transport.close()
            return
        body = json.dumps({"detail": "this is no valid HTTP request, or its headers are too large"}).encode()
        headers = {
            **HEADERS,
            "cache-control": "no-store",
            "content-type": "application/json",
            "content-length": str(len(body)),
            "connection": "close",
        }
        pairs = [(name.encode(), value.encode()) for name, value in headers.items()]
        response = h11.Response(status_code=400, headers=pairs, reason=b"Bad Request")
        for event in (response, h11.Data(data=body), h11.EndOfMessage()):
            self.transport.write(self.conn.send(event) or b"")
        self.transport.close()

    def _watch_headers(self) -> None:
        """Run the timer while headers are awaited, but not between two requests: uvicorn limits that time itself."""
        waits = self.conn.their_state is h11.IDLE and self.timeout_keep_alive_task is None
        if not waits:
            self._stop_timer()
        elif self._header_timer is None:
            self._header_timer = self.loop.call_later(self.header_seconds, self.transport.close)

    def _stop_timer(self) -> None:
        if self._header_timer is not None:
            self._header_timer.cancel()
            self._header_timer = None

    def _watch_reading(self, unread: int) -> None:
        if unread:
            self.loop.call_later(self.stuck_seconds, self._check_reading, unread)

    def _check_reading(self, before: int) -> None:
        unread = self.transport.get_write_buffer_size()
        if unread >= before:
            self.transport.abort()
        else:
            self._watch_reading(unread)
