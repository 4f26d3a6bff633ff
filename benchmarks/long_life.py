"""Does it last? Many photos through one `Inpainter`, or many requests to one server of the app.

    python benchmarks/long_life.py photos --count 2000 --side 256
    python benchmarks/long_life.py page --clients 8 --minutes 20

*photos* fills differing photos, all with the same hole, and says the memory of the process (resident set) at 10%
and at the end, and whether the first photo still gives the same bits. *page* starts `showface app` and lets clients
send one photo after the other; a client that is told to come back (429) does. It says how many were filled and lost,
the median and the 95th percentile of the time from the first try to the result, and the server's memory after a
tenth of the time and at the end. Linux only.
"""

from __future__ import annotations

import argparse
import hashlib
import http.client
import io
import subprocess
import sys
import threading
import time
import uuid
from pathlib import Path

import numpy as np
from PIL import Image

import showface

DEMO = Path(showface.__file__).parent / "assets" / "demo"
START = "from showface.cli import main; main()"


def resident_mb(process: int | str = "self") -> float:
    lines = Path(f"/proc/{process}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS:")) / 1024


def demo(side: int) -> tuple[Image.Image, Image.Image]:
    """The bundled portrait and its mask."""
    photo, mask = (Image.open(DEMO / name).resize((side, side)) for name in ("portrait.png", "mask.png"))
    return photo.convert("RGB"), mask.convert("L").point(lambda x: 255 * (x > 127))


def variant(photo: Image.Image, number: int) -> Image.Image:
    """Another photo for each number: moved to the side, and brighter or darker."""
    moved = np.roll(np.asarray(photo), number % photo.width, axis=1).astype(np.int16) + number // photo.width
    return Image.fromarray(moved.clip(0, 255).astype(np.uint8))


def fill_photos(count: int, side: int) -> None:
    inpainter = showface.Inpainter()
    photo, mask = demo(side)

    def fill(number: int) -> str:
        return hashlib.sha256(inpainter(variant(photo, number), mask).tobytes()).hexdigest()

    first, early, started = fill(0), 0.0, time.monotonic()
    for number in range(1, count):
        fill(number)
        if number == count // 10:
            early = resident_mb()
    seconds, late = time.monotonic() - started, resident_mb()
    print(f"{count} photos of {side}x{side} in {seconds:.0f} s")
    print(f"the process's memory: {early:.0f} MB after {count // 10}, {late:.0f} MB at the end")
    same = fill(0) == first
    print("the first photo gives " + ("the same bits again" if same else "OTHER BITS"))
    sys.exit(not same)


class Client(threading.Thread):
    """Sends photos to the server, one after the other, until the time is over."""

    def __init__(self, port: int, number: int, side: int, ends: float) -> None:
        super().__init__()
        self.port, self.number, self.side, self.ends = port, number, side, ends
        self.seconds: list[float] = []
        self.lost: list[str] = []

    def run(self) -> None:
        photo, mask = demo(self.side)
        number = 1000 * self.number
        while time.monotonic() < self.ends:
            number += 1
            body, kind = form(variant(photo, number), mask)
            started = time.monotonic()
            try:
                while (answer := self.send(body, kind))[0] == 429:
                    time.sleep(answer[1])
            except (OSError, http.client.HTTPException) as error:
                self.lost.append(repr(error))
                continue
            if answer[0] == 200:
                self.seconds.append(time.monotonic() - started)
            else:
                self.lost.append(f"status {answer[0]}")

    def send(self, body: bytes, kind: str) -> tuple[int, float]:
        """The status, and the seconds after which to try again."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=300)
        try:
            connection.request("POST", "/api/inpaint", body, {"Content-Type": kind})
            answer = connection.getresponse()
            if answer.status == 200:
                Image.open(io.BytesIO(answer.read())).load()
            return answer.status, float(answer.headers.get("Retry-After", 1))
        finally:
            connection.close()


def form(photo: Image.Image, mask: Image.Image) -> tuple[bytes, str]:
    """The body and the content type of a request."""
    edge, body = uuid.uuid4().hex, b""
    for name, image in (("photo", photo), ("mask", mask)):
        file = io.BytesIO()
        image.save(file, "PNG")
        head = f'--{edge}\r\nContent-Disposition: form-data; name="{name}"; filename="{name}.png"\r\n\r\n'
        body += head.encode() + file.getvalue() + b"\r\n"
    return body + f"--{edge}--\r\n".encode(), f"multipart/form-data; boundary={edge}"


def ask_page(count: int, minutes: float, side: int) -> None:
    command = [sys.executable, "-c", START, "app", "--port", "0", "--no-open"]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert server.stdout is not None
        address = next(word for line in server.stdout for word in line.split() if word.startswith("http://"))
        threading.Thread(target=server.stdout.read, daemon=True).start()  # so that the pipe never fills
        ends = time.monotonic() + 60 * minutes
        port = int(address.rstrip("/").rsplit(":", 1)[1].split("/")[0])
        clients = [Client(port, number, side, ends) for number in range(count)]
        for client in clients:
            client.start()
        time.sleep(6 * minutes)
        early = resident_mb(server.pid)
        for client in clients:
            client.join()
        late = resident_mb(server.pid)
    finally:
        server.terminate()
        server.wait()
    seconds = np.array([x for client in clients for x in client.seconds])
    lost = [x for client in clients for x in client.lost]
    print(f"{count} clients, {minutes:g} minutes, photos of {side}x{side}: {seconds.size} filled, {len(lost)} lost")
    if seconds.size:
        print(f"median {np.median(seconds):.1f} s, 95th percentile {np.percentile(seconds, 95):.1f} s")
    print(f"the server's memory: {early:.0f} MB after a tenth of the time, {late:.0f} MB at the end")
    print("\n".join(sorted(set(lost))))
    sys.exit(bool(lost) or not seconds.size)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["photos", "page"])
    parser.add_argument("--count", type=int, default=2000, help="photos (photos)")
    parser.add_argument("--clients", type=int, default=8, help="clients at once (page)")
    parser.add_argument("--minutes", type=float, default=60.0, help="how long the clients send (page)")
    parser.add_argument("--side", type=int, default=256, help="of a photo, in pixels")
    options = parser.parse_args()
    if options.what == "photos":
        fill_photos(options.count, options.side)
    else:
        ask_page(options.clients, options.minutes, options.side)


if __name__ == "__main__":
    main()
