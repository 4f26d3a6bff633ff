"""What the app refuses: strangers, large and slow requests, taken ports; and the headers of every answer."""

import queue
import re
import socket
import time
from types import SimpleNamespace

import pytest
from PIL import Image

pytest.importorskip("fastapi")

from showface.app import launch
from showface.app.guard import HEADERS, Hosts, Limits, is_loopback
from showface.app.protocol import Protocol

from support.app import PHOTO, Client, box_mask, encode_form, encoded, fake_models, running, send_form, wait_until
from support.hostile import exchange, request


@pytest.fixture(scope="module")
def client():
    with running(fake_models()) as client:
        yield client


def test_limits_of_size_and_pixels():
    limits = Limits(body=5000, pixels=1000)
    with running(fake_models(), limits) as client:
        assert "more than 1,000 pixels" in client.post("/api/faces", {"photo": PHOTO[:4000]}).detail
        answer = client.post("/api/faces", {"photo": bytes(2_000_000)})
        assert (answer.status, answer.detail) == (413, "the request is larger than 5,000 bytes, the limit here")
        # Without Content-Length, the bytes are counted as they come.
        body, kind = encode_form({"photo": bytes(2_000_000)})
        chunks = (body[at : at + 1000] for at in range(0, len(body), 1000))
        assert client.ask("POST", "/api/faces", chunks, {"Content-Type": kind}).status == 413  # type: ignore[arg-type]


def test_a_large_body_is_refused_before_it_comes(client: Client):
    for method in ("POST", "GET"):
        answer = exchange(client.port, request(client.port, method, "/api/faces", "Expect: 100-continue", size=10**9))
        assert answer is not None
        assert (answer.status, answer.headers["connection"]) == (413, "close")


def test_bodies_share_the_memory():
    limits = Limits(body=100_000, waiting=0)  # two bodies
    kind = "Content-Type: multipart/form-data; boundary=x"
    start = b'--x\r\nContent-Disposition: form-data; name="photo"\r\n\r\n' + bytes(80_000)
    with running(fake_models(), limits) as client:
        half = request(client.port, "POST", "/api/faces", kind, size=90_000) + start
        for _ in range(2):
            waiting = [socket.create_connection(("127.0.0.1", client.port), 10) for _ in range(2)]
            for connection in waiting:
                connection.sendall(half)
            wait_until(lambda: client.post("/api/faces", {"photo": bytes(80_000)}).status == 429)
            for connection in waiting:
                connection.close()
            wait_until(lambda: client.post("/api/faces", {"photo": PHOTO}).status == 200)


def test_too_many_requests_at_once():
    kind = "Content-Type: multipart/form-data; boundary=x"
    with running(fake_models(), Limits(requests=1)) as client:
        with socket.create_connection(("127.0.0.1", client.port), 10) as connection:
            connection.sendall(request(client.port, "POST", "/api/faces", kind, size=100))
            wait_until(lambda: client.get("/api/health").status == 429)
        wait_until(lambda: client.get("/api/health").status == 200)


def test_a_slow_body_is_refused():
    with (
        running(fake_models(), Limits(body_seconds=0.3)) as client,
        socket.create_connection(("127.0.0.1", client.port), 5) as slow,
    ):
        head = f"POST /api/faces HTTP/1.1\r\nHost: 127.0.0.1:{client.port}\r\nContent-Length: 1000\r\n"
        slow.sendall(f"{head}Content-Type: multipart/form-data; boundary=x\r\n\r\n--x\r\n".encode())
        began = time.monotonic()
        assert b"408" in slow.recv(100)
        assert time.monotonic() - began < 3


def test_slow_headers_and_unread_answers_are_cut_off(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(Protocol, "header_seconds", 0.2)
    monkeypatch.setattr(Protocol, "stuck_seconds", 0.2)
    size = (3000, 3000)  # as a BMP file more than the system buffers
    fields = {"photo": encoded(Image.new("RGB", size), "BMP"), "mask": encoded(box_mask(size)), "format": "same"}
    with running(fake_models()) as client:
        silent = socket.create_connection(("127.0.0.1", client.port), 10)
        assert silent.recv(1) == b""
        unread = send_form(client, fields)
        wait_until(lambda: client.server.server_state.total_requests)
        wait_until(lambda: not client.server.server_state.connections, 5)
        silent.close()
        unread.close()


def test_the_token():
    with running(fake_models(), token="right-one") as client:
        assert client.get("/api/models").status == 200
        for wrong in ("", "Bearer", "Bearer wrong", "right-one", "Basic right-one", "Bearer right-one2", "Bearer \xe9"):
            answer = client.get("/api/models", {"Authorization": wrong})
            assert (answer.status, answer.headers["www-authenticate"]) == (401, "Bearer")
        for path in ("/api/docs", "/api/openapi.json"):
            assert client.get(path, {"Authorization": ""}).status == 200


def test_other_sites_are_refused(client: Client):
    own = f"127.0.0.1:{client.port}"
    for host in (own, f"localhost:{client.port}", f"LOCALHOST:{client.port}", f"[::1]:{client.port}"):
        assert client.get("/api/health", {"Host": host}).status == 200
    for host in (
        "evil.example",
        f"evil.example:{client.port}",
        "127.0.0.1",
        "127.0.0.1:1",
        f"{own}.evil",
        f"a@{own}",
        "",
    ):
        assert client.get("/api/health", {"Host": host}).status in (400, 403)
    assert client.post("/api/faces", {"photo": PHOTO}, {"Origin": f"http://{own}"}).status == 200
    for origin in ("https://evil.example", "null", f"http://localhost:{client.port}", f"http://{own}.evil", ""):
        assert client.post("/api/faces", {"photo": PHOTO}, {"Origin": origin}).status == 403


@pytest.mark.parametrize(
    ("hosts", "allowed", "refused"),
    [
        (Hosts.of("127.0.0.1", 80), ["localhost", "[::1]"], ["localhost:81"]),
        (Hosts.of("192.168.1.5", 7860), ["192.168.1.5:7860"], ["localhost:7860", "192.168.1.6:7860"]),
        (Hosts.of("0.0.0.0", 7860), ["10.0.0.1:80", "[fe80::1]:7860", "localhost:1"], ["evil.example:7860"]),
        (Hosts.of("2001:0DB8::1", 7860), ["[2001:db8::1]:7860"], ["[2001:db8::2]:7860"]),
        (Hosts.of("::", 7860, ["My.example"]), ["my.example", "my.example:443"], ["a.my.example", "my.example:x"]),
    ],
)
def test_allowed_hosts(hosts: Hosts, allowed: list[str], refused: list[str]):
    assert all(map(hosts.allow, allowed))
    assert not any(map(hosts.allow, refused))


def test_what_is_loopback():
    assert all(map(is_loopback, ("127.0.0.1", "127.8.9.1", "::1", "localhost", "LocalHost")))
    assert not any(map(is_loopback, ("0.0.0.0", "::", "10.0.0.1", "example.org", "localhost.example.org")))


def test_a_taken_port():
    lines: list[str] = []
    with launch.bind("127.0.0.1", 0, print) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ValueError, match=f"port {port} of 127.0.0.1 is taken"):
            launch.bind("127.0.0.1", port, print)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(launch, "PORT", port)
            with launch.bind("127.0.0.1", None, lines.append) as other:
                assert port < other.getsockname()[1] < port + launch.TRIES
    assert lines == [f"port {port} is taken, trying the next ones"]
    with pytest.raises(ValueError, match="no address for the host"):
        launch.bind("no.such.host.invalid", 0, print)


@pytest.mark.parametrize(("host", "token"), [("127.0.0.1", None), ("127.0.0.1", "a" * 20), ("0.0.0.0", None)])
def test_the_browser_gets_no_token(monkeypatch: pytest.MonkeyPatch, host: str, token: str | None):
    opened = queue.Queue[str]()
    lines: list[str] = []
    monkeypatch.setattr(launch, "load_models", lambda *_, **__: {})
    monkeypatch.setattr(launch, "create_app", lambda *_, **__: SimpleNamespace(state=SimpleNamespace()))
    monkeypatch.setattr(launch, "make_server", lambda _: SimpleNamespace(run=lambda sockets: None))
    monkeypatch.setattr(launch, "_open_browser", opened.put)
    launch.serve(host, 0, token=token, say=lines.append)
    address = re.search(r"http://\S+", lines[0])
    assert address is not None
    if host == "127.0.0.1" and token is None:
        assert opened.get(timeout=10) == address[0]
    else:
        assert "#token=" in address[0]
        assert opened.empty()


def test_the_token_of_the_environment(showface, monkeypatch: pytest.MonkeyPatch):
    given = []
    monkeypatch.setattr(launch, "serve", lambda *_, token, **__: given.append(token) or True)
    monkeypatch.setenv("SHOWFACE_TOKEN", "a-secret-of-some-length")
    assert showface("app")[0] == 0
    assert given == ["a-secret-of-some-length"]


def test_tokens_that_are_made_and_refused():
    lines: list[str] = []
    assert launch._token(None, "127.0.0.1", print) is None
    assert len(launch._token(None, "0.0.0.0", print) or "") > 40
    assert launch._token("short", "0.0.0.0", lines.append) == "short"
    assert "can be guessed" in lines[0]
    for wrong in ("", "a b", "é"):
        with pytest.raises(ValueError, match="printable ASCII"):
            launch._token(wrong, "127.0.0.1", print)


@pytest.mark.parametrize("path", ["/", "/nothing", "/api/models", "/api/docs", "/api/inpaint", "/static/none.js"])
def test_every_response_has_the_headers(client: Client, path: str):
    headers = client.get(path).headers
    assert HEADERS.items() <= headers.items()
    assert headers["cache-control"] == ("no-store" if path.startswith("/api") else "no-cache")
    assert "server" not in headers
