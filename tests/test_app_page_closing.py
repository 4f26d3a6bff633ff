"""The app's page in a real browser: what is not downloaded yet is not lost without a question."""

import pytest

from support.page import PORTRAIT, Visitor, noise, png_file, scattered

pytestmark = [pytest.mark.browser, pytest.mark.shared("page")]


def asks_before_it_is_left(visitor: Visitor) -> bool:
    """Whether the page would ask before it is closed. It stays open."""
    return visitor.page.evaluate("() => !window.dispatchEvent(new Event('beforeunload', {cancelable: true}))")


def thumbs(visitor: Visitor) -> int:
    return visitor.page.locator("#thumbs li").count()


def test_the_browser_asks_before_the_page_is_closed(visit):
    visitor = visit()
    visitor.open(PORTRAIT)
    visitor.draw((0.4, 0.4), (0.6, 0.6))
    kinds = []
    visitor.page.on("dialog", lambda dialog: kinds.append(dialog.type) or dialog.dismiss())
    with visitor.page.expect_event("dialog"):
        visitor.page.close(run_before_unload=True)
    assert kinds == ["beforeunload"]
    assert visitor.page.is_enabled("#run")  # still there


def test_what_the_page_asks_for(visit):
    visitor = visit()
    page = visitor.page
    assert not asks_before_it_is_left(visitor)
    visitor.open(PORTRAIT)
    assert not asks_before_it_is_left(visitor)
    visitor.import_mask(scattered(256, 256))  # is a file already
    assert not asks_before_it_is_left(visitor)
    page.click("#clear")
    visitor.draw((0.4, 0.4), (0.6, 0.6))
    assert asks_before_it_is_left(visitor)
    visitor.mask()  # exports it
    assert not asks_before_it_is_left(visitor)
    visitor.draw((0.3, 0.3), (0.6, 0.6))
    page.click("#undo")
    assert not asks_before_it_is_left(visitor)
    page.click("#redo")
    visitor.fill()
    assert asks_before_it_is_left(visitor)
    visitor.download("#download-png")
    assert not asks_before_it_is_left(visitor)
    page.click("#invert")
    assert asks_before_it_is_left(visitor)


def test_a_download_is_enough_for_the_results_it_was_made_from(visit):
    visitor = visit()
    visitor.open(PORTRAIT)
    page = visitor.page
    page.uncheck("#faces-use")
    visitor.draw((0.4, 0.4), (0.6, 0.6))
    visitor.fill()
    page.click("#go-on")
    page.locator("#thumbs li").nth(1).wait_for()
    page.locator(".thumb-close").nth(0).click()
    page.click("#closing-yes")
    page.locator("#thumbs li").nth(1).wait_for(state="detached")
    assert asks_before_it_is_left(visitor)  # the photo is a result that was not downloaded
    visitor.draw((0.2, 0.4), (0.4, 0.6))
    visitor.fill()
    visitor.download("#download-png")
    assert not asks_before_it_is_left(visitor)


def test_closing_a_photo_with_a_mask_asks(visit):
    visitor = visit()
    visitor.open(PORTRAIT, png_file("noise.png", noise(200, 200)))
    page = visitor.page
    visitor.draw((0.4, 0.4), (0.6, 0.6))
    close = page.locator(".thumb-close").nth(0)
    for answer in ("Escape", "Enter"):  # the first button keeps the photo
        close.click()
        assert "portrait.png has a mask or a result" in page.inner_text("#closing")
        page.keyboard.press(answer)
        assert page.is_hidden("#closing")
        assert thumbs(visitor) == 2
        assert close.evaluate("element => element === document.activeElement")
    close.click()
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    page.wait_for_selector(".thumb[aria-current][title='noise.png']", state="attached")
    assert thumbs(visitor) == 1
    assert page.evaluate("() => document.activeElement.id") == "over"
    assert not asks_before_it_is_left(visitor)


def test_closing_a_photo_without_a_mask_does_not_ask(visit):
    visitor = visit()
    visitor.open(PORTRAIT, PORTRAIT)
    visitor.page.locator(".thumb-close").nth(1).click()
    visitor.page.locator("#thumbs li").nth(1).wait_for(state="detached")
    assert visitor.page.evaluate("() => document.activeElement.id") == "over"
