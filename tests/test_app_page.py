"""The app's page in a real browser, with the real server and the bundled model: drawing, filling, comparing, files."""

import json
import warnings

import numpy as np
import pytest
from PIL import ExifTags, Image, PngImagePlugin

import showface
from showface.models import BUNDLED
from showface.models.network import saved_detail

from support.page import MASK, PORTRAIT, noise, png_file, scattered, serving

pytestmark = [pytest.mark.browser, pytest.mark.shared("page")]


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
        page.click("#closing-yes")
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


def test_the_browser_decodes_photos_as_srgb(visit):
    """What the engine of static hosts reads."""
    page = visit().page
    photo = noise(40, 30)
    linear = PngImagePlugin.PngInfo()
    linear.add(b"gAMA", (100_000).to_bytes(4, "big"))
    script = """async (numbers) => {
      const { decode } = await import("./static/onnx/photo.js");
      const { data, isFlattened } = await decode(new Blob([new Uint8Array(numbers)], {type: "image/png"}));
      return [Array.from(data), isFlattened];
    }"""
    seen = []
    for image, options in ((photo, {}), (photo, {"pnginfo": linear}), (photo.convert("RGBA"), {}), (_clear(photo), {})):
        data, is_flattened = page.evaluate(script, list(png_file("a.png", image, **options)["buffer"]))
        seen.append((np.array_equal(np.reshape(data, (30, 40, 3)), np.asarray(photo)), is_flattened))
    assert seen == [(True, False), (False, False), (True, False), (False, True)]


def _clear(photo: Image.Image) -> Image.Image:
    """The photo with a transparent pixel."""
    clear = photo.convert("RGBA")
    clear.putpixel((5, 5), (0, 0, 0, 0))
    return clear


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


def test_photos_that_cannot_be_shown_are_named_together(visit):
    page = visit().page
    broken = [{"name": f"{name}.jpg", "mimeType": "image/jpeg", "buffer": b"nothing"} for name in "abc"]
    good = [png_file(f"{name}.png", noise(64, 64)) for name in "xy"]
    page.set_input_files("#photo-file", [broken[0], good[0], broken[1], good[1], broken[2]])
    page.wait_for_selector("#error:has-text('c.jpg')")
    for name in "abc":
        assert f"can't show {name}.jpg" in page.inner_text("#error")
    assert page.locator("#thumbs li").count() == 2
    assert page.locator("#thumbs li").nth(0).locator("[aria-current=true]").count() == 1


def test_notes_of_the_photos_own_format_are_said(visit):
    visitor = visit()
    visitor.open(png_file("noise.jpg", noise(64, 64)))
    visitor.draw((0.4, 0.4), (0.6, 0.6))
    visitor.fill()
    notes = json.dumps(["the JPEG file can't hold it", visitor.page.inner_text("#notes li").rstrip(".")])

    def answer(route):
        response = route.fetch()
        route.fulfill(response=response, headers=response.headers | {"x-showface-notes": notes})

    visitor.page.route("**/api/inpaint", answer)
    visitor.download("#download-same")
    visitor.page.wait_for_selector('#status:has-text("The JPEG file can\'t hold it.")', state="attached")


def test_the_token_in_the_address(visit):
    with serving(token="a-secret-of-some-length") as address:
        visitor = visit(address=f"{address}#token=a-secret-of-some-length")
        assert visitor.page.url == address
        without = visitor.context.new_page()
        without.goto(address)
        without.wait_for_selector("#error:has-text('Open the address that showface app printed')")
        visitor.open(PORTRAIT)
        visitor.draw((0.4, 0.4), (0.6, 0.6))
        visitor.fill()
        visitor.context.close()
