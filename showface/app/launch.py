"""Runs the app with uvicorn: the port, the token, the browser, and a stop that does not wait."""

from __future__ import annotations

import errno
import os
import secrets
import socket
import sys
import threading
import webbrowser
from collections.abc import Callable, Sequence
from contextlib import suppress

import uvicorn
from fastapi import FastAPI

from showface.app.guard import Hosts, Limits, bracketed, is_loopback, is_wildcard
from showface.app.protocol import MAX_HEADERS, Protocol
from showface.app.server import create_app
from showface.app.work import load_models
from showface.data.images import max_pixels

PORT = 7860
TRIES = 20  # ports that are tried if nobody asked for one
SHORT = 16  # a shorter token is worth a note

Say = Callable[[str], None]


def serve(
    host: str = "127.0.0.1",
    port: int | None = None,
    *,
    models: Sequence[str] = ("default",),
    device: str = "cpu",
    precision: str = "fp32",
    token: str | None = None,
    allow: Sequence[str] = (),
    limits: Limits | None = None,
    browser: bool = True,
    say: Say = print,
) -> bool:
    """Load the models and serve the app, until Ctrl-C.

    Args:
        host: the address to listen on. One that other machines reach makes a token, unless one is given.
        port: by default 7860, or the next free one; 0 takes any free one.
        models: bundled models or folders of saved models; the first is the default.
        device: where they run.
        precision: "fp32" or "bf16", as for `showface.Inpainter`.
        token: what requests below /api must carry.
        allow: more names by which the server may be called, such as a proxy's.
        limits: sizes and times; by default `Limits`, with the pixels of SHOWFACE_MAX_PIXELS if it is set.
        browser: open the page, unless there is a token: others could read it in the browser's command line.
        say: prints a line for the user.

    Returns:
        Whether the worker thread has ended. If not, the process should exit without waiting for it.

    Raises:
        ValueError: the port is taken, the host is not this machine's, or a bad token, or as for `load_models`.
    """
    token = _token(token, host, say)
    limits = limits or (Limits(pixels=max_pixels()) if "SHOWFACE_MAX_PIXELS" in os.environ else Limits())
    listener = bind(host, port, say)
    with listener:
        port = int(listener.getsockname()[1])
        loaded = load_models(models, device, precision=precision)
        app = create_app(loaded, Hosts.of(host, port, allow), token=token, limits=limits)
        reachable = "127.0.0.1" if is_wildcard(host) else bracketed(host)
        address = f"http://{reachable}:{port}/" + (f"#token={token}" if token else "")
        say(f"showface runs at {address} (Ctrl-C stops it)")
        if not is_loopback(host):
            say("Other machines can reach it, unencrypted. In a network that you don't trust, put TLS before it.")
        if browser and token is None:
            threading.Thread(target=_open_browser, args=(address,), daemon=True).start()
        with suppress(KeyboardInterrupt):
            make_server(app).run(sockets=[listener])
    return bool(getattr(app.state, "ended", True))


def make_server(app: FastAPI) -> uvicorn.Server:
    """The server of an app: no log of requests, no trust in proxies' headers, and no patience with slow clients."""
    config = uvicorn.Config(
        app,
        http=Protocol,
        ws="none",
        lifespan="on",
        log_level="critical",
        access_log=False,
        proxy_headers=False,
        server_header=False,
        h11_max_incomplete_event_size=MAX_HEADERS,
        timeout_graceful_shutdown=0,
    )
    return uvicorn.Server(config)


def bind(host: str, port: int | None, say: Say) -> socket.socket:
    """A socket that listens on the port, or, if it is None, on `PORT` or the next free one.

    Raises:
        ValueError: no such host, or the port is taken.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port or PORT, type=socket.SOCK_STREAM)[0]
    except (OSError, UnicodeError) as error:
        raise ValueError(f"there is no address for the host {host}") from error
    ports = [port] if port is not None else list(range(PORT, PORT + TRIES))
    for number in ports:
        listener = socket.socket(family, kind, protocol)
        if os.name == "posix":  # elsewhere the option would share a port that is in use
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((address[0], number, *address[2:]))
            listener.listen(128)
        except (OSError, OverflowError) as error:
            listener.close()
            reason = "is taken" if getattr(error, "errno", None) == errno.EADDRINUSE else f"can't be used: {error}"
            if port is not None or reason != "is taken":
                raise ValueError(f"port {number} of {host} {reason}") from error
            if number == PORT:
                say(f"port {PORT} is taken, trying the next ones")
            continue
        return listener
    raise ValueError(f"ports {ports[0]} to {ports[-1]} of {host} are taken: give another with --port")


def _token(token: str | None, host: str, say: Say) -> str | None:
    if token is None:
        return None if is_loopback(host) else secrets.token_urlsafe(32)
    if not token or not all("!" <= letter <= "~" for letter in token):
        raise ValueError("the token must be printable ASCII without spaces")
    if len(token) < SHORT and not is_loopback(host):
        say(f"The token has {len(token)} characters and can be guessed: leave --token out to get a good one.")
    return token


def _open_browser(address: str) -> None:
    if sys.platform == "linux" and not (os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")):
        return  # there could only be a browser in this terminal
    with suppress(webbrowser.Error, OSError):
        webbrowser.open(address)
