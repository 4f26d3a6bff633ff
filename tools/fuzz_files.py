"""Read many broken image files, as photos and as masks, and check that each gives a result or one clear line.

    python tools/fuzz_files.py --cases 200000 --processes 2

Small files of every format that showface reads are made, then bytes are changed, moved, cut or repeated. The same seed
gives the same cases. Each process has a limit on its memory, and each case a limit on its time. A case fails by any
exception other than the documented ones, by a message of several lines, by a crash, by a hang, or by a half-written
file. The command prints the failing cases and exits with 1.
"""

from __future__ import annotations

import argparse
import faulthandler
import io
import multiprocessing
import os
import random
import sys
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image

from showface.data import Photo, read_image, read_mask, read_photo, save_photo
from showface.data.images import FORMATS, register_heif

SECONDS = 20  # for one case
# Bytes of address space that a process may add while it reads.
MEMORY = 2 << 30
PIXELS = 1_000_000  # the limit of an image's size here, so that a case is quick


def seeds() -> list[tuple[str, bytes]]:
    """Small valid files: each format in several modes and with several options, by the name of the format."""
    register_heif()
    Image.init()
    rng = np.random.default_rng(0)
    colours = Image.fromarray(rng.integers(0, 256, (24, 20, 3), dtype=np.uint8))
    deep = Image.fromarray(np.asarray(colours.convert("L")).astype(np.uint16) * 257)
    exif = Image.Exif()
    exif[0x0112], exif[0x010E] = 6, "a picture"
    options: list[dict[str, object]] = [
        {},
        {"exif": exif},
        {"progressive": True},
        {"compression": "tiff_lzw"},
        {"compression": "jpeg"},
        {"compression": "tiff_adobe_deflate"},
        {"lossless": True},
        {"save_all": True, "append_images": [colours.rotate(90)]},
        {"interlace": 1},
    ]
    found: dict[tuple[str, bytes], None] = {}
    for name in FORMATS:
        for mode in ("1", "L", "P", "RGB", "RGBA", "LA", "CMYK", "I;16"):
            image = deep if mode == "I;16" else colours.convert("L").convert(mode) if mode == "LA" else None
            image = image or colours.convert(mode)
            for more in options[:2] if name == "AVIF" else options:  # animated AVIF holds the time
                file = io.BytesIO()
                try:
                    image.save(file, format=name, **more)
                except Exception:  # this format has no such mode or option
                    continue
                found[name, file.getvalue()] = None
    return list(found)


def mutate(data: bytes, rng: random.Random) -> bytes:
    """One to eight random changes to a file."""
    changed = bytearray(data)
    for _ in range(rng.choice((1, 1, 1, 2, 3, 8))):
        if not changed:
            break
        # Headers decide more than pixels.
        at = rng.randrange(min(len(changed), rng.choice((32, 128, 1 << 30))))
        kind = rng.randrange(8)
        if kind == 0:
            changed[at] ^= 1 << rng.randrange(8)
        elif kind == 1:
            changed[at] = rng.choice((0, 1, 127, 128, 255, rng.randrange(256)))
        elif kind == 2:
            size = rng.choice((2, 4))
            number = rng.choice((0, 1, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0xFFFFFFFF, 0x80000000)) % (1 << 8 * size)
            changed[at : at + size] = number.to_bytes(size, rng.choice(("little", "big")))
        elif kind == 3:
            del changed[at:]
        elif kind == 4:
            del changed[at : at + rng.randrange(1, 64)]
        elif kind == 5:
            changed[at:at] = rng.randbytes(rng.randrange(1, 64))
        elif kind == 6:
            start = rng.randrange(len(changed))
            changed[at:at] = changed[start : start + rng.randrange(1, 256)]
        else:
            start, size = rng.randrange(len(changed)), rng.randrange(1, 32)
            changed[at : at + size] = changed[start : start + size]
    return bytes(changed)


def case(files: list[tuple[str, bytes]], number: int, seed: int = 0) -> bytes:
    """The broken file with this number."""
    rng = random.Random(f"{seed}/{number}")
    return mutate(files[number % len(files)][1], rng)


def check(data: bytes, folder: Path) -> str | None:
    """Read a file as a photo and as a mask, and save it again. Returns what is wrong, or None."""
    result: object = None
    path = folder / "case"  # a decoder may map a file by its name into memory, and go another way
    path.write_bytes(data)
    pictures = []
    try:
        for read, source in ((read_image, io.BytesIO(data)), (read_image, path), (read_mask, path), (read_photo, path)):
            try:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")
                    result = read(source)
            except OSError as error:  # UnreadableImageError is one
                if isinstance(error.__cause__, MemoryError):
                    return f"{read.__name__}: it needs too much memory"
                if "\n" in str(error) or not str(error):
                    return f"{read.__name__}: the message is not one line: {str(error)!r}"
            except Exception as error:
                return f"{read.__name__}: {type(error).__name__}: {error}"
            else:
                pictures += [result] if isinstance(result, Image.Image) else []
    finally:
        path.unlink()
    if len(pictures) == 2 and pictures[0] != pictures[1]:
        return "read_image: the pixels depend on whether the file is given by its path"
    return _check_saving(result, folder, (".png", ".jpg", ".tif")[len(data) % 3]) if isinstance(result, Photo) else None


def _check_saving(photo: Photo, folder: Path, suffix: str) -> str | None:
    if photo.rgb.size != photo.original.size:
        return f"read_photo: the sizes {photo.rgb.size} and {photo.original.size} differ"
    out = folder / f"out{suffix}"
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            save_photo(photo.rgb, out, photo, overwrite=True)
            read_image(out)
    except Exception as error:
        return f"save_photo as {suffix}: {type(error).__name__}: {error}"
    out.unlink()
    left = [path.name for path in folder.iterdir()]
    return f"save_photo as {suffix}: it left {left}" if left else None


def run(first: int, count: int, seed: int = 0) -> Iterator[tuple[int, str]]:
    """Check cases `first` to `first + count`, and yield the number and the problem of each that fails."""
    files = seeds()
    os.environ["SHOWFACE_MAX_PIXELS"] = str(PIXELS)
    _limit_memory()
    with tempfile.TemporaryDirectory() as folder:
        for number in range(first, first + count):
            faulthandler.dump_traceback_later(SECONDS, exit=True)  # a hang ends the process
            problem = check(case(files, number, seed), Path(folder))
            faulthandler.cancel_dump_traceback_later()
            if problem:
                yield number, problem


def _limit_memory() -> None:
    if sys.platform == "linux":
        import resource

        used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        hard = resource.getrlimit(resource.RLIMIT_AS)[1]
        wanted = used + MEMORY
        resource.setrlimit(resource.RLIMIT_AS, (wanted if hard < 0 else min(wanted, hard), hard))


def _work(first: int, count: int, seed: int, numbers: multiprocessing.Queue[tuple[int, str]]) -> None:
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # the decoders' libraries write there
    for found in run(first, count, seed):
        numbers.put(found)
    numbers.put((-1, ""))


def run_in_processes(first: int, count: int, processes: int, seed: int = 0) -> list[str]:
    """Check cases in several processes. Returns a line for each failure; a process that dies is one."""
    context = multiprocessing.get_context("spawn")
    step = -(-count // processes)
    lines, running = [], []
    for start in range(first, first + count, step):
        queue = context.Queue()
        amount = min(step, first + count - start)
        worker = context.Process(target=_work, args=(start, amount, seed, queue))
        worker.start()
        running.append((worker, queue, start, amount))
    for worker, queue, start, amount in running:
        finished = False
        while worker.is_alive() or not queue.empty():
            try:
                number, problem = queue.get(timeout=0.2)
            except Exception:
                continue
            finished = finished or number < 0
            if number >= 0:
                lines.append(f"case {number}: {problem}")
        worker.join()
        if worker.exitcode or not finished:
            lines.append(f"cases {start} to {start + amount - 1}: the process ended with {worker.exitcode}")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=10_000)
    parser.add_argument("--first", type=int, default=0, help="number of the first case")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1)
    arguments = parser.parse_args()
    lines = run_in_processes(arguments.first, arguments.cases, arguments.processes, arguments.seed)
    print("\n".join([*lines, f"{arguments.cases} cases, {len(lines)} failures"]))
    sys.exit(bool(lines))


if __name__ == "__main__":
    main()
