"""Reading images and masks, random holes, and the training set."""

from __future__ import annotations

import itertools
import shutil
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from torch.utils.data import DataLoader

from showface.data import (
    REGIONS,
    EpochSampler,
    FaceFolder,
    UnreadableImageError,
    find_images,
    image_to_tensor,
    mask_to_tensor,
    random_hole,
    read_image,
    read_mask,
    resize_and_crop,
    tensor_to_image,
)


def noise(height: int = 40, width: int = 32, seed: int = 0) -> Image.Image:
    rng = np.random.default_rng(seed)
    return Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8))


def save(image: Image.Image, path: Path, **options: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path, **options)
    return path


def pixels(image: Image.Image) -> NDArray[np.uint8]:
    return np.asarray(image)


@pytest.fixture
def faces(tmp_path: Path) -> Path:
    """`faces/` with `a/` (4 images), `a_parsing/` and `b/` (3 images of the same names, no labels)."""
    root = tmp_path / "faces"
    for index in range(4):
        save(noise(32, 32, index), root / "a" / f"{index}.png")
        values = np.random.default_rng(index).integers(0, 19, (32, 32), dtype=np.uint8)
        save(Image.fromarray(values), root / "a_parsing" / f"{index}.png")
    for index in range(3):
        save(noise(48, 40, 10 + index), root / "b" / f"{index}.png")
    return root


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
    crops = {resize_and_crop(image, 40, rng=np.random.default_rng(seed)).tobytes() for seed in range(20)}
    assert len(crops) > 5
    same = [resize_and_crop(image, 20, scale=0.5, rng=np.random.default_rng(3)).tobytes() for _ in range(2)]
    assert same[0] == same[1]
    with pytest.raises(ValueError, match="scale"):
        resize_and_crop(image, 16, scale=1.5)
    with pytest.raises(ValueError, match="size"):
        resize_and_crop(image, 0)


# Masks from files


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


def test_soft_edges_and_threshold(tmp_path: Path) -> None:
    ramp = Image.fromarray(np.arange(256, dtype=np.uint8)[None].repeat(8, 0))
    assert read_mask(ramp).sum(1).tolist() == [128] * 8
    assert read_mask(ramp, threshold=0.2).sum(1).tolist() == [205] * 8
    assert (read_mask(ramp, polarity="black") == ~read_mask(ramp)).all()
    hole = drawn_mask()
    path = save(Image.fromarray(hole).convert("L"), tmp_path / "m.jpg", quality=60)
    assert (read_mask(path) == hole).all()


def test_a_mask_of_another_size_is_resized_with_a_warning() -> None:
    image = Image.fromarray(drawn_mask())
    with pytest.warns(UserWarning, match="24x32.*48x64"):
        result = read_mask(image, (48, 64))
    assert (result == drawn_mask().repeat(2, 0).repeat(2, 1)).all()


def test_a_mask_of_zeros_and_ones() -> None:
    with pytest.warns(UserWarning, match="0 and 1"):
        assert (read_mask(Image.fromarray(drawn_mask().astype(np.uint8))) == drawn_mask()).all()
    assert not read_mask(Image.new("L", (8, 8))).any()


def test_read_mask_refuses_bad_options() -> None:
    image = Image.new("L", (8, 8))
    with pytest.raises(ValueError, match="polarity"):
        read_mask(image, polarity="grey")
    for threshold in (0.0, 1.0, 128.0):
        with pytest.raises(ValueError, match="threshold"):
            read_mask(image, threshold=threshold)
    with pytest.raises(ValueError, match="size"):
        read_mask(image, (0, 8))


def test_mask_to_tensor() -> None:
    tensor = mask_to_tensor(drawn_mask())
    assert tensor.shape == (1, 24, 32)
    assert tensor.dtype == torch.float32
    assert (tensor[0].numpy() == drawn_mask()).all()
    with pytest.raises(ValueError, match="bool"):
        mask_to_tensor(np.zeros((4, 4), dtype=np.bool_)[None])


# Random holes


@pytest.mark.parametrize("kind", ["strokes", "blocks", "both"])
@pytest.mark.parametrize("ratio", [(0.01, 0.6), (0.01, 0.2), (0.4, 0.6), (0.3, 0.3), (0.0, 0.02), (0.9, 1.0)])
def test_hole_ratio_is_within_bounds(kind: str, ratio: tuple[float, float]) -> None:
    for height, width in [(64, 64), (48, 80), (8, 8), (8, 40), (1, 1), (3, 1)]:
        for seed in range(12):
            hole = random_hole(height, width, np.random.default_rng(seed), ratio=ratio, kind=kind)
            assert hole.dtype == np.bool_
            assert hole.shape == (height, width)
            count, pixel_count = int(hole.sum()), height * width
            assert count >= 1
            exact = np.ceil(ratio[0] * pixel_count) <= np.floor(ratio[1] * pixel_count)
            slack = 0 if exact and ratio[1] * pixel_count >= 1 else 1
            assert ratio[0] * pixel_count - slack <= count <= ratio[1] * pixel_count + slack


def test_hole_ratios_are_uniform() -> None:
    ratios = [random_hole(64, 64, np.random.default_rng(seed)).mean() for seed in range(600)]
    counts = np.histogram(ratios, bins=6, range=(0.01, 0.6))[0]
    assert counts.sum() == 600
    assert counts.min() > 65
    assert counts.max() < 140


def test_holes_depend_on_the_seed_only() -> None:
    first = random_hole(64, 64, np.random.default_rng(1))
    assert (first == random_hole(64, 64, np.random.default_rng(1))).all()
    assert (first != random_hole(64, 64, np.random.default_rng(2))).any()


def test_holes_fall_everywhere() -> None:
    mean = np.mean([random_hole(64, 64, np.random.default_rng(seed)) for seed in range(400)], axis=0)
    assert mean.min() > 0.05
    assert mean[8:-8, 8:-8].std() < 0.06


def test_blocks_are_rectangles() -> None:
    filled = []
    for seed in range(30):
        hole = random_hole(64, 64, np.random.default_rng(seed), ratio=(0.01, 0.01), kind="blocks")
        rows, columns = np.nonzero(hole)
        filled.append(hole.sum() / ((np.ptp(rows) + 1) * (np.ptp(columns) + 1)))
    # Mostly one block; its last row or column may be incomplete, where the exact area demands it.
    assert np.median(filled) > 0.75


def test_no_hole_and_all_hole() -> None:
    rng = np.random.default_rng(0)
    assert not random_hole(16, 16, rng, ratio=(0.0, 0.0)).any()
    assert random_hole(16, 16, rng, ratio=(1.0, 1.0)).all()


def test_random_hole_refuses_bad_options() -> None:
    rng = np.random.default_rng(0)
    for ratio in [(-0.1, 0.5), (0.5, 0.1), (0.1, 1.1), (float("nan"), 0.5)]:
        with pytest.raises(ValueError, match="ratio"):
            random_hole(16, 16, rng, ratio=ratio)
    with pytest.raises(ValueError, match="kind"):
        random_hole(16, 16, rng, kind="stars")
    with pytest.raises(ValueError, match="height"):
        random_hole(0, 16, rng)


# The training set


def test_items(faces: Path) -> None:
    dataset = FaceFolder(faces, size=32, flip=False)
    assert len(dataset) == 7
    assert dataset.labelled == 4
    assert dataset.unreadable == dataset.too_small == 0
    assert [path.parent.name for path in dataset.paths] == ["a"] * 4 + ["b"] * 3
    assert len(list(dataset)) == 7
    for index, item in enumerate(dataset):
        image, hole, parsing = item["image"], item["hole"], item["parsing"]
        assert (image.shape, image.dtype) == ((3, 32, 32), torch.float32)
        assert (hole.shape, hole.dtype) == ((1, 32, 32), torch.float32)
        assert (parsing.shape, parsing.dtype) == ((32, 32), torch.int64)
        assert image.abs().max() <= 1
        assert set(hole.flatten().tolist()) == {0.0, 1.0}
        if index < 4:
            assert (image == image_to_tensor(read_image(dataset.paths[index]))).all()
            label = faces / "a_parsing" / f"{index}.png"
            assert (parsing.numpy() == pixels(Image.open(label))).all()
        else:
            assert (parsing == -1).all()


def test_labels_are_found_from_the_folder_itself_and_below(faces: Path, tmp_path: Path) -> None:
    assert FaceFolder(faces / "a", size=16).labelled == 4
    assert FaceFolder([faces / "b", faces / "a"], size=16).labelled == 4
    nested = tmp_path / "nested"
    save(noise(), nested / "x" / "deep" / "1.jpg")
    save(Image.new("L", (32, 40), 3), nested / "x_parsing" / "deep" / "1.png")
    for root in (nested, nested / "x", nested / "x" / "deep"):
        dataset = FaceFolder(root, size=16)
        assert len(dataset) == 1
        # Labels are looked for from the folder given downwards, not above it.
        assert dataset.labelled == (0 if root.name == "deep" else 1)
    with pytest.raises(ValueError, match="labels"):
        FaceFolder(faces / "a_parsing")


def test_overlapping_folders_give_each_face_once(faces: Path) -> None:
    dataset = FaceFolder([faces / "b", faces], size=16)
    assert len(dataset) == len(set(dataset.paths)) == 7
    assert dataset.labelled == 4


def test_given_label_folders(faces: Path, tmp_path: Path) -> None:
    labels = tmp_path / "labels"
    shutil.move(faces / "a_parsing", labels)
    assert FaceFolder(faces, size=16).labelled == 0
    assert FaceFolder(faces / "a", size=16, parsing=labels).labelled == 4
    # The same names in another folder are other faces.
    assert FaceFolder([faces / "b", faces / "a"], size=16, parsing=[None, labels]).labelled == 4
    inside = faces / "labels" / "a"
    shutil.copytree(labels, inside)
    dataset = FaceFolder(faces, size=16, parsing=faces / "labels")
    assert (len(dataset), dataset.labelled) == (7, 4)
    with pytest.raises(ValueError, match="one entry per folder"):
        FaceFolder([faces / "b", faces / "a"], parsing=labels)
    with pytest.raises(FileNotFoundError):
        FaceFolder(faces / "a", parsing=tmp_path / "nowhere")


def test_flipping_swaps_left_and_right(tmp_path: Path) -> None:
    assert len(REGIONS) == 19
    swapped = {REGIONS.index(f"left {part}"): REGIONS.index(f"right {part}") for part in ("eye", "brow", "ear")}
    assert swapped == {4: 5, 6: 7, 8: 9}
    values = np.tile(np.arange(20, dtype=np.uint8), (20, 1))
    values[0] = 255
    save(Image.fromarray(values).convert("RGB"), tmp_path / "x" / "1.png")
    save(Image.fromarray(values), tmp_path / "x_parsing" / "1.png")
    dataset = FaceFolder(tmp_path / "x", size=20)
    plain = [*range(19), -1]
    mirrored = [{**swapped, **{b: a for a, b in swapped.items()}}.get(value, value) for value in plain][::-1]
    seen = set()
    for epoch in range(20):
        item = dataset[epoch]
        columns = item["parsing"][1].tolist()
        assert columns in (plain, mirrored)
        assert (item["parsing"][0] == -1).all()
        seen.add(columns == mirrored)
        # The picture is turned together with its labels.
        assert (item["image"][0, 1, 0] > item["image"][0, 1, -1]) == (columns == mirrored)
    assert seen == {True, False}


def test_labels_follow_the_crop_at_any_scale(tmp_path: Path) -> None:
    rows, columns = np.mgrid[:96, :128]
    values = ((rows // 16 + columns // 16) % 19).astype(np.uint8)
    save(Image.fromarray(values * 10).convert("RGB"), tmp_path / "x" / "1.png")
    for factor in (1, 2):
        label = Image.fromarray(values[::factor, ::factor])
        save(label, tmp_path / "x_parsing" / "1.png")
        dataset = FaceFolder(tmp_path / "x", size=64, crop_scale=(0.6, 1.0), flip=False)
        for epoch in range(6):
            item = dataset[epoch]
            expected = ((item["image"][0] + 1) * 12.75).round().long()
            # Lanczos blurs the borders of the squares; inside them the two agree.
            assert (expected == item["parsing"]).float().mean() > 0.75


def test_crops_and_colours_vary(faces: Path) -> None:
    dataset = FaceFolder(faces / "b", size=32, crop_scale=(0.5, 1.0), flip=False, colour=0.3)
    images = [dataset[3 * epoch]["image"] for epoch in range(8)]
    means = [image.mean(dim=(1, 2)) for image in images]
    assert all(not torch.equal(a, b) for a, b in itertools.combinations(images, 2))
    assert torch.stack(means).std(dim=0).min() > 0.02
    assert all(image.abs().max() <= 1 for image in images)


def test_items_depend_on_seed_epoch_and_index_only(faces: Path) -> None:
    def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
        return all(torch.equal(a[name], b[name]) for name in a)

    dataset = FaceFolder(faces, size=32, seed=5)
    later = dataset[2 + 7 * 3]
    assert same(later, FaceFolder(faces, size=32, seed=5)[2 + 7 * 3])
    assert not same(later, dataset[2])
    assert not same(later, FaceFolder(faces, size=32, seed=6)[2 + 7 * 3])
    dataset.set_epoch(3)
    assert same(later, dataset[2])
    with pytest.raises(IndexError):
        dataset[-1]
    with pytest.raises(ValueError, match="epoch"):
        dataset.set_epoch(-1)


def test_workers_give_the_same_stream(faces: Path) -> None:
    (faces / "b" / "1.png").write_bytes((faces / "b" / "1.png").read_bytes()[:300])

    def batches(workers: int) -> tuple[list[torch.Tensor], int]:
        dataset = FaceFolder(faces, size=16, seed=1)
        sampler = EpochSampler(len(dataset), seed=1, start=3, stop=23)
        loader = DataLoader(dataset, batch_size=4, sampler=sampler, num_workers=workers)
        return [torch.cat([batch["image"], batch["hole"]], 1) for batch in loader], dataset.unreadable

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        alone, count = batches(0)
        together, shared_count = batches(2)
    assert len(alone) == 5
    assert all(torch.equal(a, b) for a, b in zip(alone, together, strict=True))
    assert count == shared_count == 1


def test_small_images_are_left_out(faces: Path) -> None:
    dataset = FaceFolder(faces, size=16, min_side=40)
    assert (len(dataset), dataset.too_small) == (3, 4)
    with pytest.raises(ValueError, match="shorter side"):
        FaceFolder(faces, min_side=41)


def test_unreadable_headers_are_left_out_with_a_warning(faces: Path) -> None:
    (faces / "b" / "0.png").write_bytes(b"not an image")
    (faces / "b" / "9.jpg").touch()
    with pytest.warns(UserWarning, match=r"2 unreadable.*0\.png"):
        dataset = FaceFolder(faces, size=16)
    assert (len(dataset), dataset.unreadable) == (6, 2)
    for path in find_images(faces / "b"):
        path.write_bytes(b"")
    with pytest.raises(UnreadableImageError, match="all 4 images"):
        FaceFolder(faces / "b")


def test_files_that_fail_while_reading_are_replaced_and_reported_once(faces: Path) -> None:
    path = faces / "a" / "2.png"
    path.write_bytes(path.read_bytes()[:500])
    dataset = FaceFolder(faces, size=32, flip=False)
    assert dataset.unreadable == 0
    with pytest.warns(UserWarning, match=r"2\.png") as caught:
        items = [dataset[2], dataset[2]]
    assert len(caught) == 1
    assert dataset.unreadable == 1
    for item in items:
        assert torch.equal(item["image"], dataset[3]["image"])
        assert torch.equal(item["parsing"], dataset[3]["parsing"])
        assert not torch.equal(item["hole"], dataset[3]["hole"])


def test_when_nothing_can_be_read(faces: Path) -> None:
    dataset = FaceFolder(faces / "b", size=32)
    for path in dataset.paths:
        path.unlink()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pytest.raises(UnreadableImageError, match=r"all 3 images.*0\.png"):
            dataset[0]


@pytest.mark.parametrize("fault", ["broken", "colour", "shape"])
def test_unusable_labels_are_reported_once_and_left_out(faces: Path, fault: str) -> None:
    path = faces / "a_parsing" / "1.png"
    if fault == "broken":
        path.write_bytes(path.read_bytes()[:100])
    else:
        save(noise(32, 32) if fault == "colour" else Image.new("L", (32, 20)), path)
    dataset = FaceFolder(faces, size=32)
    with pytest.warns(UserWarning, match=r"1\.png") as caught:
        items = [dataset[1], dataset[1]]
    assert len(caught) == 1
    assert all((item["parsing"] == -1).all() for item in items)
    assert (dataset[0]["parsing"] >= 0).all()


def test_face_folder_refuses_bad_options(faces: Path) -> None:
    bad: list[dict[str, Any]] = [
        {"size": 0},
        {"seed": -1},
        {"crop_scale": (0.0, 1.0)},
        {"crop_scale": (0.5, 1.5)},
        {"colour": 1.0},
        {"ratio": (0.5, 0.2)},
        {"kind": "stars"},
    ]
    for options in bad:
        with pytest.raises(ValueError, match=next(iter(options))):
            FaceFolder(faces, **options)
    with pytest.raises(FileNotFoundError):
        FaceFolder(faces / "nowhere")


# The sampler


def test_each_epoch_holds_every_index_once() -> None:
    samples = list(EpochSampler(10, seed=2, stop=30))
    epochs = [samples[at : at + 10] for at in (0, 10, 20)]
    for number, epoch in enumerate(epochs):
        assert sorted(epoch) == list(range(number * 10, number * 10 + 10))
    orders = [[index % 10 for index in epoch] for epoch in epochs]
    assert orders[0] != orders[1] != orders[2]
    assert samples == list(EpochSampler(10, seed=2, stop=30))
    assert samples != list(EpochSampler(10, seed=3, stop=30))


def test_the_stream_is_resumed_where_it_stopped() -> None:
    whole = list(itertools.islice(EpochSampler(7, seed=1), 50))
    for start in (0, 1, 6, 7, 8, 20):
        assert list(itertools.islice(EpochSampler(7, seed=1, start=start), 50 - start)) == whole[start:]
        assert list(EpochSampler(7, seed=1, start=start, stop=23)) == whole[start:23]
    assert len(EpochSampler(7, start=3, stop=23)) == 20
    with pytest.raises(TypeError):
        len(EpochSampler(7))
    for options in [{"length": 0}, {"seed": -1}, {"start": -1}, {"start": 5, "stop": 4}]:
        with pytest.raises(ValueError, match="length >= 1"):
            EpochSampler(**{"length": 7, **options})
