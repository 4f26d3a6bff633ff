"""The worker that fills on static hosts, in a real browser: what it does without the networks."""

import io

import pytest

from support.page import noise

pytestmark = [pytest.mark.browser, pytest.mark.shared("page")]

ASK = """async ([kind, numbers, type, messages]) => {
  const file = (name, numbers, type) => new File([new Uint8Array(numbers)], name, {type});
  const photo = file(`photo.${kind}`, numbers, type);
  const canvas = new OffscreenCanvas(32, 24);
  canvas.getContext("2d").fillRect(0, 0, 32, 24);
  const mask = await canvas.convertToBlob(); // without a hole, so that no network is needed
  const worker = new Worker("static/onnx/worker.js", {type: "module"});
  const {result, error} = await new Promise((resolve) => {
    worker.onmessage = ({data}) => (data.result || data.error) && resolve(data);
    for (const message of messages) worker.postMessage({photo, mask, faces: false, ...message});
  });
  worker.terminate();
  return error ?? {name: result.name, type: result.blob.type, notes: result.notes};
}"""


def encoded(kind: str) -> list[int]:
    data = io.BytesIO()
    noise(32, 24).save(data, kind)
    return list(data.getvalue())


@pytest.mark.parametrize(
    ("kind", "type_", "written"),
    [
        ("png", "image/png", ""),
        ("jpeg", "image/jpeg", ""),
        ("webp", "image/webp", ""),
        ("bmp", "image/bmp", "BMP"),
        ("bmp", "", "the photo's format"),
    ],
)
def test_a_format_that_the_browser_cannot_write_is_said(visit, kind, type_, written):
    wanted = {"id": 1, "kind": "inpaint", "format": "same"}
    answer = visit().page.evaluate(ASK, [kind, encoded(kind), type_, [wanted]])
    saved = "png" if written else kind
    assert (answer["name"], answer["type"]) == (f"photo-filled.{saved.replace('jpeg', 'jpg')}", f"image/{saved}")
    note = f"This browser can't write {written}: the result is saved as PNG."
    assert (note in answer["notes"]) == bool(written)
    assert any("without its metadata" in one for one in answer["notes"])


def test_png_is_no_surprise_where_png_was_asked_for(visit):
    answer = visit().page.evaluate(ASK, ["bmp", encoded("bmp"), "image/bmp", [{"id": 1, "kind": "inpaint"}]])
    assert not any("can't write" in note for note in answer["notes"])


def test_a_search_that_waits_is_cancelled(visit):
    messages = [{"id": 1, "kind": "faces"}, {"id": 0, "kind": "cancel", "job": 1}]
    answer = visit().page.evaluate(ASK, ["png", encoded("png"), "image/png", messages])
    assert answer["name"] == "AbortError"
