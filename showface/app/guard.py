"""What every request passes: checks of Host, Origin, token and size, and the headers of every response."""

from __future__ import annotations

import asyncio
import hmac
import ipaddress
import json
import logging
import re
import traceback
from collections.abc import Awaitable, Callable, Iterable, MutableMapping
from dataclasses import dataclass
from typing import Any

Message = MutableMapping[str, Any]
Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

POLICY = (
    "default-src 'none'; script-src 'self' 'wasm-unsafe-eval'; style-src 'self'; img-src 'self' blob: data:; "
    "connect-src 'self'; worker-src 'self' blob:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
HEADERS = {
    "content-security-policy": POLICY,
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
}
"""The headers of every response; Cache-Control depends on the path."""

PUBLIC = frozenset({"/api/docs", "/api/docs.css", "/api/openapi.json"})
"""Paths below /api that need no token: they are the same for everybody."""

LOOPBACK = ("localhost", "127.0.0.1", "[::1]")
LINGER = 3.0  # seconds for which the rest of a refused body is read
BUSY = 2  # seconds after which a caller may try again where nothing better is known

logger = logging.getLogger("showface.app")


class Refusal(Exception):
    """A request that is answered with an error.

    Args:
        status: the HTTP status.
        sentence: what is wrong, for the caller. It names no path of this machine.
        headers: further headers of the response.
    """

    def __init__(self, status: int, sentence: str, headers: dict[str, str] | None = None) -> None:
        super().__init__(sentence)
        self.status, self.sentence, self.headers = status, sentence, headers or {}


class CallerGoneError(Exception):
    """The caller closed the connection, so there is nobody to answer."""


@dataclass(frozen=True)
class Limits:
    """What one caller may ask for.

    Attributes:
        body: bytes of a request's body.
        body_seconds: time in which a body must have arrived.
        pixels: pixels of a photo, checked before it is decoded.
        waiting: jobs that wait while one runs.
        job_seconds: time for which a job may run.
        requests: requests that are answered at once.
    """

    body: int = 64 * 2**20
    body_seconds: float = 60.0
    pixels: int = 50_000_000
    waiting: int = 4
    job_seconds: float = 120.0
    requests: int = 64

    @property
    def held(self) -> int:
        """Bytes of the bodies that are in memory at the same time: one runs, some wait, and one arrives."""
        return (self.waiting + 2) * self.body


@dataclass(frozen=True)
class Hosts:
    """The values of the Host header that are answered. This stops DNS rebinding.

    A page of a stranger can point its own name at this machine. Then the browser calls this server as a part of that
    page, but with the stranger's name in the Host header.

    Attributes:
        exact: values of the header, with the port as browsers send it.
        names: host names that are answered with any port.
        addresses: any IP address is answered, with any port. No stranger's name is one.
    """

    exact: frozenset[str] = frozenset()
    names: frozenset[str] = frozenset()
    addresses: bool = False

    @classmethod
    def of(cls, host: str, port: int, more: Iterable[str] = ()) -> Hosts:
        """The names of a server that listens on this host and port.

        Args:
            host, port: where it listens.
            more: names that it has elsewhere, each with a port, or for any port.
        """
        extra = {name.lower() for name in more}
        if is_wildcard(host):
            return cls(frozenset(extra), frozenset({"localhost", *extra}), addresses=True)
        own = LOOPBACK if is_loopback(host) else ()
        end = "" if port == 80 else f":{port}"  # browsers leave out the port of the scheme
        return cls(frozenset({*(f"{name}{end}" for name in {*own, bracketed(host)}), *extra}), frozenset(extra))

    def allow(self, header: str) -> bool:
        """Whether a request with this Host header is answered."""
        match = re.fullmatch(r"(\[[0-9a-f:.]{2,45}\]|[a-z0-9._-]{1,253})(:[0-9]{1,5})?", header.lower())
        if match is None:
            return False
        name = match[1]
        return match[0] in self.exact or name in self.names or (self.addresses and is_address(name.strip("[]")))


def is_address(host: str) -> bool:
    """Whether a host is an IP address."""
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches a server on this host. Names other than localhost count as reachable."""
    return host.lower() == "localhost" or (is_address(host) and ipaddress.ip_address(host).is_loopback)


def is_wildcard(host: str) -> bool:
    """Whether a host means all addresses of this machine."""
    return is_address(host) and ipaddress.ip_address(host).is_unspecified


def bracketed(host: str) -> str:
    """A host as an address in a browser has it: IPv6 in its short form, in brackets."""
    if is_address(host):
        host = ipaddress.ip_address(host).compressed
    return f"[{host}]" if ":" in host else host.lower()


def log_error(error: BaseException, where: str) -> None:
    """Log where an unexpected error was raised. Its message is left out, since it may quote the request."""
    frames = "".join(traceback.format_tb(error.__traceback__))
    logger.error("%s in %s\n%s", type(error).__name__, where, frames)


class Guard:
    """ASGI middleware that refuses what it must, and answers every error with one sentence as JSON.

    Args:
        app: what answers the requests that pass.
        hosts: the names of this server.
        token: what requests below /api must carry. None: nothing.
        limits: sizes and times.
    """

    def __init__(self, app: App, hosts: Hosts, token: str | None = None, limits: Limits | None = None) -> None:
        self.app, self.hosts, self.token, self.limits = app, hosts, token, limits or Limits()
        self.held = 0  # bytes of bodies in memory
        self.active = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        exchange = _Exchange(self, scope, receive, send)
        self.active += 1
        try:
            self._check(scope["method"], scope["path"], exchange)
            await self.app(scope, exchange.receive, exchange.send)
        except Refusal as refusal:
            await exchange.refuse(refusal)
        except CallerGoneError:
            pass
        except asyncio.CancelledError:
            await exchange.refuse(Refusal(503, "the server is stopping"))
        except Exception as error:
            log_error(error, "a request")
            await exchange.refuse(Refusal(500, "showface failed at this request: its log says where"))
        finally:
            self.active -= 1
            self.held -= exchange.held

    def _check(self, method: str, path: str, exchange: _Exchange) -> None:
        hosts = exchange.header("host")
        if len(hosts) != 1 or not self.hosts.allow(hosts[0]):
            raise Refusal(403, "this server does not answer to that name: use the address that showface app printed")
        if method not in ("GET", "HEAD"):
            origins = exchange.header("origin")
            if any(re.sub("^https?://", "", origin.lower()) != hosts[0].lower() for origin in origins):
                raise Refusal(403, "this request comes from another site's page")
        if self.token is not None and path.startswith("/api/") and path not in PUBLIC:
            self._check_token(exchange.header("authorization"))
        if self.active > self.limits.requests:
            raise Refusal(429, "too many requests at once: try again soon", {"retry-after": str(BUSY)})
        if any(not size.isdecimal() or int(size[:20]) > self.limits.body for size in exchange.header("content-length")):
            raise self.too_large()

    def _check_token(self, given: list[str]) -> None:
        scheme, _, token = given[0].partition(" ") if len(given) == 1 else ("", "", "")
        right = hmac.compare_digest(token.strip().encode(), (self.token or "").encode())
        if scheme.lower() != "bearer" or not right:
            sentence = "give the token that showface app printed, as Authorization: Bearer TOKEN"
            raise Refusal(401, sentence, {"www-authenticate": "Bearer"})

    def too_large(self) -> Refusal:
        """The answer to a body above the limit."""
        return Refusal(413, f"the request is larger than {self.limits.body:,} bytes, the limit here")


class _Exchange:
    """A request and its response, with the limits and headers of a `Guard`."""

    def __init__(self, guard: Guard, scope: Scope, receive: Receive, send: Send) -> None:
        self.guard, self.scope = guard, scope
        self._receive, self._send = receive, send
        self.held = 0
        self.deadline = asyncio.get_running_loop().time() + guard.limits.body_seconds
        self.started = self.ended = False
        # Whether the body is here as a whole.
        self.complete = not self.header("transfer-encoding") and self.header("content-length") in ([], ["0"])

    def header(self, name: str) -> list[str]:
        """The values of a header of the request, one for each time that it was sent."""
        wanted = name.encode()
        return [value.decode("latin-1").strip() for key, value in self.scope["headers"] if key.lower() == wanted]

    async def receive(self) -> Message:
        """The next part of the body, within the limits."""
        if self.complete:
            return await self._receive()
        limits = self.guard.limits
        message = await self._receive_before(self.deadline)
        if message is None:
            raise Refusal(408, f"the request did not arrive within {limits.body_seconds:g} seconds")
        if message["type"] == "http.request":
            size = len(message.get("body", b""))
            self.held += size
            self.guard.held += size
            if self.held > limits.body:
                raise self.guard.too_large()
            if self.guard.held > limits.held:
                raise Refusal(429, "too many photos at once: try again soon", {"retry-after": str(BUSY)})
        return message

    async def send(self, message: Message) -> None:
        """Send a part of the response, with the headers that every response has."""
        if message["type"] == "http.response.start":
            self.started = True
            cache = "no-store" if self.scope["path"].startswith("/api") else "no-cache"
            extra = {**HEADERS, "cache-control": cache}
            if not self.complete:
                extra["connection"] = "close"  # or the server would wait for the rest of the body
            names = {name.encode() for name in extra}
            headers = [pair for pair in message.get("headers", ()) if pair[0].lower() not in names]
            headers += [(name.encode(), value.encode()) for name, value in extra.items()]
            await self._send({**message, "headers": headers})
            return
        last = message["type"] == "http.response.body" and not message.get("more_body", False)
        if last and not self.complete:
            await self._send({**message, "more_body": True})
            await self._drain()
            message = {"type": "http.response.body", "body": b"", "more_body": False}
        await self._send(message)
        self.ended = self.ended or last

    async def refuse(self, refusal: Refusal) -> None:
        """Answer with an error, unless an answer has begun."""
        if self.started:
            return
        body = json.dumps({"detail": refusal.sentence}).encode()
        headers = {"content-type": "application/json", "content-length": str(len(body)), **refusal.headers}
        pairs = [(name.encode(), value.encode()) for name, value in headers.items()]
        await self.send({"type": "http.response.start", "status": refusal.status, "headers": pairs})
        await self.send({"type": "http.response.body", "body": body})

    async def _drain(self) -> None:
        """Read the rest of the body and forget it.

        A connection that is closed with unread bytes is reset, and then the client may lose the answer.
        """
        if self.header("expect"):
            return  # the client waits before it sends the body
        until = asyncio.get_running_loop().time() + LINGER
        while not self.complete:
            message = await self._receive_before(until)
            if message is None or message["type"] != "http.request":
                return

    async def _receive_before(self, deadline: float) -> Message | None:
        """The next message, or None if it does not come in time."""
        left = deadline - asyncio.get_running_loop().time()
        try:
            message = await asyncio.wait_for(self._receive(), max(left, 0.0))
        except (TimeoutError, asyncio.TimeoutError):
            return None
        self.complete = message["type"] == "http.request" and not message.get("more_body", False)
        return message
