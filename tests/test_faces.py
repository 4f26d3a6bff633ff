"""The training set, and the order of its samples."""

from __future__ import annotations

import itertools
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

from showface.data import (
    REGIONS,
    Augmentation,
    EpochSampler,
    FaceFolder,
    UnreadableImageError,
    find_images,
    image_to_tensor,
    read_image,
)

from support.pictures import noise, save


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


def test_items(faces: Path) -> None:
    dataset = FaceFolder(faces, Augmentation(32, flip=False))
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
            assert (parsing.numpy() == np.asarray(Image.open(label))).all()
        else:
            assert (parsing == -1).all()


def test_labels_are_found_from_the_folder_itself_and_below(faces: Path, tmp_path: Path) -> None:
    assert FaceFolder(faces / "a", Augmentation(16)).labelled == 4
    assert FaceFolder([faces / "b", faces / "a"], Augmentation(16)).labelled == 4
    nested = tmp_path / "nested"
    save(noise(), nested / "x" / "deep" / "1.jpg")
    save(Image.new("L", (32, 40), 3), nested / "x_parsing" / "deep" / "1.png")
    for root in (nested, nested / "x", nested / "x" / "deep"):
        dataset = FaceFolder(root, Augmentation(16))
        assert len(dataset) == 1
        # Labels are searched in the given folder and below, not above it.
        assert dataset.labelled == (0 if root.name == "deep" else 1)
    with pytest.raises(ValueError, match="labels"):
        FaceFolder(faces / "a_parsing")


def test_overlapping_folders_give_each_face_once(faces: Path) -> None:
    dataset = FaceFolder([faces / "b", faces], Augmentation(16))
    assert len(dataset) == len(set(dataset.paths)) == 7
    assert dataset.labelled == 4


def test_flipping_swaps_left_and_right(tmp_path: Path) -> None:
    assert len(REGIONS) == 19
    swapped = {REGIONS.index(f"left {part}"): REGIONS.index(f"right {part}") for part in ("eye", "brow", "ear")}
    assert swapped == {4: 5, 6: 7, 8: 9}
    values = np.tile(np.arange(20, dtype=np.uint8), (20, 1))
    values[0] = 255
    save(Image.fromarray(values).convert("RGB"), tmp_path / "x" / "1.png")
    save(Image.fromarray(values), tmp_path / "x_parsing" / "1.png")
    dataset = FaceFolder(tmp_path / "x", Augmentation(20))
    plain = [*range(19), -1]
    mirrored = [{**swapped, **{b: a for a, b in swapped.items()}}.get(value, value) for value in plain][::-1]
    seen = set()
    for epoch in range(20):
        item = dataset[epoch]
        columns = item["parsing"][1].tolist()
        assert columns in (plain, mirrored)
        assert (item["parsing"][0] == -1).all()
        seen.add(columns == mirrored)
        # The picture is mirrored together with its labels.
        assert (item["image"][0, 1, 0] > item["image"][0, 1, -1]) == (columns == mirrored)
    assert seen == {True, False}


def test_labels_follow_the_crop_at_any_scale(tmp_path: Path) -> None:
    rows, columns = np.mgrid[:96, :128]
    values = ((rows // 16 + columns // 16) % 19).astype(np.uint8)
    save(Image.fromarray(values * 10).convert("RGB"), tmp_path / "x" / "1.png")
    for factor in (1, 2):
        label = Image.fromarray(values[::factor, ::factor])
        save(label, tmp_path / "x_parsing" / "1.png")
        dataset = FaceFolder(tmp_path / "x", Augmentation(64, crop=(0.6, 1.0), flip=False))
        for epoch in range(6):
            item = dataset[epoch]
            expected = ((item["image"][0] + 1) * 12.75).round().long()
            # Lanczos blurs the borders of the squares; inside them the two agree.
            assert (expected == item["parsing"]).float().mean() > 0.75


def test_crops_and_colours_vary(faces: Path) -> None:
    dataset = FaceFolder(faces / "b", Augmentation(32, crop=(0.5, 1.0), flip=False, colour=0.3))
    images = [dataset[3 * epoch]["image"] for epoch in range(8)]
    means = [image.mean(dim=(1, 2)) for image in images]
    assert all(not torch.equal(a, b) for a, b in itertools.combinations(images, 2))
    assert torch.stack(means).std(dim=0).min() > 0.02
    assert all(image.abs().max() <= 1 for image in images)


def test_items_depend_on_seed_epoch_and_index_only(faces: Path) -> None:
    def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
        return all(torch.equal(a[name], b[name]) for name in a)

    dataset = FaceFolder(faces, Augmentation(32), seed=5)
    later = dataset[2 + 7 * 3]
    assert same(later, FaceFolder(faces, Augmentation(32), seed=5)[2 + 7 * 3])
    assert not same(later, dataset[2])
    assert not same(later, FaceFolder(faces, Augmentation(32), seed=6)[2 + 7 * 3])
    with pytest.raises(IndexError):
        dataset[-1]


def test_workers_give_the_same_stream(faces: Path) -> None:
    (faces / "b" / "1.png").write_bytes((faces / "b" / "1.png").read_bytes()[:300])

    def batches(workers: int) -> tuple[list[torch.Tensor], int]:
        dataset = FaceFolder(faces, Augmentation(16), seed=1)
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
    dataset = FaceFolder(faces, Augmentation(16), min_side=40)
    assert (len(dataset), dataset.too_small) == (3, 4)
    with pytest.raises(ValueError, match="shorter side"):
        FaceFolder(faces, min_side=41)


def test_unreadable_headers_are_left_out_with_a_warning(faces: Path) -> None:
    (faces / "b" / "0.png").write_bytes(b"not an image")
    (faces / "b" / "9.jpg").touch()
    with pytest.warns(UserWarning, match=r"2 unreadable.*0\.png, .*9\.jpg \(the first: cannot read.*0\.png"):
        dataset = FaceFolder(faces, Augmentation(16))
    assert (len(dataset), dataset.unreadable) == (6, 2)
    for path in find_images(faces / "b"):
        path.write_bytes(b"")
    with pytest.raises(UnreadableImageError, match=r"all 4 images .*\(the first: cannot read image"):
        FaceFolder(faces / "b")


def test_files_that_fail_while_reading_are_replaced_and_reported_once(faces: Path) -> None:
    path = faces / "a" / "2.png"
    path.write_bytes(path.read_bytes()[:500])
    dataset = FaceFolder(faces, Augmentation(32, flip=False))
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
    dataset = FaceFolder(faces / "b", Augmentation(32))
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
    dataset = FaceFolder(faces, Augmentation(32))
    with pytest.warns(UserWarning, match=r"1\.png") as caught:
        items = [dataset[1], dataset[1]]
    assert len(caught) == 1
    assert all((item["parsing"] == -1).all() for item in items)
    assert (dataset[0]["parsing"] >= 0).all()


def test_bad_options_are_refused(faces: Path) -> None:
    bad: list[dict[str, Any]] = [
        {"size": 0},
        {"crop": (0.0, 1.0)},
        {"crop": (0.5, 1.5)},
        {"colour": 1.0},
        {"ratio": (0.5, 0.2)},
        {"kind": "stars"},
        {"components": 1.5},
    ]
    for options in bad:
        with pytest.raises(ValueError, match=f"^{next(iter(options))} must be "):
            Augmentation(**options)
    with pytest.raises(ValueError, match="seed"):
        FaceFolder(faces, seed=-1)
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
