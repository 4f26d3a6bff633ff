"""The app's page in a real browser: that it fits phones and desktops, can be used by everyone, and stays quick."""

import io
import json

import numpy as np
import pytest
from PIL import ExifTags, Image

from support.page import DESKTOP, PHONE, PORTRAIT, Visitor

pytestmark = [pytest.mark.browser, pytest.mark.shared("page")]

ALWAYS = ["#open", "#help-open", "#undo", "#redo", "#size", "#run", "#zoom-in", "#zoom-out", "#zoom-fit"]
TOOLS = [f"[data-tool={name}]" for name in ("brush", "eraser", "rectangle", "lasso", "hand")]
PANEL = [
    "#invert",
    "#clear",
    "#grow",
    "#grow-by",
    "#import",
    "#export",
    "#faces-show",
    "#faces-use",
    "#detail",
    "#model",
]
RESULT = ["#download-png", "#go-on"]
SECONDS = 0.25  # between a pointer's move and the painted frame; about 0.01 where nothing else runs


def overflow(visitor: Visitor) -> int:
    """How many pixels the page is wider than the window."""
    return visitor.page.evaluate("() => document.documentElement.scrollWidth - window.innerWidth")


def is_reachable(visitor: Visitor, selector: str) -> bool:
    """Whether the middle of an element is in the window, and nothing covers it."""
    visitor.page.locator(selector).scroll_into_view_if_needed()
    return visitor.page.evaluate(
        """selector => {
          const element = document.querySelector(selector);
          const {x, y, width, height} = element.getBoundingClientRect();
          const top = document.elementFromPoint(x + width / 2, y + height / 2);
          return element === top || element.contains(top);
        }""",
        selector,
    )


@pytest.mark.parametrize("size", [DESKTOP, PHONE, (320, 640), (768, 1024), (844, 390)])
def test_everything_is_reachable(browser, page_address, size):
    is_phone = size[0] < 761
    visitor = Visitor(browser, page_address, size, touch=is_phone)
    page = visitor.page
    assert overflow(visitor) <= 0
    assert is_reachable(visitor, "#choose")
    assert is_reachable(visitor, "#example")
    visitor.open(PORTRAIT, PORTRAIT)
    visitor.draw((0.4, 0.5), (0.6, 0.55))
    visitor.fill()
    page.click("#toast-close")
    assert overflow(visitor) <= 0
    shown = ALWAYS + TOOLS + ["#mode-edit", "#mode-compare", "#add"]
    shown += ["#options", "#quick-download"] if is_phone else []
    assert [selector for selector in shown if not is_reachable(visitor, selector)] == []
    if is_phone:
        page.click("#options")
        assert page.get_attribute("#options", "aria-expanded") == "true"
    assert [selector for selector in PANEL + RESULT if not is_reachable(visitor, selector)] == []
    if is_phone:
        assert all(page.locator(tool).bounding_box()["height"] >= 38 for tool in TOOLS)
        page.keyboard.press("Escape")
        assert page.is_hidden("#panel")
    assert overflow(visitor) <= 0
    visitor.context.close()
    visitor.check()


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("size", [DESKTOP, PHONE], ids=["desktop", "phone"])
def test_axe_finds_nothing_serious(browser, page_address, size, dark):
    axe = pytest.importorskip("axe_playwright_python.sync_playwright").Axe()
    visitor = Visitor(browser, page_address, size, touch=size == PHONE, dark=dark)
    page = visitor.page

    def check(state: str) -> None:
        violations = axe.run(page).response["violations"]
        serious = [violation for violation in violations if violation["impact"] in ("serious", "critical")]
        found = [(one["id"], node["target"], node["failureSummary"]) for one in serious for node in one["nodes"]]
        assert not found, f"{state}: {json.dumps(found, indent=2)}"

    check("empty")
    visitor.open(PORTRAIT, PORTRAIT)
    check("a photo without a mask")
    visitor.draw((0.4, 0.5), (0.6, 0.55))
    page.click("#run")
    check("running")
    page.wait_for_selector("#compare:not([hidden])", timeout=90_000)
    if size == PHONE:
        page.click("#options")
    check("a result")
    page.set_input_files("#photo-file", {"name": "broken.jpg", "mimeType": "image/jpeg", "buffer": b"nothing"})
    page.wait_for_selector("#error:has-text('broken.jpg')")
    check("an error")
    for dialog in ("help", "about", "closing"):
        page.evaluate("id => document.getElementById(id).showModal()", dialog)
        check(dialog)
        page.keyboard.press("Escape")
    visitor.context.close()
    visitor.check()


def test_the_focus_is_seen_and_goes_everywhere(browser, page_address):
    visitor = Visitor(browser, page_address)
    page = visitor.page
    visitor.open(PORTRAIT)
    visitor.draw((0.4, 0.5), (0.6, 0.55))
    seen = set()
    page.evaluate("() => document.activeElement.blur()")
    for _ in range(60):
        page.keyboard.press("Tab")
        name, outline = page.evaluate(
            "() => [document.activeElement.id || document.activeElement.dataset.tool,"
            " getComputedStyle(document.activeElement).outlineStyle]"
        )
        if name:
            assert outline != "none", name
            seen.add(name)
    wanted = {selector.lstrip("#").removeprefix("[data-tool=").rstrip("]") for selector in ALWAYS + TOOLS + PANEL}
    assert wanted - seen <= {"redo"}  # disabled
    page.click("#help-open")
    assert page.is_visible("#help")
    page.keyboard.press("Escape")
    assert page.evaluate("() => document.activeElement.id") == "help-open"
    visitor.context.close()
    visitor.check()


def test_a_photo_of_20_megapixels_stays_smooth(browser, page_address, record_property, capsys):
    small = np.random.default_rng(0).integers(0, 256, (365, 548, 3), dtype=np.uint8)
    data = io.BytesIO()
    Image.fromarray(small).resize((5472, 3648), Image.Resampling.BICUBIC).save(data, "jpeg", quality=85)
    visitor = Visitor(browser, page_address)
    page = visitor.page
    visitor.open({"name": "large.jpg", "mimeType": "image/jpeg", "buffer": data.getvalue()})
    page.evaluate(
        """() => {
          window.times = [];
          document.getElementById("over").addEventListener("pointermove", () => {
            const began = performance.now();
            // A message that is sent in a frame's callback arrives after the frame was painted.
            requestAnimationFrame(() => {
              const channel = new MessageChannel();
              channel.port1.onmessage = () => window.times.push(performance.now() - began);
              channel.port2.postMessage(0);
            });
          });
        }"""
    )
    for row in range(3):
        visitor.draw((0.1, 0.2 + 0.2 * row), (0.4, 0.5), (0.9, 0.2 + 0.2 * row))
    times = np.array(page.evaluate("() => window.times"))
    text = f"{len(times)} moves: median {np.median(times):.1f} ms, 95% {np.percentile(times, 95):.1f} ms"
    record_property("pointer_to_frame", text)
    with capsys.disabled():
        print(f"\n{text}")
    assert len(times) > 30
    assert np.median(times) < 1000 * SECONDS
    hole = visitor.mask()
    assert hole.shape == (3648, 5472)
    assert 0.01 < hole.mean() < 0.3
    visitor.context.close()
    visitor.check()


@pytest.mark.parametrize("orientation", [1, 6])
def test_a_large_photo_is_sharp_when_zoomed_in(browser, page_address, orientation):
    # Upright, the upper left quarter has fine stripes, which a copy of 2048 pixels can't show.
    upright = np.full((3600, 4800, 3), 90, np.uint8)
    upright[:1800:2, :2400] = 250
    data, exif = io.BytesIO(), Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    stored = Image.fromarray(upright).rotate(90, expand=True) if orientation == 6 else Image.fromarray(upright)
    stored.save(data, "jpeg", quality=95, exif=exif)
    visitor = Visitor(browser, page_address)
    page = visitor.page
    visitor.open({"name": "large.jpg", "mimeType": "image/jpeg", "buffer": data.getvalue()})

    def contrast(x: float, y: float) -> float:
        """The difference between rows around a point of the stage."""
        return page.evaluate(
            """([x, y]) => {
              const canvas = document.getElementById("before");
              const part = canvas.getContext("2d").getImageData(canvas.width * x, canvas.height * y, 1, 24).data;
              const values = [...part].filter((_, i) => i % 4 === 0);
              return Math.max(...values) - Math.min(...values);
            }""",
            [x, y],
        )

    assert contrast(0.4, 0.4) < 60
    page.mouse.move(*visitor.place(0.5, 0.5))
    for _ in range(7):
        page.mouse.wheel(0, -400)
    for _ in range(50):
        if contrast(0.4, 0.4) > 120:
            break
        page.wait_for_timeout(100)
    assert contrast(0.4, 0.4) > 120
    assert contrast(0.6, 0.4) < 20
    assert contrast(0.4, 0.6) < 20
    page.click("#zoom-fit")
    page.wait_for_timeout(500)
    assert contrast(0.4, 0.4) < 60
    visitor.context.close()
    visitor.check()
