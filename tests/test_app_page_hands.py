"""The app's page in a real browser: clicks, drags and keys that must not do more, or less, than they seem to."""

import pytest

from support.page import PHONE, PORTRAIT, Visitor, noise, png_file

pytestmark = [pytest.mark.browser, pytest.mark.shared("page")]

# Holds back the decoding of images until `window.letGo()`.
HOLD = """() => {
  const decode = window.createImageBitmap.bind(window);
  const held = new Promise((resolve) => (window.letGo = resolve));
  window.createImageBitmap = async (...options) => {
    await held;
    return decode(...options);
  };
}"""


def zoom(visitor: Visitor) -> int:
    return int(visitor.page.inner_text("#zoom-text")[:-1])


def compared(visitor: Visitor) -> None:
    """Open a photo and fill a part of it."""
    visitor.open(PORTRAIT)
    visitor.draw((0.2, 0.5), (0.8, 0.5))
    visitor.fill()


def test_a_stroke_does_not_go_on_in_another_photo(visit):
    visitor = visit()
    visitor.open(*(png_file(f"{n}.png", noise(200, 200)) for n in range(5)))
    page = visitor.page
    page.evaluate(HOLD)
    page.locator(".thumb").nth(4).click()  # its copy was given up, so it is decoded again
    page.mouse.move(*visitor.place(0.3, 0.5))
    page.mouse.down()
    page.mouse.move(*visitor.place(0.4, 0.5), steps=4)
    page.evaluate("() => window.letGo()")
    page.wait_for_selector(".thumb[aria-current][title='4.png']")
    page.mouse.move(*visitor.place(0.6, 0.5), steps=4)
    page.mouse.up()
    assert page.is_disabled("#undo")
    assert not visitor.mask().any()
    page.locator(".thumb").nth(0).click()
    page.wait_for_selector(".thumb[aria-current][title='0.png']")
    assert page.is_disabled("#undo")
    assert visitor.shown_area(200, 200) == 0


@pytest.mark.parametrize(("button", "dialog"), [("#help-open", "#help"), ("#about-open", "#about")])
def test_dialogs_are_closed_by_clicks_beside_them_only(visit, button, dialog):
    page = visit().page
    page.click(button)
    box = page.locator(dialog).bounding_box()
    inside, beside = (box["x"] + 6, box["y"] + box["height"] - 6), (box["x"] - 20, box["y"] + 40)
    page.mouse.click(*inside)  # on its padding
    assert page.is_visible(dialog)
    page.mouse.move(*inside)
    page.mouse.down()
    page.mouse.move(*beside)  # text may be selected so
    page.mouse.up()
    assert page.is_visible(dialog)
    page.mouse.click(*beside)
    assert page.is_hidden(dialog)


def test_the_line_lets_the_wheel_and_the_hand_through(visit):
    visitor = visit()
    compared(visitor)
    page = visitor.page
    middle = page.locator("#handle").bounding_box()
    x, y = middle["x"] + middle["width"] / 2, middle["y"] + middle["height"] / 2
    fitted = zoom(visitor)
    page.mouse.move(x, y)
    page.mouse.wheel(0, -300)
    page.wait_for_timeout(100)
    assert zoom(visitor) > fitted
    page.click("#zoom-fit")
    page.keyboard.press("h")
    page.mouse.move(x, y)
    page.mouse.down()
    page.mouse.move(x + 60, y, steps=4)
    page.mouse.up()
    assert page.get_attribute("#split", "aria-valuetext") == "50% before"
    assert page.locator("#handle").bounding_box()["x"] == pytest.approx(middle["x"] + 60, abs=2)  # the photo moved
    page.click("#zoom-fit")
    page.keyboard.press("b")
    page.keyboard.press("c")
    page.mouse.move(x, y)
    page.mouse.down()
    page.mouse.move(x + 60, y, steps=4)
    page.mouse.up()
    assert page.locator("#handle").bounding_box()["x"] == pytest.approx(middle["x"] + 60, abs=2)  # the line moved
    assert page.get_attribute("#split", "aria-valuetext") != "50% before"


def test_two_fingers_zoom_though_one_is_on_the_line(visit):
    visitor = visit(size=PHONE, touch=True)
    compared(visitor)
    fitted = zoom(visitor)
    visitor.touch([(0.5, 0.5), (0.7, 0.5)], [(0.5, 0.5), (0.8, 0.5)], [(0.5, 0.5), (0.9, 0.5)])
    assert zoom(visitor) == pytest.approx(2 * fitted, rel=0.05)


def test_arrow_keys_move_the_line_after_a_click_on_the_picture(visit):
    visitor = visit()
    compared(visitor)
    page = visitor.page
    page.mouse.click(*visitor.place(0.3, 0.5))
    assert page.evaluate("() => document.activeElement.id") == "over"
    before = page.locator("#compare").bounding_box()
    assert page.get_attribute("#split", "aria-valuetext") == "30% before"
    for _ in range(4):
        page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowLeft")
    assert page.get_attribute("#split", "aria-valuetext") == "33% before"
    assert page.locator("#compare").bounding_box() == before
    page.keyboard.press("ArrowUp")  # the photo still moves up and down
    assert page.locator("#compare").bounding_box()["y"] > before["y"]
    page.focus("#split")
    page.keyboard.press("ArrowRight")
    assert page.get_attribute("#split", "aria-valuetext") == "34% before"
    page.keyboard.press("c")
    page.locator("#over").focus()
    page.keyboard.press("ArrowRight")  # now it moves the photo
    page.keyboard.press("c")
    assert page.get_attribute("#split", "aria-valuetext") == "34% before"
    assert page.locator("#compare").bounding_box()["x"] < before["x"]
