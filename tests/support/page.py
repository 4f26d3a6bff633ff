"""The app's page in a real browser: a server with the bundled models, and what a person does on the page."""

import io
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

import showface

DEMO = Path(showface.__file__).parent / "assets" / "demo"
PORTRAIT, MASK = DEMO / "portrait.png", DEMO / "mask.png"
DESKTOP, PHONE = (1440, 900), (390, 844)


@contextmanager
def serving(token: str | None = None) -> Iterator[str]:
    """Serve the app with the bundled models on a free port; gives its address."""
    # Imported here, since the modules of tests are also read where FastAPI is missing.
    from showface.app import load_models

    from support.app import running

    with running(load_models(["default", "psnr"]), token=token) as client:
        yield f"http://127.0.0.1:{client.port}/"


@contextmanager
def chromium() -> Iterator[Any]:
    """Debian's Chromium, driven by Playwright."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        yield browser
        browser.close()


class Visitor:
    """Someone who uses the page, and notes what goes wrong in it.

    Args:
        browser: from `chromium`.
        address: of the page.
        size: of the window.
        touch: with fingers.
        dark: with dark colours.
    """

    def __init__(
        self,
        browser: Any,
        address: str,
        size: tuple[int, int] = DESKTOP,
        *,
        touch: bool = False,
        dark: bool = False,
    ) -> None:
        width, height = size
        self.context = browser.new_context(
            viewport={"width": width, "height": height},
            has_touch=touch,
            color_scheme="dark" if dark else "light",
            reduced_motion="reduce",
        )
        self.page = self.context.new_page()
        self.requests: list[str] = []
        self.errors: list[str] = []
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.on("console", lambda message: self.errors.append(message.text) if message.type == "error" else None)
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))
        self.address = address
        self.page.goto(address)
        self.page.wait_for_selector("#model option", state="attached")

    def check(self) -> None:
        """Nothing was asked of other servers, and nothing failed in the page. That includes its security policy."""
        origin = self.address.split("#")[0]
        strangers = [url for url in self.requests if not url.startswith((origin, f"blob:{origin}", "data:"))]
        assert not strangers
        assert not self.errors

    def open(self, *files: Path | dict[str, Any]) -> None:
        """Open photos, and wait until faces were looked for in the last one that is shown."""
        before = self.page.locator("#thumbs li").count()
        self.page.set_input_files("#photo-file", [_payload(file) for file in files])
        self.page.locator("#thumbs li").nth(before + len(files) - 1).wait_for(state="attached")
        self.wait_for_faces()

    def wait_for_faces(self) -> None:
        self.page.wait_for_selector("#faces-text:has-text('found')", state="attached")

    def place(self, x: float, y: float) -> tuple[float, float]:
        """A point of the window; x and y are fractions of the photo, which must be fitted to the stage."""
        box = self.page.locator("#stage").bounding_box()
        side = min(box["width"] - 48, box["height"] - 132)  # of a square in the middle that lies on the photo
        return box["x"] + box["width"] / 2 + (x - 0.5) * side, box["y"] + box["height"] / 2 + (y - 0.5) * side

    def draw(self, *points: tuple[float, float]) -> None:
        """Draw with the mouse through points, as for `place`."""
        mouse = self.page.mouse
        mouse.move(*self.place(*points[0]))
        mouse.down()
        for point in points[1:]:
            mouse.move(*self.place(*point), steps=8)
        mouse.up()

    def touch(self, *moves: list[tuple[float, float]]) -> None:
        """Put fingers on the stage, move them and lift them. Each move has a point for each finger."""
        session = self.context.new_cdp_session(self.page)
        for at, points in enumerate(moves):
            touches = [dict(zip("xy", self.place(*point), strict=True), id=i) for i, point in enumerate(points)]
            kind = "touchMove" if at else "touchStart"
            session.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": touches})
        session.send("Input.dispatchTouchEvent", {"type": "touchEnd", "touchPoints": []})

    def fill(self) -> None:
        """Press Fill and wait for the comparison."""
        self.page.click("#run")
        self.page.wait_for_selector("#compare:not([hidden]), #error:not(:empty)", timeout=90_000)
        assert not self.page.text_content("#error")

    def download(self, button: str) -> tuple[Image.Image, str]:
        """Press a button that downloads an image; gives the image and the file's name."""
        with self.page.expect_download(timeout=90_000) as started:
            self.page.click(button)
        data = Path(started.value.path()).read_bytes()
        return Image.open(io.BytesIO(data)), started.value.suggested_filename

    def mask(self) -> NDArray[np.bool_]:
        """The exported mask, True = hole."""
        return np.asarray(self.download("#export")[0].convert("L")) > 127

    def shown_area(self, height: int, width: int) -> float:
        """The area of the mask on the screen, in pixels of the photo, which must be fitted to the stage."""
        covered = self.page.evaluate(
            """async () => {
              await new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)));
              const canvas = document.getElementById("mask");
              const {data} = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height);
              let covered = 0;
              for (let i = 3; i < data.length; i += 4) covered += data[i] / 255;
              return covered;
            }"""
        )
        stage = self.page.locator("#stage").bounding_box()
        scale = min((stage["width"] - 48) / width, (stage["height"] - 132) / height)
        return covered / scale**2

    def import_mask(self, hole: NDArray[np.bool_]) -> None:
        """Import a mask as a file."""
        self.page.set_input_files("#mask-file", png_file("mask.png", Image.fromarray(hole)))
        self.page.wait_for_selector("#status:has-text('imported')", state="attached")


def _payload(file: Path | dict[str, Any]) -> dict[str, Any]:
    """Playwright does not take paths and bytes together."""
    if isinstance(file, dict):
        return file
    return {"name": file.name, "mimeType": f"image/{file.suffix[1:]}", "buffer": file.read_bytes()}


def png_file(name: str, image: Image.Image, **options: Any) -> dict[str, Any]:
    """An image as a file to open in the page; its format is that of its name."""
    data = io.BytesIO()
    kind = {"png": "png", "jpg": "jpeg", "webp": "webp"}[name.rsplit(".")[-1]]
    image.save(data, kind, **options)
    return {"name": name, "mimeType": f"image/{kind}", "buffer": data.getvalue()}


def noise(width: int, height: int) -> Image.Image:
    """A picture without faces."""
    small = np.random.default_rng(0).integers(0, 256, (height // 16 + 1, width // 16 + 1, 3), dtype=np.uint8)
    return Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC)


def scattered(height: int, width: int) -> NDArray[np.bool_]:
    """A hole of single pixels, and a block in the corner."""
    hole = np.random.default_rng(1).random((height, width)) > 0.97
    hole[: height // 4, : width // 3] = True
    return hole
