"""Hostile pictures, forms and requests."""

import random
import socket
import struct
import zlib
from collections.abc import Iterator

import numpy as np
from PIL import Image

from support.app import Answer, Field, encode_form, encoded

SIZE = (96, 64)
FORMATS = ("PNG", "JPEG", "WEBP", "TIFF", "GIF", "BMP")


def picture(mode: str = "RGB", size: tuple[int, int] = SIZE) -> Image.Image:
    """Noise on a gradient."""
    noise = np.random.default_rng(0).integers(0, 64, (size[1], size[0], 3), dtype=np.uint8)
    ramp = np.linspace(0, 190, size[0], dtype=np.uint8)[None, :, None]
    return Image.fromarray(noise + ramp).convert(mode)


def mask(size: tuple[int, int] = SIZE) -> bytes:
    """A mask with a hole in the middle."""
    image = Image.new("L", size)
    image.paste(255, (size[0] // 3, size[1] // 3, 2 * size[0] // 3 + 1, 2 * size[1] // 3 + 1))
    return encoded(image)


PHOTO, MASK = encoded(picture()), mask()
FIELDS: dict[str, Field] = {"photo": ("photo.png", PHOTO), "mask": ("mask.png", MASK)}


def chunk(kind: bytes, data: bytes) -> bytes:
    """A chunk of a PNG file."""
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(width: int, height: int, *more: bytes, data: bytes = b"", depth: int = 8, colour: int = 2) -> bytes:
    """A PNG file whose header says this size, and whose pixels are `data`, compressed."""
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0))
    body = chunk(b"IDAT", zlib.compress(data, 9))
    return b"\x89PNG\r\n\x1a\n" + header + b"".join(more) + body + chunk(b"IEND", b"")


def bombs() -> Iterator[bytes]:
    """Small files that claim to be large, or become large when they are decompressed."""
    zeros = bytes(20_000_000)
    yield png(50_000, 50_000)
    yield png(2**31 - 1, 2**31 - 1)
    yield png(0, 0)
    yield png(100_000, 100_000, depth=1, colour=0, data=bytes(1000))
    yield png(64, 64, data=zeros)
    yield png(64, 64, chunk(b"zTXt", b"a\0\0" + zlib.compress(zeros, 9)), data=zeros[: 64 * 193])
    yield png(64, 64, chunk(b"iCCP", b"a\0\0" + zlib.compress(zeros, 9)), data=zeros[: 64 * 193])
    yield png(64, 64, *[chunk(b"zTXt", b"a\0\0" + zlib.compress(zeros[:900_000], 9))] * 90, data=zeros[: 64 * 193])
    yield png(64, 64, chunk(b"eXIf", b"Exif" * 10000), data=zeros[: 64 * 193])
    yield b"GIF89a" + struct.pack("<HHBBB", 65535, 65535, 0, 0, 0) + b",\0\0\0\0\xff\xff\xff\xff\0\2\1\0\0;"
    yield b"BM" + struct.pack("<IIIIiiHHIIiiII", 10**9, 0, 54, 40, 60000, -60000, 1, 24, 0, 0, 0, 0, 0, 0)
    jpeg = bytearray(encoded(picture(), "JPEG"))
    at = jpeg.index(b"\xff\xc0") + 5
    jpeg[at : at + 4] = struct.pack(">HH", 65500, 65500)
    yield bytes(jpeg)
    tiff = encoded(Image.new("1", (20_000, 20_000)), "TIFF", compression="group4")
    yield tiff
    yield encoded(Image.new("1", (3000, 3000)))
    frames = [Image.new("L", (100, 100), level) for level in range(200)]
    yield encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])


def cut_and_changed(count: int) -> Iterator[bytes]:
    """Files of each format that end early, or in which bytes are changed."""
    rng = random.Random(0)
    files = [encoded(picture("P" if form == "GIF" else "RGB"), form) for form in FORMATS]
    for number in range(count):
        data = bytearray(files[number % len(files)])
        if number % 4 == 0:
            yield bytes(data[: rng.randrange(1, len(data))])
            continue
        for _ in range(rng.choice((1, 3, 20))):
            data[rng.randrange(min(len(data), 300) if number % 2 else len(data))] = rng.randrange(256)
        yield bytes(data)


def odd_pictures() -> Iterator[tuple[bytes, bytes]]:
    """Strange photos that are fine, each with a mask."""
    for size in ((1, 1), (1000, 1), (1, 1000), (2, 3), (999, 1000)):
        yield encoded(picture(size=size)), mask(size)
    for mode, form in (("1", "PNG"), ("L", "PNG"), ("LA", "PNG"), ("P", "GIF"), ("CMYK", "JPEG"), ("RGBA", "WEBP")):
        yield encoded(picture(mode), form), MASK
    deep = Image.fromarray(np.arange(SIZE[0] * SIZE[1], dtype=np.uint16).reshape(SIZE[::-1]))
    yield encoded(deep), MASK
    yield encoded(Image.fromarray(np.full(SIZE[::-1], np.nan, np.float32)), "TIFF"), MASK
    yield PHOTO, encoded(Image.new("L", SIZE, 255))
    yield PHOTO, encoded(Image.new("L", SIZE, 0))
    yield encoded(picture(), "JPEG", exif=b"Exif\0\0II*\0" + bytes(range(256)) * 50), MASK
    yield encoded(picture(), "JPEG", icc_profile=bytes(range(256)) * 100), MASK
    yield encoded(picture(), "TIFF", compression="tiff_lzw", dpi=(1e-6, 1e6)), MASK


def files_that_are_no_images() -> Iterator[bytes]:
    """Files of other types."""
    rng = random.Random(1)
    yield from (
        b"",
        b"\0",
        b"{}",
        b"<html></html>",
        b"<svg xmlns='http://www.w3.org/2000/svg'/>",
        b"PK\3\4" + bytes(99),
    )
    yield from (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", b"%PDF-1.7\n", b"\x7fELF" + bytes(99), b"MZ")
    yield from (
        b"\x1f\x8b\x08" + bytes(99),
        b"RIFF\0\0\0\0WAVE",
        b"\xd7\xcd\xc6\x9a" + bytes(99),
        b"\x80\x04N.",
        b"8BPS",
    )
    yield from (b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"GIF89a", b"BM", b"II*\0", b"RIFF\0\0\0\0WEBP", b"P6\n")
    yield from (bytes(rng.randrange(256) for _ in range(size)) for size in (10, 1000, 100_000))


def broken_forms() -> Iterator[tuple[str, bytes]]:
    """Content types and bodies that are no valid forms."""
    body, kind = encode_form(FIELDS)
    boundary = kind.partition("=")[2]
    part = f'--{boundary}\r\nContent-Disposition: form-data; name="%s"\r\n\r\nx\r\n'
    yield from ((kind, body[:size]) for size in (0, 1, 10, 60, 100, 200, len(body) // 2, len(body) - 10, len(body) - 4))
    yield from ((kind, data) for data in (b"\0" * 1000, b"\r\n" * 1000, b"--" * 1000, f"--{boundary}--".encode()))
    yield from (
        (other, body) for other in ("", "application/json", "text/plain", "multipart/form-data", "multipart/mixed")
    )
    yield from (
        ("multipart/form-data; boundary=" + other, body) for other in ("", "x", '""', "y" * 300, "a;b=c", "\xff")
    )
    yield kind, (part % "photo" * 2).encode() + f"--{boundary}--\r\n".encode()
    yield kind, (part % "x" * 2000).encode()
    yield kind, (part % ("n" * 10_000)).encode()
    yield kind, f"--{boundary}\r\n".encode() + b"X-A: b\r\n" * 3000 + b"\r\n"
    yield kind, f"--{boundary}\r\nContent-Disposition: form-data\r\n\r\nx\r\n--{boundary}--\r\n".encode()
    yield kind, f"--{boundary}\r\n: : :\r\n\r\n".encode()
    yield kind, (part % "\xff\0").encode("latin-1") + f"--{boundary}--\r\n".encode()
    yield kind, (part % '"; filename="../../x').encode() + f"--{boundary}--\r\n".encode()


def exchange(port: int, *parts: bytes, close: bool = False, wait: float = 10.0) -> Answer | None:
    """Send bytes as they are, and return the response, or None if the server only closes the connection.

    Raises:
        TimeoutError: the server does neither.
    """
    with socket.create_connection(("127.0.0.1", port), wait) as connection:
        received = b""
        try:
            for part in parts:
                connection.sendall(part)
            if close:
                return None
            while True:
                data = connection.recv(65536)
                received += data
                answer = parsed(received)
                if answer is not None or not data:
                    return answer
        except (ConnectionResetError, BrokenPipeError):
            return parsed(received)


def parsed(received: bytes) -> Answer | None:
    """The response in these bytes, if it is complete."""
    head, end, body = received.partition(b"\r\n\r\n")
    if not end:
        return None
    first, *lines = head.decode("latin-1").split("\r\n")
    headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines)}
    size = int(headers.get("content-length", len(body)))
    return Answer(int(first.split()[1]), headers, body[:size]) if len(body) >= size else None


def request(port: int, method: str, path: str, *headers: str, body: bytes = b"", size: int | None = None) -> bytes:
    """A request as bytes. `size` is what Content-Length says, if it is not the body's own."""
    lines = [f"{method} {path} HTTP/1.1", *headers]
    if not any(line.lower().startswith("host:") for line in headers):
        lines.append(f"Host: 127.0.0.1:{port}")
    if body or size is not None:
        lines.append(f"Content-Length: {len(body) if size is None else size}")
    return "\r\n".join([*lines, "", ""]).encode("latin-1") + body
