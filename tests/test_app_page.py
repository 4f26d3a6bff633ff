"""The app's page in a real browser, with the real server and the bundled model: drawing, filling, comparing, files."""

import warnings
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from PIL import ExifTags, Image

import showface
from showface.data import grow_hole
from showface.models import BUNDLED
from showface.models.network import saved_detail

from support.page import MASK, PHONE, PORTRAIT, Visitor, png_file, serving

pytestmark = [pytest.mark.browser, pytest.mark.shared("page")]


@pytest.fixture
def visit(browser: Any, page_address: str) -> Iterator[Callable[..., Visitor]]:
    """Open the page. At the end of the test, nothing may have gone wrong in it."""
    visitors = []

    def start(**options: Any) -> Visitor:
        visitors.append(Visitor(browser, options.pop("address", page_address), **options))
        return visitors[-1]

    yield start
    for visitor in visitors:
        visitor.context.close()
        visitor.check()


def noise(width: int, height: int) -> Image.Image:
    """A picture without faces."""
    small = np.random.default_rng(0).integers(0, 256, (height // 16 + 1, width // 16 + 1, 3), dtype=np.uint8)
    return Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC)


def scattered(height: int, width: int) -> np.ndarray:
    hole = np.random.default_rng(1).random((height, width)) > 0.97
    hole[: height // 4, : width // 3] = True
    return hole


def test_a_stroke_is_filled_as_in_python(visit):
    visitor = visit()
    visitor.open(PORTRAIT)
    visitor.draw((0.3, 0.4), (0.5, 0.5), (0.7, 0.45))
    hole = visitor.mask()
    assert hole.shape == (256, 256)
    assert 0.005 < hole.mean() < 0.2
    visitor.fill()
    result, name = visitor.download("#download-png")
    assert name == "portrait-filled.png"
    np.testing.assert_array_equal(np.asarray(result), np.asarray(showface.inpaint(PORTRAIT, hole)))
    assert "1 face" in visitor.page.inner_text("#result-text")
    np.testing.assert_array_equal(visitor.mask(), hole)  # kept for another run


def test_undo_and_redo(visit):
    visitor = visit()
    visitor.open(PORTRAIT)
    page, masks = visitor.page, [np.zeros((256, 256), bool)]
    assert page.is_disabled("#undo")
    assert page.is_disabled("#redo")
    assert page.is_disabled("#run")
    for step in range(15):  # more than between two snapshots
        visitor.draw((0.1, 0.05 + step * 0.06), (0.8, 0.05 + step * 0.06))
        masks.append(visitor.mask())
        assert masks[-1].sum() > masks[-2].sum()
    for hole in masks[-2:9:-1]:
        page.click("#undo")
        np.testing.assert_array_equal(visitor.mask(), hole)
        assert visitor.shown_area(*hole.shape) == pytest.approx(hole.sum(), rel=0.04)
    for hole in masks[11:13]:
        page.keyboard.press("Control+Shift+Z")
        np.testing.assert_array_equal(visitor.mask(), hole)
    visitor.draw((0.5, 0.1), (0.5, 0.9))
    assert page.is_disabled("#redo")
    for _ in range(13):
        page.keyboard.press("Control+z")
    assert page.is_disabled("#undo")
    assert not visitor.mask().any()


def test_what_is_shown_is_what_goes_up(visit):
    """The canvas on the screen and the mask of full size are drawn by different programs: a page and a worker."""
    visitor = visit()
    visitor.open(png_file("large.jpg", noise(3000, 2400)))
    page = visitor.page
    visitor.draw((0.2, 0.2), (0.8, 0.3))
    page.click("[data-tool=lasso]")
    visitor.draw((0.3, 0.5), (0.6, 0.5), (0.5, 0.8))
    page.fill("#grow-by", "1")
    for _ in range(21):  # less than a pixel on the screen, each
        page.click("#grow")
    page.click("#undo")
    page.click("[data-tool=eraser]")
    visitor.draw((0.5, 0.1), (0.5, 0.9))
    hole = visitor.mask()
    assert hole.shape == (2400, 3000)
    assert visitor.shown_area(*hole.shape) == pytest.approx(hole.sum(), rel=0.02)


def test_shapes_and_operations(visit):
    visitor = visit()
    visitor.open(PORTRAIT)
    page = visitor.page
    page.keyboard.press("r")
    visitor.draw((0.25, 0.25), (0.75, 0.5))
    rectangle = visitor.mask()
    rows, columns = (np.flatnonzero(rectangle.any(axis=axis)) for axis in (1, 0))
    assert rectangle[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1].all()
    assert (len(columns), len(rows)) == (pytest.approx(128, abs=6), pytest.approx(64, abs=4))

    page.click("#invert")
    np.testing.assert_array_equal(visitor.mask(), ~rectangle)
    page.click("#invert")
    page.fill("#grow-by", "7")
    page.click("#grow")
    np.testing.assert_array_equal(visitor.mask(), grow_hole(rectangle, 7))

    page.keyboard.press("l")
    visitor.draw((0.1, 0.7), (0.9, 0.7), (0.5, 0.95))
    lasso = visitor.mask() & ~grow_hole(rectangle, 7)
    assert lasso.mean() == pytest.approx(0.1, abs=0.02)

    page.keyboard.press("e")
    visitor.draw((0.5, 0.1), (0.5, 0.95))
    assert not visitor.mask()[40:240, 128].any()
    page.keyboard.press("b")
    page.keyboard.down("Alt")
    before = visitor.mask().sum()
    visitor.draw((0.1, 0.4), (0.9, 0.4))
    page.keyboard.up("Alt")
    assert visitor.mask().sum() < before

    page.click("#clear")
    assert not visitor.mask().any()
    assert page.is_disabled("#run")


def test_the_size_of_the_brush(visit):
    visitor = visit()
    visitor.open(PORTRAIT)
    areas = []
    for key in ("", "[", "]", "]"):
        for _ in range(3 * bool(key)):
            visitor.page.keyboard.press(key)
        visitor.draw((0.5, 0.5), (0.5, 0.5))  # a dot
        areas.append(visitor.mask().sum())
        diameter = int(visitor.page.inner_text("#size-text").removesuffix(" px"))
        assert areas[-1] == pytest.approx(np.pi * diameter**2 / 4, rel=0.1, abs=6)
        visitor.page.click("#clear")
    assert areas[1] < areas[0] == areas[2] < areas[3]


@pytest.mark.parametrize("size", [(256, 256), (2500, 1301)])
def test_masks_go_in_and_out_pixel_by_pixel(visit, size):
    visitor = visit()
    visitor.open(png_file("photo.jpg", noise(*size)))
    hole = scattered(size[1], size[0])
    visitor.import_mask(hole)
    np.testing.assert_array_equal(visitor.mask(), hole)
    image, name = visitor.download("#export")
    assert (image.size, image.mode, name) == (size, "1", "photo-mask.png")
    visitor.page.click("#clear")
    visitor.page.set_input_files("#mask-file", png_file("again.png", image))
    visitor.page.wait_for_timeout(300)
    np.testing.assert_array_equal(visitor.mask(), hole)


def test_grey_and_transparent_masks_are_read_as_in_python(visit):
    grey = np.tile(np.arange(256, dtype=np.uint8), (256, 1))
    visitor = visit()
    visitor.open(PORTRAIT)
    for mask in (Image.fromarray(grey), Image.merge("LA", [Image.new("L", (256, 256), 255), Image.fromarray(grey)])):
        visitor.page.set_input_files("#mask-file", png_file("mask.png", mask))
        visitor.page.wait_for_timeout(300)
        np.testing.assert_array_equal(visitor.mask(), showface.data.read_mask(mask))


def test_a_mask_of_another_size_is_refused(visit):
    visitor = visit()
    visitor.open(PORTRAIT)
    visitor.page.set_input_files("#mask-file", png_file("mask.png", Image.new("L", (100, 50), 255)))
    visitor.page.wait_for_selector("#error:has-text('The mask is 100 × 50 pixels, and the photo 256 × 256')")


def test_fingers_draw_and_zoom(visit):
    visitor = visit(size=PHONE, touch=True)
    visitor.open(PORTRAIT)
    page = visitor.page
    visitor.touch([(0.3, 0.5)], [(0.4, 0.5)], [(0.6, 0.52)], [(0.7, 0.5)])
    assert page.is_enabled("#undo")
    before = page.inner_text("#zoom-text")
    visitor.touch([(0.4, 0.5), (0.6, 0.5)], [(0.3, 0.5), (0.7, 0.5)], [(0.2, 0.5), (0.8, 0.5)])
    after = page.inner_text("#zoom-text")
    assert int(after[:-1]) == pytest.approx(3 * int(before[:-1]), rel=0.05)
    page.click("#zoom-fit")
    assert page.inner_text("#zoom-text") == before
    # A second finger that comes late takes the stroke back.
    session = visitor.context.new_cdp_session(page)
    first, second = (dict(zip("xy", visitor.place(x, 0.3), strict=True), id=i) for i, x in enumerate((0.4, 0.6)))
    for touches in ([first], [first | {"y": first["y"] + 20}], [first, second]):
        kind = "touchMove" if touches == [first | {"y": first["y"] + 20}] else "touchStart"
        session.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": touches})
    session.send("Input.dispatchTouchEvent", {"type": "touchEnd", "touchPoints": []})
    page.click("#undo")
    assert page.is_disabled("#undo")
    page.click("#redo")
    visitor.fill()
    split = page.locator("#handle").bounding_box()
    visitor.touch([(0.5, 0.5)], [(0.6, 0.5)], [(0.8, 0.5)])
    assert page.locator("#handle").bounding_box()["x"] > split["x"] + 40
    result, _ = visitor.download("#quick-download")
    assert result.size == (256, 256)


def test_the_mouse_zooms_and_moves(visit):
    visitor = visit()
    visitor.open(PORTRAIT)
    page = visitor.page

    def zoom() -> int:
        return int(page.inner_text("#zoom-text")[:-1])

    fitted = zoom()
    page.mouse.move(*visitor.place(0.5, 0.5))
    page.mouse.wheel(0, -300)
    page.wait_for_timeout(100)
    assert zoom() > fitted
    page.keyboard.press("0")
    assert zoom() == fitted
    page.keyboard.press("+")
    page.keyboard.press("-")
    assert zoom() == pytest.approx(fitted, abs=2)
    # What is drawn after the photo was moved lies elsewhere.
    visitor.draw((0.5, 0.5), (0.5, 0.5))
    centre = np.argwhere(visitor.mask()).mean(axis=0)
    page.click("#clear")
    page.locator("#over").focus()
    page.keyboard.down(" ")
    visitor.draw((0.5, 0.5), (0.7, 0.5))
    page.keyboard.up(" ")
    assert not visitor.mask().any()
    visitor.draw((0.5, 0.5), (0.5, 0.5))
    moved = np.argwhere(visitor.mask()).mean(axis=0)
    assert moved[0] == pytest.approx(centre[0], abs=2)
    assert moved[1] == pytest.approx(centre[1] - 0.2 * 256, abs=6)


def test_cancel(visit):
    visitor = visit()
    visitor.open(PORTRAIT)
    visitor.import_mask(scattered(256, 256))
    page = visitor.page
    page.keyboard.press("Control+Enter")
    page.wait_for_selector("#progress-box:not([hidden])")
    page.keyboard.press("Escape")
    page.wait_for_selector("#status:has-text('Cancelled')")
    assert page.is_hidden("#result-section")
    np.testing.assert_array_equal(visitor.mask(), scattered(256, 256))
    visitor.fill()  # the server is free again


def test_the_cancel_button_and_the_focus(visit):
    visitor = visit()
    visitor.open(png_file("large.jpg", noise(1600, 1200)))
    visitor.import_mask(scattered(1200, 1600))
    page = visitor.page
    page.dblclick("#run")  # the second click falls on Cancel, and is not meant
    assert page.is_visible("#cancel")
    page.wait_for_timeout(500)
    page.click("#cancel")
    page.wait_for_selector("#status:has-text('Cancelled')")
    page.focus("#help-open")
    page.keyboard.press("Shift+Tab")
    page.focus("#run")
    page.keyboard.press("Enter")
    assert page.evaluate("() => document.activeElement.id") == "cancel"
    page.wait_for_selector("#compare:not([hidden])", timeout=90_000)
    assert page.evaluate("() => document.activeElement.id") == "split"
    page.keyboard.press("ArrowLeft")
    assert page.get_attribute("#split", "aria-valuetext") == "49% before"
    page.click("[data-tool=eraser]")
    assert page.evaluate("() => document.activeElement.id") == "over"


def test_progress_is_shown(visit):
    visitor = visit()
    visitor.open(png_file("large.jpg", noise(1600, 1200)))
    page = visitor.page
    visitor.import_mask(scattered(1200, 1600))
    page.evaluate(
        """() => {
          window.stages = new Set();
          const text = document.getElementById("progress-text");
          new MutationObserver(() => window.stages.add(text.textContent)).observe(text, {childList: true});
        }"""
    )
    visitor.fill()
    assert len(page.evaluate("() => [...window.stages]")) >= 2


def test_the_line_between_before_and_after(visit):
    visitor = visit()
    visitor.open(PORTRAIT)
    visitor.draw((0.2, 0.5), (0.8, 0.5))
    visitor.fill()
    page = visitor.page

    def line() -> float:
        return page.locator("#handle").bounding_box()["x"]

    middle = line()
    page.focus("#split")
    for _ in range(10):
        page.keyboard.press("ArrowRight")
    width = page.locator("#compare").bounding_box()["width"]
    assert line() == pytest.approx(middle + 0.1 * width, abs=2)
    page.mouse.move(*visitor.place(0.3, 0.5))
    page.mouse.down()
    page.mouse.move(*visitor.place(0.2, 0.5))
    page.mouse.up()
    assert line() == pytest.approx(middle - 0.3 * width, abs=4)
    assert page.get_attribute("#split", "aria-valuetext") == "20% before"
    page.keyboard.press("c")
    assert page.is_hidden("#compare")
    page.click("#mode-compare")
    assert page.is_visible("#compare")
    page.keyboard.press("b")  # a tool goes back to the mask
    assert page.is_hidden("#compare")


def test_a_turned_jpeg_comes_back_with_what_it_carried(visit):
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    exif[ExifTags.Base.Make] = "Camera"
    portrait = Image.open(PORTRAIT).resize((320, 400))
    file = png_file("turned.jpg", portrait.rotate(90, expand=True), exif=exif, quality=92)
    visitor = visit()
    visitor.open(file)
    visitor.draw((0.4, 0.5), (0.6, 0.55))
    hole = visitor.mask()
    assert hole.shape == (400, 320)
    visitor.fill()
    upright = visitor.download("#download-png")[0]
    assert upright.size == (320, 400)
    result, name = visitor.download("#download-same")
    assert (result.format, result.size, name) == ("JPEG", (320, 400), "turned-filled.jpg")
    assert result.getexif()[ExifTags.Base.Make] == "Camera"
    assert result.getexif()[ExifTags.Base.Orientation] == 1
    assert np.abs(np.asarray(result).astype(int) - np.asarray(upright)).mean() < 3


def test_another_model_and_no_faces(visit):
    visitor = visit()
    visitor.open(PORTRAIT)
    visitor.draw((0.4, 0.5), (0.6, 0.55))
    hole = visitor.mask()
    visitor.page.select_option("#model", "psnr")
    visitor.page.uncheck("#faces-use")
    visitor.fill()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        expected = showface.inpaint(PORTRAIT, hole, model=showface.load_model("psnr"), faces=False)
    np.testing.assert_array_equal(np.asarray(visitor.download("#download-png")[0]), np.asarray(expected))


def test_detail(visit):
    visitor = visit()
    visitor.open(PORTRAIT)
    visitor.draw((0.4, 0.5), (0.6, 0.55))
    hole = visitor.mask()
    slider = visitor.page.locator("#detail")
    assert float(slider.input_value()) == saved_detail(BUNDLED["default"][0])
    slider.fill("0.25")
    visitor.page.uncheck("#faces-use")
    visitor.fill()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        expected = showface.inpaint(PORTRAIT, hole, detail=0.25, faces=False)
    np.testing.assert_array_equal(np.asarray(visitor.download("#download-png")[0]), np.asarray(expected))
    visitor.page.select_option("#model", "psnr")
    assert slider.is_hidden()


def test_go_on_from_the_result(visit):
    visitor = visit()
    visitor.open(PORTRAIT)
    visitor.draw((0.3, 0.4), (0.4, 0.5))
    visitor.fill()
    first = visitor.download("#download-png")[0]
    visitor.page.click("#go-on")
    visitor.page.locator("#thumbs li").nth(1).wait_for()
    visitor.wait_for_faces()
    assert visitor.page.is_disabled("#undo")
    visitor.draw((0.6, 0.6), (0.7, 0.5))
    hole = visitor.mask()
    visitor.fill()
    expected = showface.inpaint(first, hole)
    np.testing.assert_array_equal(np.asarray(visitor.download("#download-png")[0]), np.asarray(expected))


def test_each_photo_keeps_its_mask_history_and_result(visit):
    visitor = visit()
    visitor.open(PORTRAIT, *(png_file(f"{n}.png", noise(300 + n, 200)) for n in range(4)))
    page = visitor.page
    thumbs = page.locator(".thumb")
    visitor.draw((0.3, 0.4), (0.4, 0.5))
    visitor.draw((0.3, 0.6), (0.4, 0.7))
    hole = visitor.mask()
    visitor.fill()
    for n in range(4):
        thumbs.nth(n + 1).click()
        page.wait_for_selector(f".thumb[aria-current][title='{n}.png']")
        assert not visitor.mask().any()
        assert page.is_hidden("#compare")
        page.click("#invert")
    thumbs.nth(0).click()  # its decoded copies were given up in between
    page.wait_for_selector("#compare:not([hidden])")
    np.testing.assert_array_equal(visitor.mask(), hole)
    page.click("#undo")
    assert 0 < visitor.mask().sum() < hole.sum()
    assert page.locator("#thumbs li").nth(0).get_attribute("data-state") == "done"
    assert page.locator("#thumbs li").nth(1).get_attribute("data-state") == "masked"
    for left in range(4, -1, -1):
        page.locator(".thumb-close").nth(0).dispatch_event("click")
        page.locator("#thumbs li").nth(left).wait_for(state="detached")
    page.wait_for_selector("#empty")


def test_a_photo_without_faces(visit):
    visitor = visit()
    visitor.open(png_file("noise.png", noise(256, 256)))
    assert "No face was found" in visitor.page.inner_text("#faces-text")
    assert "No face was found" in visitor.page.inner_text("#status")
    visitor.draw((0.4, 0.4), (0.6, 0.6))
    visitor.fill()
    assert "No face was found" in visitor.page.inner_text("#notes")


def test_photos_are_dropped_and_pasted(visit):
    visitor = visit()
    script = """([kind, numbers]) => {
      const data = new DataTransfer();
      data.items.add(new File([new Uint8Array(numbers)], `${kind}.png`, {type: "image/png"}));
      const event = kind === "drop" ? new DragEvent("drop", {dataTransfer: data, bubbles: true, cancelable: true})
        : new ClipboardEvent("paste", {clipboardData: data, bubbles: true, cancelable: true});
      document.body.dispatchEvent(event);
    }"""
    for number, kind in enumerate(("drop", "paste")):
        visitor.page.evaluate(script, [kind, list(PORTRAIT.read_bytes())])
        visitor.page.locator("#thumbs li").nth(number).wait_for(state="attached")
        visitor.wait_for_faces()


def test_the_example(visit):
    visitor = visit()
    visitor.page.click("#example")
    visitor.wait_for_faces()
    visitor.page.wait_for_selector("#run:enabled")
    np.testing.assert_array_equal(visitor.mask(), showface.data.read_mask(MASK))


def test_errors_are_said(visit):
    visitor = visit()
    page = visitor.page
    page.set_input_files("#photo-file", {"name": "broken.jpg", "mimeType": "image/jpeg", "buffer": b"nothing"})
    page.wait_for_selector("#error:has-text('can\\'t show broken.jpg')")
    visitor.open(PORTRAIT)
    visitor.draw((0.4, 0.4), (0.6, 0.6))
    page.click("[data-tool=eraser]")
    for _ in range(20):
        page.keyboard.press("]")
    visitor.draw((0.3, 0.3), (0.7, 0.7))
    page.click("#run")
    page.wait_for_selector("#error:has-text('The mask is empty')")
    page.click("#toast-close")
    page.click("#undo")
    detail = '{"detail": "the queue is full: try again later"}'
    page.route("**/api/inpaint", lambda route: route.fulfill(status=429, body=detail))
    page.click("#run")
    page.wait_for_selector("#error:has-text('The queue is full: try again later.')")
    page.unroute("**/api/inpaint")
    page.route("**/api/inpaint", lambda route: route.abort())
    page.click("#run")
    page.wait_for_selector("#error:has-text('can\\'t be reached')")
    page.unroute("**/api/inpaint")
    assert len(visitor.errors) == 2  # Chromium's own lines about the two requests
    visitor.errors.clear()
    visitor.fill()


def test_the_token_in_the_address(visit):
    with serving(token="a-secret-of-some-length") as address:
        visitor = visit(address=f"{address}#token=a-secret-of-some-length")
        assert visitor.page.url == address
        visitor.open(PORTRAIT)
        visitor.draw((0.4, 0.4), (0.6, 0.6))
        visitor.fill()
        visitor.context.close()
