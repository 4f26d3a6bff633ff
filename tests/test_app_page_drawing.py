"""The app's page in a real browser: drawing masks, undoing, zooming, and masks as files."""

import numpy as np
import pytest
from PIL import Image

import showface
from showface.data import grow_hole

from support.page import PHONE, PORTRAIT, noise, png_file, scattered

pytestmark = [pytest.mark.browser, pytest.mark.shared("page")]


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
