"""The app's page in a real browser: looking for faces while the server is busy, and stopping when the photo is left."""

import json

import pytest

from support.page import PORTRAIT, Visitor, noise, png_file

pytestmark = [pytest.mark.browser, pytest.mark.shared("page")]

FULL = {
    "status": 429,
    "headers": {"Retry-After": "1"},
    "body": json.dumps({"detail": "the queue is full: try again in 1 second"}),
}


def refuse(visitor: Visitor, times: int) -> list[str]:
    """Let the server be busy so many times. Gives the answers in the order they are given."""
    answers: list[str] = []

    def answer(route):
        answers.append("full" if len(answers) < times else "room")
        if answers[-1] == "full":
            route.fulfill(**FULL)
        else:
            route.continue_()

    visitor.page.route("**/api/faces", answer)
    return answers


def forgive(visitor: Visitor, times: int) -> None:
    """Forget Chromium's own lines about requests that were refused."""
    assert len(visitor.errors) == times
    assert all("429" in error for error in visitor.errors)
    visitor.errors.clear()


def test_faces_are_found_once_the_queue_has_room(visit):
    visitor = visit()
    answers = refuse(visitor, 2)
    visitor.open(PORTRAIT)
    assert visitor.page.inner_text("#faces-text") == "1 face was found."
    assert answers == ["full", "full", "room"]
    forgive(visitor, 2)


def test_a_queue_that_stays_full_is_said(visit):
    visitor = visit()
    answers = refuse(visitor, 9)
    visitor.page.set_input_files("#photo-file", str(PORTRAIT))
    sentence = "Faces were not looked for: The queue is full: try again in 1 second."
    visitor.page.wait_for_selector(f"#faces-text:has-text('{sentence}')")
    assert answers == ["full"] * 3
    forgive(visitor, 3)


@pytest.mark.parametrize("close", [False, True], ids=["left", "closed"])
def test_the_search_stops_when_the_photo_is_left_or_closed(visit, close):
    visitor = visit()
    page = visitor.page
    visitor.open(png_file("noise.png", noise(64, 64)))
    page.route("**/api/faces", lambda route: None)  # no answer
    with page.expect_request("**/api/faces"):
        page.set_input_files("#photo-file", str(PORTRAIT))
    page.wait_for_selector(".thumb[aria-current][title='portrait.png']")
    with page.expect_event("requestfailed") as failed:
        page.locator(".thumb-close").nth(1).click() if close else page.locator(".thumb").nth(0).click()
    assert failed.value.url.endswith("/api/faces")
    page.wait_for_selector(".thumb[aria-current][title='noise.png']", state="attached")
    assert "No face was found" in page.inner_text("#faces-text")
    page.unroute("**/api/faces")
    if not close:
        page.locator(".thumb").nth(1).click()
        page.wait_for_selector("#faces-text:has-text('1 face was found.')")  # it begins again
    assert not page.inner_text("#error")


def test_no_photo_is_asked_for_again_after_it_was_left(visit):
    visitor = visit()
    page = visitor.page
    visitor.open(png_file("noise.png", noise(64, 64)))
    answers = refuse(visitor, 9)
    with page.expect_response("**/api/faces"):
        page.set_input_files("#photo-file", str(PORTRAIT))
    page.locator(".thumb").nth(0).click()
    page.wait_for_timeout(1500)  # longer than the server asked to wait
    assert answers == ["full"]
    forgive(visitor, 1)
