"""Hostile requests to the app: never a 500, never a hang, no path or traceback in an answer, no memory kept.

`python -m pytest tests/test_app_hostile.py -s` prints the table of docs/app.md.
"""

import json
import os
import re
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from PIL import Image

pytest.importorskip("fastapi")
if not Path("/proc/self/status").exists():
    pytest.skip("the memory of a process is read from /proc", allow_module_level=True)

import showface

from support import hostile
from support.app import Answer, Client, encode_form, encoded
from support.app_process import LIMITS, TOKEN
from support.hostile import FIELDS, MASK, PHOTO, exchange, request

pytestmark = pytest.mark.shared("app-hostile")
ROOT = Path(showface.__file__).parents[1]
PAGE = (Path(showface.__file__).parent / "app" / "static" / "index.html").read_bytes()
MARGIN = 50  # MB that the server's memory may grow, of an allocator that keeps some
SECRET = re.compile(r"Traceback|File \"|/root|/usr|/home|/tmp|site-packages|\.py|0x[0-9a-f]{6}")
AUTHORIZATION = f"Authorization: Bearer {TOKEN}"
Statuses = Iterable[Answer | None]


class Target(Client):
    """The server that is attacked."""

    def __init__(self, process: subprocess.Popen[str], port: int) -> None:
        super().__init__(port, TOKEN)
        self.process = process
        self.table: dict[str, Counter[str]] = {}
        self.seconds = 0.0

    @property
    def megabytes(self) -> float:
        """The memory of the server."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(re.search(r"VmRSS:\s+(\d+)", status)[1]) / 1024

    def raw(self, method: str, path: str, *headers: str, body: bytes = b"", size: int | None = None) -> Answer | None:
        """Send a request whose headers http.client would not send."""
        return exchange(self.port, request(self.port, method, path, *headers, body=body, size=size))


@pytest.fixture(scope="module")
def target() -> Iterator[Target]:
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests")])}
    command = [sys.executable, "-m", "support.app_process"]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True, cwd=ROOT, env=environment) as process:
        try:
            target = Target(process, int(process.stdout.readline()))
            for photo, mask in hostile.odd_pictures():  # all that is loaded on first use
                target.post("/api/inpaint", {"photo": photo, "mask": mask, "format": "same"})
            yield target
        finally:
            process.kill()


@pytest.fixture(scope="module")
def memory_before(target: Target) -> float:
    return target.megabytes


def check(answer: Answer | None) -> str:
    """The status of an answer; fails if it is a 500 or shows what it must not."""
    if answer is None:
        return "closed"
    assert answer.status not in (500, 502), answer.body
    assert "content-security-policy" in answer.headers
    if answer.status >= 400 and answer.body:
        assert len(answer.detail.splitlines()) == 1
        assert not SECRET.search(answer.detail)
    return str(answer.status)


def forms(target: Target, *forms: dict, path: str = "/api/inpaint") -> Statuses:
    return (target.post(path, form) for form in forms)


def wrong_files(target: Target) -> Statuses:
    for data in hostile.files_that_are_no_images():
        yield target.post("/api/inpaint", {"photo": ("a.png", data), "mask": MASK})
        yield target.post("/api/faces", {"photo": data})


def cut_and_changed(target: Target) -> Statuses:
    return forms(target, *({"photo": data, "mask": MASK, "format": "same"} for data in hostile.cut_and_changed(60)))


def changed_masks(target: Target) -> Statuses:
    return forms(target, *({"photo": PHOTO, "mask": data} for data in hostile.cut_and_changed(12)))


def bombs(target: Target) -> Statuses:
    for data in hostile.bombs():
        yield target.post("/api/faces", {"photo": data})
        yield target.post("/api/inpaint", {"photo": PHOTO, "mask": data})


def odd_pictures(target: Target) -> Statuses:
    for photo, mask in hostile.odd_pictures():
        yield target.post("/api/inpaint", {"photo": photo, "mask": mask, "format": "same"})


def wrong_fields(target: Target) -> Statuses:
    numbers = ("-1", "101", "1e9", "9" * 400, "NaN", "inf", "0x10", "1.5", "\u0661", " 1", "1;ls", "\0", "2147483648")
    yield from forms(target, *(FIELDS | {"grow": number} for number in numbers))
    other = {"faces": "2", "alpha": "x", "invert": "\xff", "model": "/etc/passwd", "format": "tiff", "job": "a b"}
    yield from forms(target, *(FIELDS | {name: value} for name, value in other.items()))
    yield from forms(target, {}, {"photo": PHOTO}, {"mask": MASK}, FIELDS | {"paint": "red"}, FIELDS | {"a\\": ""})
    yield from forms(target, *({"photo": PHOTO, "paint": colour} for colour in ("rgb(1,2", "#12", "x" * 999, "hsl(9)")))


def broken_forms(target: Target) -> Statuses:
    for kind, body in hostile.broken_forms():
        yield target.raw("POST", "/api/inpaint", AUTHORIZATION, f"Content-Type: {kind}", body=body)


def too_large(target: Target) -> Statuses:
    zeros = bytes(LIMITS.body + 1)
    yield target.ask("POST", "/api/faces", zeros)
    yield target.post("/api/faces", {"photo": zeros})
    for size in (LIMITS.body + 1, 10**9, 10**18):
        yield target.raw("POST", "/api/faces", AUTHORIZATION, size=size)
    start = b'--x\r\nContent-Disposition: form-data; name="photo"\r\n\r\n'
    chunks = [b"%x\r\n%b\r\n" % (len(data), data) for data in (start, *[bytes(2**20)] * 5)]
    kind = "Content-Type: multipart/form-data; boundary=x"
    chunked = request(target.port, "POST", "/api/faces", AUTHORIZATION, "Transfer-Encoding: chunked", kind)
    yield exchange(target.port, chunked, *chunks)


def slow(target: Target) -> Statuses:
    """Bodies and headers that never end, and connections that say nothing."""
    half = request(
        target.port, "POST", "/api/faces", AUTHORIZATION, "Content-Type: multipart/form-data; boundary=x", size=99
    )
    starts = [half, half + b"--x\r\n", b"", b"GET / HT", b"GET / HTTP/1.1\r\nHost: a\r\n"]
    with ThreadPoolExecutor(10) as pool:
        yield from pool.map(lambda start: exchange(target.port, start), starts * 2)


def hang_ups(target: Target) -> Statuses:
    body, kind = encode_form(FIELDS)
    whole = request(target.port, "POST", "/api/inpaint", AUTHORIZATION, f"Content-Type: {kind}", body=body)
    for size in (1, 100, 300, len(whole) // 2, *[len(whole)] * 8):
        yield exchange(target.port, whole[:size], close=True)


def strangers(target: Target) -> Statuses:
    own = f"127.0.0.1:{target.port}"
    hosts = (
        "evil.example",
        "evil.example:80",
        "127.0.0.1",
        "127.0.0.1:1",
        "localhost",
        f"{own}.evil",
        "",
        "[",
        "a" * 5000,
    )
    for host in hosts:
        yield target.raw("GET", "/api/health", f"Host: {host}", AUTHORIZATION)
    yield target.raw("GET", "/api/health", f"Host: {own}", f"Host: {own}", AUTHORIZATION)
    for origin in (
        "https://evil.example",
        "null",
        "file://",
        f"http://localhost:{target.port}",
        f"http://{own}.evil",
        "",
    ):
        yield target.post("/api/inpaint", FIELDS, {"Origin": origin})
    for token in (
        "",
        "Bearer",
        "Bearer x",
        f"Basic {TOKEN}",
        f"Bearer {TOKEN}x",
        f"Bearer {TOKEN[:-1]}",
        "Bearer " * 999,
    ):
        yield target.get("/api/models", {"Authorization": token})
        yield target.post("/api/inpaint", FIELDS, {"Authorization": token})


def paths(target: Target) -> Statuses:
    names = ("../../setup.py", "..%2f..%2fsetup.py", "%2e%2e/guard.py", "....//guard.py", "..\\guard.py", "/etc/passwd")
    names += ("//etc/passwd", "%00", "index.html%00.js", "C:\\x", "a" * 5000, "%c0%ae%c0%ae/", ".", "..", "%", "~root")
    for name in names:
        yield target.raw("GET", f"/static/{name}")
        yield target.raw("GET", f"/{name}")
    for name in ("//evil.example/", "http://evil.example/", "*", "/api/../static/../guard.py", "/?x=../..", "/#"):
        answer = target.raw("GET", name)
        # Some of these mean the page itself. Nothing else may come.
        assert answer is None or answer.status != 200 or answer.body == PAGE
        yield answer


def job_ids(target: Target) -> Statuses:
    for name in (
        "",
        "a" * 65,
        "a" * 9000,
        "a_b",
        "a%20b",
        "%0a",
        "a%0a",
        "..",
        "%2e%2e",
        "a/b",
        "%00",
        "é",
        "%ff",
        "'--",
    ):
        yield target.raw("GET", f"/api/jobs/{name.encode().decode('latin-1')}", AUTHORIZATION)


def wrong_methods(target: Target) -> Statuses:
    for path in ("/", "/static/app.js", "/api/inpaint", "/api/models", "/api/jobs/a"):
        for method in ("PUT", "DELETE", "PATCH", "OPTIONS", "TRACE", "PROPFIND", "x" * 50):
            yield target.raw(method, path, AUTHORIZATION)


def large_headers(target: Target) -> Statuses:
    yield target.raw("GET", "/", "X: " + "a" * 100_000)
    yield target.raw("GET", "/", *(f"X-{number}: a" for number in range(20_000)))
    yield target.raw("GET", "/" + "a" * 100_000)
    yield target.raw("GET", "/", *["Cookie: " + "a" * 8000] * 3)
    yield target.raw("GET", "/", "Range: bytes=" + ",".join(["0-"] * 3000))


def no_http(target: Target) -> Statuses:
    for data in (
        b"\x16\x03\x01\x02\0\x01\0\x01\xfc\x03\x03" + bytes(500),
        b"\0" * 100,
        b"GET\r\n\r\n",
        b"GET / HTTP/9.9\r\nHost: a\r\n\r\n",
        b"GET / HTTP/1.1\r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: -1\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\nZZ\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\nX : b\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\nUpgrade: websocket\r\nConnection: upgrade\r\n\r\n",
    ):
        yield exchange(target.port, data)


def at_once(target: Target) -> Statuses:
    calls: list[Callable[[], Answer]] = [lambda: target.post("/api/inpaint", FIELDS)] * 30
    calls += [lambda: target.post("/api/faces", {"photo": PHOTO[:900]}), lambda: target.get("/api/models")] * 10
    with ThreadPoolExecutor(50) as pool:
        yield from pool.map(lambda call: call(), calls)


ATTACKS: dict[str, tuple[Callable[[Target], Statuses], set[str]]] = {
    "files that are no images": (wrong_files, {"400", "415", "422"}),
    "images cut off or changed": (cut_and_changed, {"200", "400", "413", "415"}),
    "masks cut off or changed": (changed_masks, {"200", "400", "413", "415"}),
    "decompression bombs": (bombs, {"200", "400", "413", "415"}),
    "odd but valid photos": (odd_pictures, {"200"}),
    "missing, wrong and huge fields": (wrong_fields, {"422"}),
    "broken and cut off forms": (broken_forms, {"413", "415", "422"}),
    "too large bodies": (too_large, {"413"}),
    "slow and silent clients": (slow, {"408", "closed"}),
    "clients that hang up": (hang_ups, {"closed"}),
    "wrong Host, Origin or token": (strangers, {"400", "401", "403"}),
    "path traversal": (paths, {"200", "400", "401", "404"}),
    "invalid job ids": (job_ids, {"400", "404", "422"}),
    "wrong methods": (wrong_methods, {"404", "405"}),
    "huge headers and addresses": (large_headers, {"200", "400", "404"}),
    "no HTTP": (no_http, {"400", "403", "405"}),
    "50 at once": (at_once, {"200", "400", "415", "429"}),
}


@pytest.mark.parametrize("kind", ATTACKS)
def test_hostile_requests(target: Target, memory_before: float, kind: str):
    attack, allowed = ATTACKS[kind]
    began = time.monotonic()
    statuses = [check(answer) for answer in attack(target)]
    target.seconds += time.monotonic() - began
    target.table[kind] = Counter(statuses)
    assert set(statuses) <= allowed
    assert target.process.poll() is None


def test_a_large_upload_stays_in_memory(target: Target, memory_before: float):
    # The server can't write to files: see support/app_process.py.
    photo = encoded(Image.frombytes("RGB", (800, 800), os.urandom(3 * 800 * 800)))
    assert 2**20 < len(photo) < LIMITS.body
    answer = target.post("/api/inpaint", {"photo": photo, "mask": hostile.mask((800, 800))})
    assert (answer.status, len(answer.body) > 2**20) == (200, True)


def test_the_server_is_as_before(target: Target, memory_before: float):
    # The jobs of those who hung up are over soon.
    for _ in range(20):
        answer = target.post("/api/inpaint", FIELDS)
        if answer.status == 200:
            break
        time.sleep(0.25)
    assert answer.status == 200
    assert json.loads(answer.headers["x-showface-notes"]) in (
        [],
        ["no face was found at the hole, which is filled as in a picture without faces"],
    )
    grown = target.megabytes - memory_before
    rows = [(kind, sum(found.values()), found) for kind, found in target.table.items()]
    total = sum(count for _, count, _ in rows)
    print("\n| kind | requests | answers |\n|---|---|---|")
    for kind, count, found in rows:
        print(f"| {kind} | {count} | {', '.join(f'{found[each]} x {each}' for each in sorted(found))} |")
    print(f"\n{total} requests in {target.seconds:.0f} s; memory {memory_before:.0f} MB, then {grown:+.0f} MB")
    assert grown < MARGIN
    if len(target.table) == len(ATTACKS):
        assert total >= 200
    target.process.terminate()
    _, errors = target.process.communicate(timeout=10)
    assert errors == "", "the server logged an error, or opened a file for writing"
