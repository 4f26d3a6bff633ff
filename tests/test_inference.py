"""From a photo and a mask to a restored photo, with a tiny random network."""

import warnings

import numpy as np
import pytest
import torch
from PIL import Image

import showface
from showface.inference import Inpainter, default_model


def noise(width: int, height: int, mode: str = "RGB", seed: int = 0) -> Image.Image:
    values = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(values).convert(mode)


def a_hole(width: int, height: int) -> np.ndarray:
    hole = np.zeros((height, width), dtype=bool)
    hole[height // 4 : height // 2 + 1, width // 4 : width // 2 + 1] = True
    return hole


def as_mask(hole: np.ndarray) -> Image.Image:
    return Image.fromarray(hole.astype(np.uint8) * 255)


def pixels(image: Image.Image) -> np.ndarray:
    return np.asarray(image)


@pytest.fixture(autouse=True)
def _warnings_are_errors():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", message="showface runs without its compiled kernels")
        warnings.filterwarnings("ignore", message="no face was found")
        yield


@pytest.mark.parametrize("size", [(32, 32), (1, 1), (7, 50), (45, 33), (100, 70), (131, 250)], ids=str)
def test_any_size_keeps_known_pixels(model, size):
    photo, hole = noise(*size), a_hole(*size)
    result = Inpainter(model).restore(photo, as_mask(hole))
    assert result.image.mode == "RGB"
    assert result.image.size == size
    assert np.array_equal(pixels(result.image)[~hole], pixels(photo)[~hole])
    assert np.array_equal(result.hole, hole)
    assert result.hole_ratio == hole.mean()
    assert (pixels(result.image)[hole] != pixels(photo)[hole]).any()
    assert np.array_equal(pixels(showface.inpaint(photo, as_mask(hole), model=model)), pixels(result.image))


@pytest.mark.parametrize("size", [(32, 32), (100, 70)], ids=str)
def test_what_lies_under_the_hole_does_not_matter(model, size):
    photo, hole = noise(*size), a_hole(*size)
    spoilt = pixels(photo).copy()
    spoilt[hole] = 255 - spoilt[hole]
    results = [showface.inpaint(x, hole, model=model) for x in (photo, Image.fromarray(spoilt))]
    assert np.array_equal(*map(pixels, results))


def test_size_of_the_fill(model):
    photo, hole = noise(64, 64), a_hole(64, 64)
    small, large = (showface.inpaint(photo, hole, model=model, size=size) for size in (32, 64))
    default = showface.inpaint(photo, hole, model=model)
    assert np.array_equal(pixels(default), pixels(small))
    assert not np.array_equal(pixels(default), pixels(large))


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "LA", "P", "1", "CMYK", "I;16"])
def test_modes(model, tmp_path, mode):
    image = Image.fromarray(np.full((33, 40), 4096, dtype=np.uint16)) if mode == "I;16" else noise(40, 33, mode)
    hole = a_hole(40, 33)
    result = Inpainter(model).restore(image, hole)
    assert result.image.mode == "RGB"
    assert np.array_equal(pixels(result.image)[~hole], pixels(result.photo)[~hole])
    path = tmp_path / f"photo.{'tif' if mode in ('CMYK', 'I;16') else 'png'}"
    image.save(path)
    assert np.array_equal(pixels(showface.inpaint(path, hole, model=model)), pixels(result.image))
    assert np.array_equal(pixels(showface.inpaint(str(path), hole, model=model)), pixels(result.image))


def test_photos_are_turned_upright(model, tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # a quarter turn
    noise(40, 33).save(tmp_path / "photo.png", exif=exif)
    result = Inpainter(model).restore(tmp_path / "photo.png", a_hole(33, 40))
    assert result.image.size == (33, 40)
    assert np.array_equal(pixels(result.photo), pixels(noise(40, 33).transpose(Image.Transpose.ROTATE_270)))


def test_masks(model, tmp_path):
    photo, hole = noise(40, 33), a_hole(40, 33)
    expected = pixels(showface.inpaint(photo, hole, model=model))
    as_mask(hole).save(tmp_path / "mask.png")
    for mask in (as_mask(hole), as_mask(hole).convert("RGB"), as_mask(hole).convert("1"), tmp_path / "mask.png"):
        assert np.array_equal(pixels(showface.inpaint(photo, mask, model=model)), expected)
    black = showface.inpaint(photo, as_mask(~hole), model=model, mask_polarity="black")
    assert np.array_equal(pixels(black), expected)
    of_an_array = showface.inpaint(photo, hole, model=model, mask_polarity="black")
    assert np.array_equal(pixels(of_an_array), expected)


@pytest.mark.parametrize("kind", ["image", "array"])
def test_a_mask_of_another_size_is_resized(model, kind):
    mask = a_hole(20, 10)
    with pytest.warns(UserWarning, match=r"10x20 \(height x width\), not 33x40: resized"):
        result = Inpainter(model).restore(noise(40, 33), as_mask(mask) if kind == "image" else mask)
    assert result.hole.shape == (33, 40)
    assert result.hole_ratio == pytest.approx(mask.mean(), abs=0.05)


def test_an_empty_mask_gives_the_photo(model):
    photo = noise(40, 33)
    with pytest.warns(UserWarning, match="the mask is empty: nothing to fill") as caught:
        result = showface.inpaint(photo, np.zeros((33, 40), dtype=bool), model=model)
    assert np.array_equal(pixels(result), pixels(photo))
    assert [record.filename for record in caught] == [__file__]


@pytest.mark.filterwarnings("always")
def test_warnings_name_the_photo_and_the_line_of_the_caller(model, tmp_path):
    photo, blank = noise(40, 33), np.zeros((33, 40), dtype=bool)
    path = tmp_path / "photo.png"
    photo.save(path)
    inpainter = Inpainter(model)
    calls = [
        (lambda: showface.inpaint(path, blank, model=model), [f": {path}"]),
        (lambda: inpainter(photo, blank), [""]),
        (lambda: inpainter.restore(str(path), blank), [f": {path}"]),
        (lambda: inpainter.restore_many([(path, blank), (photo, blank)]), [f": {path}", ": photo 2"]),
    ]
    for call, names in calls:
        with pytest.warns(UserWarning, match="the mask is empty") as said:
            call()
        texts = [f"the mask is empty: nothing to fill, the photo is returned unchanged{name}" for name in names]
        assert [str(one.message) for one in said] == texts
        assert {one.filename for one in said} == {__file__}
        assert {one.lineno for one in said} == {call.__code__.co_firstlineno}
    with pytest.warns(UserWarning, match=f"no face was found at the hole.*: {path}") as said:
        inpainter.restore(path, a_hole(40, 33))
    assert said[0].filename == __file__


def test_a_full_mask_gives_a_picture(model):
    result = Inpainter(model).restore(noise(40, 33), np.ones((33, 40), dtype=bool))
    assert result.hole_ratio == 1
    assert result.image.size == (40, 33)
    assert (pixels(result.masked) == 255).all()


def test_masked_shows_the_hole_in_white(model):
    photo, hole = noise(40, 33), a_hole(40, 33)
    masked = pixels(Inpainter(model).restore(photo, hole).masked)
    assert (masked[hole] == 255).all()
    assert np.array_equal(masked[~hole], pixels(photo)[~hole])


def test_arguments_and_model_stay_as_they_are(model):
    photo, hole = noise(40, 33), a_hole(40, 33)
    before = {name: x.clone() for name, x in model.state_dict().items()}
    model.train()
    showface.inpaint(photo, hole, model=model)
    assert model.training
    assert np.array_equal(pixels(photo), pixels(noise(40, 33)))
    assert np.array_equal(hole, a_hole(40, 33))
    for name, x in model.state_dict().items():
        assert torch.equal(x, before[name])


def test_errors(model, tmp_path):
    photo, hole = noise(40, 33), a_hole(40, 33)
    with pytest.raises(ValueError, match="size must be at least 16 pixels, got 8"):
        showface.inpaint(photo, hole, model=model, size=8)
    with pytest.raises(ValueError, match=r"polarity must be one of .*got 'red'"):
        showface.inpaint(photo, as_mask(hole), model=model, mask_polarity="red")
    with pytest.raises(ValueError, match=r"a mask array must be bool \(H, W\), True = hole; got float64 \(33, 40\)"):
        showface.inpaint(photo, hole.astype(float), model=model)
    with pytest.raises(ValueError, match=r"a mask array must be bool .*got bool \(33, 40, 1\)"):
        showface.inpaint(photo, hole[..., None], model=model)
    with pytest.raises(FileNotFoundError, match=r"nowhere\.png"):
        showface.inpaint(tmp_path / "nowhere.png", hole, model=model)
    (tmp_path / "text.png").write_text("no image")
    with pytest.raises(OSError, match=r"cannot read image .*text\.png"):
        showface.inpaint(tmp_path / "text.png", hole, model=model)


def test_the_bundled_model_is_loaded_once(model, monkeypatch):
    calls = []
    monkeypatch.setattr("showface.inference.load_model", lambda: calls.append(1) or model)
    default_model.cache_clear()
    try:
        for _ in range(2):
            showface.inpaint(noise(40, 33), a_hole(40, 33))
    finally:
        default_model.cache_clear()
    assert len(calls) == 1


def test_inpaint_takes_a_device(model):
    photo, hole = noise(40, 33), a_hole(40, 33)
    on_cpu = showface.inpaint(photo, hole, model=model, device="cpu")
    assert np.array_equal(pixels(on_cpu), pixels(showface.inpaint(photo, hole, model=model)))
    with pytest.raises(ValueError, match="device nonsense can't be used"):
        showface.inpaint(photo, hole, model=model, device="nonsense")


def test_a_device_gets_a_model_of_its_own():
    """Otherwise one inpainter would move the network of another."""
    shared = Inpainter(faces=False).model
    assert shared is default_model()
    own = Inpainter(faces=False, device="cpu").model
    assert own is not shared


def test_runs_where_the_model_is(model, device):
    photo, hole = noise(40, 33), a_hole(40, 33)
    result = pixels(showface.inpaint(photo, hole, model=model.to(device)))
    expected = pixels(showface.inpaint(photo, hole, model=model.to("cpu")))
    assert np.abs(result.astype(int) - expected).max() <= 1
