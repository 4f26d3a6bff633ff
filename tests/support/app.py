"""Servers of the app for tests, requests to them, and a filler that needs no network."""

import http.client
import io
import json
import socket
import threading
import time
import uuid
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import numpy as np
from PIL import Image
from uvicorn import Server

from showface.app.guard import Hosts, Limits
from showface.app.launch import bind, make_server
from showface.app.server import create_app
from showface.app.work import Model

Field = str | bytes | tuple[str, bytes]


class FakeInpainter:
    """Fills holes with one colour, calling `progress` as an `Inpainter` does.

    `during` is called once in each restoration, in the worker thread.
    """

    detector = SimpleNamespace(find=lambda photo, **_: [])

    def __init__(self, during: Callable[[], object] = lambda: None) -> None:
        self.during = during
        self.begun = self.ended = 0

    def restore(
        self, image: Image.Image, mask: np.ndarray, *, progress: Callable[[str, float], None]
    ) -> SimpleNamespace:
        self.begun += 1
        progress("finding faces", 0.0)
        if not mask.any():
            warnings.warn("the mask is empty", stacklevel=1)
        self.during()
        progress("filling", 0.5)
        filled = np.array(image)
        filled[mask] = (10, 20, 30)
        self.ended += 1
        return SimpleNamespace(image=Image.fromarray(filled), faces=1, hole_ratio=float(mask.mean()))


def fake_models(filler: FakeInpainter | None = None) -> dict[str, Model]:
    """Two models that need no network."""
    filler = filler or FakeInpainter()
    return {name: Model(name, f"the {name} one", "free", filler, filler) for name in ("default", "other")}


def with_size(models: dict[str, Model], size: int) -> dict[str, Model]:
    """Loaded models that fill crops of this size, since small ones are filled fast."""
    for model in models.values():
        model.with_faces.size = model.without_faces.size = size
    return models


@dataclass
class Answer:
    """A response."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        """The body as JSON."""
        return json.loads(self.body)

    @property
    def detail(self) -> str:
        """The sentence of an error. Fails if the response is not of that form."""
        assert self.headers["content-type"] == "application/json"
        assert set(self.json) == {"detail"}
        return self.json["detail"]

    @property
    def image(self) -> Image.Image:
        """The body as an image."""
        assert self.status == 200, self.body
        return Image.open(io.BytesIO(self.body))


def encode_form(fields: dict[str, Field]) -> tuple[bytes, str]:
    """The body and the content type of a form. A tuple is a file's name and its bytes."""
    boundary = uuid.uuid4().hex
    body = b""
    for name, value in fields.items():
        filename, data = value if isinstance(value, tuple) else (None, value)
        file = f'; filename="{filename}"' if filename is not None else ""
        data = data.encode() if isinstance(data, str) else data
        body += f'--{boundary}\r\nContent-Disposition: form-data; name="{name}"{file}\r\n\r\n'.encode() + data + b"\r\n"
    return body + f"--{boundary}--\r\n".encode(), f"multipart/form-data; boundary={boundary}"


def encoded(image: Image.Image, form: str = "PNG", **options: Any) -> bytes:
    """The bytes of an image file."""
    file = io.BytesIO()
    image.save(file, form, **options)
    return file.getvalue()


SIZE = (48, 32)  # width, height


def picture(mode: str = "RGB", size: tuple[int, int] = SIZE) -> Image.Image:
    """Noise."""
    rng = np.random.default_rng(0)
    return Image.fromarray(rng.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)).convert(mode)


def box_mask(size: tuple[int, int] = SIZE) -> Image.Image:
    """A mask with a hole in the middle."""
    mask = Image.new("L", size)
    mask.paste(255, (8, 8, 24, 20))
    return mask


PHOTO, MASK = encoded(picture()), encoded(box_mask())
FIELDS: dict[str, Field] = {"photo": ("face.png", PHOTO), "mask": ("mask.png", MASK)}


class Client:
    """Sends requests to a server on this machine."""

    def __init__(self, port: int, token: str | None = None, server: Server | None = None) -> None:
        self.port, self.token, self.server = port, token, server

    def ask(
        self, method: str, path: str, body: bytes = b"", headers: dict[str, str] | None = None, timeout: float = 30.0
    ) -> Answer:
        """Send a request on its own connection."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=timeout)
        own = {"Authorization": f"Bearer {self.token}"} if self.token else {}
        try:
            connection.request(method, path, body or None, {**own, **(headers or {})})
            response = connection.getresponse()
            names = {name.lower(): value for name, value in response.getheaders()}
            return Answer(response.status, names, response.read())
        finally:
            connection.close()

    def get(self, path: str, headers: dict[str, str] | None = None) -> Answer:
        """Send a GET request."""
        return self.ask("GET", path, headers=headers)

    def post(self, path: str, fields: dict[str, Field], headers: dict[str, str] | None = None) -> Answer:
        """Send a form."""
        body, kind = encode_form(fields)
        return self.ask("POST", path, body, {"Content-Type": kind, **(headers or {})})


@contextmanager
def running(models: dict[str, Model], limits: Limits | None = None, **options: Any) -> Iterator[Client]:
    """Serve an app in a thread, on a free port."""
    listener = bind("127.0.0.1", 0, print)
    port = listener.getsockname()[1]
    options.setdefault("hosts", Hosts.of("127.0.0.1", port))
    server = make_server(create_app(models, limits=limits, **options))
    thread = threading.Thread(target=server.run, args=([listener],), daemon=True)
    thread.start()
    wait_until(lambda: server.started)
    try:
        yield Client(port, options.get("token"), server)
    finally:
        server.should_exit = True
        thread.join(10)
        listener.close()
        assert not thread.is_alive()


def send_form(client: Client, fields: dict[str, Field]) -> socket.socket:
    """Send a form, and return the connection on which the answer would come."""
    body, kind = encode_form(fields)
    connection = socket.create_connection(("127.0.0.1", client.port), 10)
    head = f"POST /api/inpaint HTTP/1.1\r\nHost: 127.0.0.1:{client.port}\r\nContent-Type: {kind}\r\n"
    connection.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
    return connection


def wait_until(condition: Callable[[], object], seconds: float = 10.0) -> None:
    """Wait until a condition holds. Fails if it never does."""
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until, "it never happened"
        time.sleep(0.005)
