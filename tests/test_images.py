"""Finding, reading and resizing images, and masks from files."""

from __future__ import annotations

import io
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from showface.data import (
    UnreadableImageError,
    find_images,
    image_to_tensor,
    mask_to_tensor,
    read_image,
    read_mask,
    resize_and_crop,
    tensor_to_image,
)

from support.pictures import noise, save


def pixels(image: Image.Image) -> NDArray[np.uint8]:
    return np.asarray(image)


# Images


def test_find_images_is_recursive_sorted_and_knows_the_extensions(tmp_path: Path) -> None:
    wanted = ["a/1.JPG", "a/deep/2.jpeg", "b.png", "c.webp", "d.BMP", "e.tif", "f.tiff"]
    for name in [*wanted, "notes.txt", ".hidden.png", ".thumbs/1.png"]:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    found = find_images(tmp_path, str(tmp_path / "a"))
    assert [path.relative_to(tmp_path).as_posix() for path in found] == wanted


def test_find_images_says_what_is_wrong(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="nowhere"):
        find_images(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="empty"):
        find_images(tmp_path / "empty")
    with pytest.raises(NotADirectoryError):
        find_images(save(noise(), tmp_path / "x.png"))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(tmp_path: Path, orientation: int) -> None:
    image = Image.new("RGB", (64, 32), "black")
    image.paste("white", (0, 0, 16, 16))
    exif = Image.Exif()
    exif[0x0112] = orientation
    upright = read_image(save(image, tmp_path / "x.jpg", exif=exif, quality=95))
    assert upright.size == ((64, 32) if orientation <= 4 else (32, 64))
    top, left = [(1, 1), (1, 0), (0, 0), (0, 1), (1, 1), (1, 0), (0, 0), (0, 1)][orientation - 1]
    corner = pixels(upright)[3 if top else -4, 3 if left else -4]
    assert corner.min() > 240
    assert pixels(upright).mean() < 50


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "CMYK", "LA", "RGBA", "I;16", "I", "F", "La", "RGBa"])
def test_every_mode_becomes_8_bit_rgb(mode: str) -> None:
    ramp = np.tile(np.linspace(0, 255, 64).astype(np.uint8), (16, 1))
    if mode == "I;16":
        source = Image.fromarray(ramp.astype(np.uint16) * 257)
    elif mode == "I":
        source = Image.fromarray(ramp.astype(np.int32) * 257)
    elif mode == "F":
        source = Image.fromarray(ramp.astype(np.float32) / 255)
    elif mode in ("La", "RGBa"):
        source = Image.fromarray(ramp).convert(mode.upper()).convert(mode)
    else:
        source = Image.fromarray(ramp).convert(mode)
    assert source.mode == mode
    result = read_image(source)
    assert result.mode == "RGB"
    assert result.size == (64, 16)
    if mode not in ("1", "P"):
        assert np.abs(pixels(result).astype(int) - ramp[..., None]).max() <= 2


def test_16_bit_files_are_scaled(tmp_path: Path) -> None:
    values = (np.arange(256, dtype=np.uint16) * 257).reshape(16, 16)
    for name in ("x.png", "x.tif"):
        result = read_image(save(Image.fromarray(values), tmp_path / name))
        assert (pixels(result)[..., 1].ravel() == np.arange(256)).all()


def test_transparency_is_composited_on_white(tmp_path: Path) -> None:
    image = Image.new("RGBA", (4, 4), (255, 0, 0, 255))
    image.putpixel((0, 0), (0, 0, 0, 0))
    image.putpixel((1, 0), (0, 0, 0, 128))
    result = read_image(save(image, tmp_path / "x.png"))
    assert result.getpixel((0, 0)) == (255, 255, 255)
    assert result.getpixel((1, 0)) == (127, 127, 127)
    assert result.getpixel((2, 0)) == (255, 0, 0)
    palette = Image.new("P", (4, 4), 1)
    palette.putpalette([10, 20, 30, 40, 50, 60])
    palette.putpixel((0, 0), 0)
    result = read_image(save(palette, tmp_path / "p.png", transparency=0))
    assert result.getpixel((0, 0)) == (255, 255, 255)
    assert result.getpixel((1, 0)) == (40, 50, 60)


@pytest.mark.parametrize("name", ["x.jpg", "x.png", "x.bmp", "x.tif", "x.webp"])
def test_broken_files_are_named(tmp_path: Path, name: str) -> None:
    path = save(noise(64, 64), tmp_path / name)
    path.write_bytes(path.read_bytes()[:-600])
    with pytest.raises(UnreadableImageError, match=name):
        read_image(path)
    path.write_bytes(b"no image at all")
    with pytest.raises(UnreadableImageError, match=name):
        read_mask(path)
    with pytest.raises(FileNotFoundError):
        read_image(tmp_path / "missing.png")


def test_a_header_that_claims_a_terabyte_reserves_nothing(tmp_path: Path) -> None:
    path = tmp_path / "photo.jp2"
    Image.new("RGB", (24, 20)).save(path)
    data = bytearray(path.read_bytes())
    at = data.index(b"jp2h") - 4
    data[at : at + 4] = (1).to_bytes(4, "big")  # the box's size follows its name, in 64 bits
    data[at + 8 : at + 16] = (1 << 40).to_bytes(8, "big")
    path.write_bytes(data)
    for source in (path, io.BytesIO(data)):
        with pytest.raises(UnreadableImageError, match="cannot read image") as problem:
            read_image(source)
        assert not isinstance(problem.value.__cause__, MemoryError)


def test_tensor_round_trip_is_exact() -> None:
    values = np.arange(256, dtype=np.uint8).repeat(3).reshape(16, 16, 3)
    tensor = image_to_tensor(Image.fromarray(values))
    assert tensor.shape == (3, 16, 16)
    assert tensor.dtype == torch.float32
    assert tensor.is_contiguous()
    assert (tensor.min().item(), tensor.max().item()) == (-1.0, 1.0)
    assert (pixels(tensor_to_image(tensor)) == values).all()
    assert (pixels(tensor_to_image(tensor[None].double() * 1.5))[-1, -1] == 255).all()
    image = noise()
    assert (pixels(tensor_to_image(image_to_tensor(image))) == pixels(image)).all()


def test_tensor_to_image_refuses_what_is_no_image() -> None:
    with pytest.raises(ValueError, match="3, H, W"):
        tensor_to_image(torch.zeros(1, 8, 8))
    with pytest.raises(ValueError, match="NaN"):
        tensor_to_image(torch.full((3, 8, 8), float("nan")))


def test_resize_and_crop() -> None:
    image = noise(40, 64)
    assert (pixels(resize_and_crop(image, 40)) == pixels(image)[:, 12:52]).all()
    assert resize_and_crop(image, 16).size == (16, 16)
    assert resize_and_crop(image, 100).size == (100, 100)
    # Antialiasing: noise made much smaller is nearly flat.
    assert pixels(resize_and_crop(noise(512, 512), 16)).std() < 10
    with pytest.raises(ValueError, match="size"):
        resize_and_crop(image, 0)


# Masks


def drawn_mask() -> NDArray[np.bool_]:
    hole = np.zeros((24, 32), dtype=bool)
    hole[4:12, 6:20] = True
    return hole


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "RGBA", "LA", "CMYK", "I;16"])
@pytest.mark.parametrize("polarity", ["white", "black"])
def test_masks_of_every_mode(mode: str, polarity: str) -> None:
    hole = drawn_mask()
    grey = np.where(hole == (polarity == "white"), 255, 0).astype(np.uint8)
    image = Image.fromarray(grey.astype(np.uint16) * 257) if mode == "I;16" else Image.fromarray(grey).convert(mode)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        result = read_mask(image, (24, 32), polarity)
    assert result.dtype == np.bool_
    assert (result == hole).all()


@pytest.mark.parametrize("polarity", ["white", "black"])
def test_paint_on_a_transparent_mask(tmp_path: Path, polarity: str) -> None:
    hole = drawn_mask()
    level = 255 if polarity == "white" else 0
    rgba = np.full((24, 32, 4), level, dtype=np.uint8)
    rgba[..., 3] = hole * 255
    path = save(Image.fromarray(rgba), tmp_path / "m.png")
    assert (read_mask(path, polarity=polarity) == hole).all()


def test_soft_edges(tmp_path: Path) -> None:
    ramp = Image.fromarray(np.arange(256, dtype=np.uint8)[None].repeat(8, 0))
    assert read_mask(ramp).sum(1).tolist() == [128] * 8
    assert (read_mask(ramp, polarity="black") == ~read_mask(ramp)).all()
    hole = drawn_mask()
    path = save(Image.fromarray(hole).convert("L"), tmp_path / "m.jpg", quality=60)
    assert (read_mask(path) == hole).all()


def test_a_mask_of_another_size_is_resized_with_a_warning() -> None:
    image = Image.fromarray(drawn_mask())
    with pytest.warns(UserWarning, match="24x32.*48x64"):
        result = read_mask(image, (48, 64))
    assert (result == drawn_mask().repeat(2, 0).repeat(2, 1)).all()


def test_a_mask_of_a_photo_before_it_was_turned_is_refused(tmp_path: Path) -> None:
    path = save(Image.fromarray(drawn_mask()), tmp_path / "m.png")
    with pytest.raises(ValueError, match=r"m.png is 24x32 \(height x width\), and the photo 32x24: .* upright photo"):
        read_mask(path, (32, 24))


def test_a_mask_of_zeros_and_ones() -> None:
    with pytest.warns(UserWarning, match="0 and 1"):
        assert (read_mask(Image.fromarray(drawn_mask().astype(np.uint8))) == drawn_mask()).all()
    assert not read_mask(Image.new("L", (8, 8))).any()


def test_read_mask_refuses_bad_options() -> None:
    image = Image.new("L", (8, 8))
    with pytest.raises(ValueError, match="polarity"):
        read_mask(image, polarity="grey")
    with pytest.raises(ValueError, match="size"):
        read_mask(image, (0, 8))


def test_mask_to_tensor() -> None:
    tensor = mask_to_tensor(drawn_mask())
    assert tensor.shape == (1, 24, 32)
    assert tensor.dtype == torch.float32
    assert (tensor[0].numpy() == drawn_mask()).all()
    with pytest.raises(ValueError, match="bool"):
        mask_to_tensor(np.zeros((4, 4), dtype=np.bool_)[None])
