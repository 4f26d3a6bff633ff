"""The training set from shards, and a stream of samples shared by processes."""

from __future__ import annotations

import io
import itertools
import multiprocessing
import pickle
import sys
import tarfile
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

from showface.data import (
    Augmentation,
    EpochSampler,
    FaceDataset,
    FaceFolder,
    FaceShards,
    UnreadableImageError,
    urls,
    write_shards,
)

AUGMENTATION = Augmentation(16, colour=0.2, crop=(0.7, 1.0))


def noise(seed: int, side: int = 24) -> Image.Image:
    rng = np.random.default_rng(seed)
    return Image.fromarray(rng.integers(0, 256, (side, side, 3), dtype=np.uint8))


def encoded(image: Image.Image, kind: str = "png") -> bytes:
    file = io.BytesIO()
    image.save(file, kind)
    return file.getvalue()


def write_tar(path: Path, members: dict[str, bytes]) -> Path:
    with tarfile.open(path, "w") as tar:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


def same(one: FaceDataset, other: FaceDataset, epochs: int = 2) -> bool:
    return len(one) == len(other) and all(
        torch.equal(one[index][name], other[index][name])
        for index in range(epochs * len(one))
        for name in ("image", "hole", "parsing")
    )


@pytest.fixture(autouse=True)
def _no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(urls, "_PAUSES", (0.0, 0.0))


@pytest.fixture
def faces(tmp_path: Path) -> Path:
    """`faces/` with 7 images in several formats and folders, two with the same name, and labels for 3."""
    root = tmp_path / "faces"
    for folder in ("a", "a_parsing", "b"):
        (root / folder).mkdir(parents=True)
    for index, name in enumerate(["a/0.png", "a/1.x.jpg", "a/2.webp", "a/ä.bmp", "b/0.PNG", "b/1.tif", "b/2.png"]):
        noise(index).save(root / name)
    for index, name in enumerate(["0", "1.x", "ä"]):
        values = np.random.default_rng(index).integers(0, 19, (24, 24), dtype=np.uint8)
        Image.fromarray(values).save(root / "a_parsing" / f"{name}.png")
    return root


@pytest.fixture
def shards(faces: Path, tmp_path: Path) -> list[Path]:
    return write_shards(faces, tmp_path / "shards", 3)


@pytest.fixture
def memory(shards: list[Path]) -> Iterator[str]:
    """The URL pattern of the shards in fsspec's memory file system."""
    fsspec = pytest.importorskip("fsspec")
    files = fsspec.filesystem("memory")
    for path in shards:
        files.pipe_file(f"/showface/{path.name}", path.read_bytes())
    yield "memory://showface/faces-{000000..000002}.tar"
    files.rm("/showface", recursive=True)


# Writing


def test_shards_hold_the_files_as_they_are(faces: Path, shards: list[Path]) -> None:
    assert [path.name for path in shards] == ["faces-000000.tar", "faces-000001.tar", "faces-000002.tar"]
    assert sorted(path.name for path in shards[0].parent.iterdir()) == [path.name for path in shards]
    members = {}
    for path in shards:
        with tarfile.open(path) as tar:
            for info in tar:
                members[info.name] = tar.extractfile(info).read()  # type: ignore[union-attr]
    assert members.pop("00000001-1_x.parsing.png") == (faces / "a_parsing" / "1.x.png").read_bytes()
    assert members.pop("00000000-0.parsing.png") == (faces / "a_parsing" / "0.png").read_bytes()
    assert members.pop("00000003-ä.parsing.png") == (faces / "a_parsing" / "ä.png").read_bytes()
    assert list(members.values()) == [path.read_bytes() for path in FaceFolder(faces).paths]
    assert list(members)[:2] == ["00000000-0.png", "00000001-1_x.jpg"]


def test_the_same_files_give_the_same_shards(faces: Path, shards: list[Path], tmp_path: Path) -> None:
    again = write_shards([faces], tmp_path / "again", 3)
    assert [path.read_bytes() for path in again] == [path.read_bytes() for path in shards]


def test_write_shards_says_what_is_wrong(faces: Path, shards: list[Path], tmp_path: Path) -> None:
    with pytest.raises(FileExistsError, match="holds shards already"):
        write_shards(faces, shards[0].parent)
    with pytest.raises(ValueError, match="count_per_shard"):
        write_shards(faces, tmp_path / "new", 0)
    with pytest.raises(FileNotFoundError, match="nowhere"):
        write_shards(tmp_path / "nowhere", tmp_path / "new")
    assert not (tmp_path / "new").exists()


# Reading


def test_items_are_those_of_the_folder(faces: Path, shards: list[Path]) -> None:
    folder = FaceFolder(faces, AUGMENTATION, seed=3)
    dataset = FaceShards(shards, AUGMENTATION, seed=3)
    assert (len(dataset), dataset.labelled, dataset.unreadable, dataset.too_small) == (7, 3, 0, 0)
    assert same(dataset, folder)
    assert not same(dataset, FaceShards(shards, Augmentation(16)))
    assert dataset.shards == [str(path) for path in shards]


def test_patterns(shards: list[Path]) -> None:
    folder = shards[0].parent
    dataset = FaceShards(shards, Augmentation(16))
    for pattern in ("faces-{000000..000002}.tar", "faces-00000{0,1,2}.tar", "*.tar", "faces-0000{00..02}.t[a]r"):
        assert same(FaceShards(folder / pattern, Augmentation(16)), dataset, epochs=1)
    # In the order of the patterns, each once.
    mixed = FaceShards([str(shards[2]), str(folder / "*.tar")], Augmentation(16))
    assert mixed.shards == [str(shards[index]) for index in (2, 0, 1)]
    assert urls.expand_urls("s3://bucket/{x,y}/{8..10}.tar?a={b}") == [
        f"s3://bucket/{name}/{number}.tar?a={{b}}" for name in "xy" for number in (8, 9, 10)
    ]


def test_urls(shards: list[Path], memory: str) -> None:
    assert same(FaceShards(memory, AUGMENTATION, seed=3), FaceShards(shards, AUGMENTATION, seed=3))
    assert same(FaceShards([path.as_uri() for path in shards], Augmentation(16)), FaceShards(shards, Augmentation(16)))
    with pytest.raises(FileNotFoundError, match="memory://showface/nothing"):
        FaceShards("memory://showface/nothing.tar")
    with pytest.raises(OSError, match=r"nonsense://x\.tar"):
        FaceShards("nonsense://x.tar")


def test_without_fsspec_only_urls_fail(shards: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "fsspec", None)
    monkeypatch.setitem(sys.modules, "fsspec.core", None)
    assert len(list(FaceShards(shards, Augmentation(16)))) == 7
    with pytest.raises(ModuleNotFoundError, match=r"s3://bucket/x\.tar needs fsspec.*showface\[shards\]"):
        FaceShards("s3://bucket/x.tar")


def batches(dataset: FaceDataset, workers: int, context: str | None = None) -> list[torch.Tensor]:
    sampler = EpochSampler(len(dataset), seed=1, start=4, stop=20)
    loader = DataLoader(dataset, 4, sampler=sampler, num_workers=workers, multiprocessing_context=context)
    return [torch.cat([batch["image"], batch["hole"], batch["parsing"][:, None]], 1) for batch in loader]


def test_workers_give_the_same_stream(shards: list[Path], memory: str) -> None:
    alone = batches(FaceShards(shards, AUGMENTATION, seed=3), 0)
    assert len(alone) == 4
    for workers in (1, 2):
        together = batches(FaceShards(shards, AUGMENTATION, seed=3), workers)
        assert all(torch.equal(a, b) for a, b in zip(alone, together, strict=True))
    if "fork" in multiprocessing.get_all_start_methods():
        # Forked workers inherit the memory file system.
        together = batches(FaceShards(memory, AUGMENTATION, seed=3), 2, "fork")
        assert all(torch.equal(a, b) for a, b in zip(alone, together, strict=True))


def test_pickled_and_spawned(shards: list[Path]) -> None:
    dataset = FaceShards(shards, AUGMENTATION, seed=3)
    dataset[0]
    assert same(pickle.loads(pickle.dumps(dataset)), dataset)
    alone, spawned = batches(dataset, 0), batches(dataset, 1, "spawn")
    assert all(torch.equal(a, b) for a, b in zip(alone, spawned, strict=True))


def test_what_counts_as_a_face(tmp_path: Path) -> None:
    labels = Image.fromarray(np.full((24, 24), 7, dtype=np.uint8))
    path = write_tar(
        tmp_path / "x.tar",
        {
            "x/1.parsing.png": encoded(labels),
            "x/1.json": b"{}",
            "x/1.JPG": encoded(noise(0), "jpeg"),
            "x/1.png": encoded(noise(1)),
            "y/1.png": encoded(noise(2)),
            "x/2.seg.png": encoded(noise(3)),
            "x/._3.png": b"not an image",
            "4.webp": encoded(noise(4), "webp"),
        },
    )
    dataset = FaceShards(path, Augmentation(16, flip=False))
    assert (len(dataset), dataset.labelled) == (3, 1)
    assert [dataset.source.name(index) for index in range(3)] == [
        f"{path}:{x}" for x in ("x/1.JPG", "y/1.png", "4.webp")
    ]
    assert (dataset[0]["parsing"] == 7).all()
    assert (dataset[1]["parsing"] == -1).all()


def test_small_images_and_unreadable_headers_are_left_out(tmp_path: Path) -> None:
    members = {"0.png": encoded(noise(0)), "1.png": encoded(noise(1, 12)), "2.png": b"no image"}
    path = write_tar(tmp_path / "x.tar", members)
    with pytest.warns(UserWarning, match=r"left out 1 unreadable.*x\.tar:2\.png"):
        dataset = FaceShards(path, Augmentation(16), min_side=20)
    assert (len(dataset), dataset.too_small, dataset.unreadable) == (1, 1, 1)
    for bad, match in (({"min_side": 99}, "shorter side"), ({"min_side": -1}, "min_side"), ({"seed": -1}, "seed")):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with pytest.raises(ValueError, match=match):
                FaceShards(path, Augmentation(16), **bad)


# Faults


def test_a_broken_member_is_replaced_and_reported_once(tmp_path: Path) -> None:
    labels = encoded(Image.new("L", (24, 24)))
    members = {f"{index}.png": encoded(noise(index)) for index in range(4)}
    members["1.png"] = members["1.png"][:300]
    members |= {"2.parsing.png": labels[:40], "3.parsing.png": labels}
    dataset = FaceShards(write_tar(tmp_path / "x.tar", members), Augmentation(16, flip=False))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        items = [dataset[1], dataset[1], dataset[2]]
    image, label = (str(warning.message) for warning in caught)
    assert image.startswith(f"cannot read image {tmp_path / 'x.tar'}:1.png: ")
    assert image.endswith("; another image replaces it")
    assert label.startswith(f"labels left out, cannot use the labels of {tmp_path / 'x.tar'}:2.png: ")
    assert "object at" not in image + label
    assert torch.equal(items[0]["image"], items[2]["image"])
    assert (items[2]["parsing"] == -1).all()
    assert (dataset[3]["parsing"] == 0).all()
    assert dataset.unreadable == 1


@pytest.mark.parametrize("cut", ["image", "header", "end"])
def test_of_a_truncated_shard_the_whole_images_are_used(tmp_path: Path, cut: str) -> None:
    members = {f"{index}.png": encoded(noise(index)) for index in range(3)}
    path = write_tar(tmp_path / "x.tar", members)
    whole = FaceShards(path, Augmentation(16))
    with tarfile.open(path) as tar:
        last = tar.getmembers()[-1]
    # Cut off one byte of the image, part of its header, or everything after the previous image.
    length = {"image": last.offset_data + last.size - 1, "header": last.offset + 100, "end": last.offset}[cut]
    path.write_bytes(path.read_bytes()[:length])
    with pytest.warns(UserWarning, match=r"x\.tar is cut off or broken after image 2"):
        dataset = FaceShards(path, Augmentation(16))
    assert len(dataset) == 2
    assert all(torch.equal(dataset[index]["image"], whole[index]["image"]) for index in range(2))


def test_garbage_within_a_shard_ends_it_with_a_warning(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "x.tar", {f"{index}.png": encoded(noise(index)) for index in range(3)})
    with tarfile.open(path) as tar:
        second = tar.getmembers()[1].offset
    data = bytearray(path.read_bytes())
    data[second : second + 512] = b"?" * 512
    path.write_bytes(data)
    with pytest.warns(UserWarning, match="after image 1"):
        assert len(FaceShards(path, Augmentation(16))) == 1


def test_shards_that_are_none(tmp_path: Path, shards: list[Path]) -> None:
    def file(name: str, data: bytes) -> Path:
        (tmp_path / name).write_bytes(data)
        return tmp_path / name

    compressed = tmp_path / "x.tar.gz"
    with tarfile.open(compressed, "w:gz") as tar:
        tar.add(shards[0], "x.tar")
    for path, match in [
        (compressed, r"x\.tar\.gz is not an uncompressed tar file"),
        (file("text.tar", b"no tar at all" * 99), r"text\.tar is not an uncompressed tar"),
        (file("empty.tar", b""), r"empty\.tar is not an uncompressed tar"),
        (write_tar(tmp_path / "none.tar", {"1.txt": b"1", "1.parsing.png": b"2"}), r"no images .*none\.tar$"),
        (file("cut.tar", shards[0].read_bytes()[:600]), r"no images .*cut\.tar, which is cut off"),
        ([], "at least one"),
        (tmp_path / "{2..1}.tar", "at least one"),
    ]:
        with pytest.raises(ValueError, match=match):
            FaceShards(path)  # type: ignore[arg-type]
    with pytest.raises(FileNotFoundError, match="no file matches"):
        FaceShards(tmp_path / "nothing-*.tar")
    with pytest.raises(FileNotFoundError, match=r"does not exist: .*nothing\.tar"):
        FaceShards([*shards, tmp_path / "nothing.tar"])
    with pytest.raises(OSError, match=f"cannot read tar file {tmp_path}"):
        FaceShards(tmp_path)


@pytest.mark.parametrize("fault", ["gone", "cut"])
def test_the_faces_of_a_lost_shard_are_replaced_by_different_ones(shards: list[Path], fault: str) -> None:
    dataset = FaceShards(shards, Augmentation(16, flip=False))
    expected = [dataset[index]["image"] for index in (3, 4, 5)]
    if fault == "gone":
        shards[0].unlink()
    else:
        shards[0].write_bytes(shards[0].read_bytes()[:600])
    with pytest.warns(UserWarning, match=r"faces-000000\.tar can't be read.*replace its 3") as caught:
        images = [dataset[index]["image"] for index in (0, 1, 2)]
    assert len(caught) == 1
    assert all(torch.equal(a, b) for a, b in zip(images, expected, strict=True))
    assert dataset.unreadable == 3


def test_when_no_shard_is_left(shards: list[Path]) -> None:
    dataset = FaceShards(shards, Augmentation(16))
    good = dataset[6]["image"]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for path in shards[:2]:
            path.unlink()
        # The shards hold 3, 3 and 1 faces. Every lost face is replaced by the one that is left.
        sampled = [dataset[index]["image"] for index in range(6)]
        assert all(image.shape == good.shape for image in sampled)
        assert dataset.unreadable == 6
        shards[2].unlink()
        with pytest.raises(UnreadableImageError, match=r"all 7 images.*faces-000000\.tar:00000000-0\.png"):
            dataset[0]


def test_what_a_worker_finds_lost_all_know(shards: list[Path]) -> None:
    dataset = FaceShards(shards, Augmentation(16))
    shards[1].unlink()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        list(DataLoader(dataset, 1, sampler=[3], num_workers=1))
    assert dataset.unreadable == 3


def test_a_hiccup_of_the_network_costs_nothing(memory: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from fsspec.implementations.memory import MemoryFileSystem

    dataset = FaceShards(memory, Augmentation(16))
    item = dataset[0]
    read, failures = MemoryFileSystem.cat_file, iter([RuntimeError("busy"), TimeoutError()])

    def flaky(*args: Any, **options: Any) -> bytes:
        for failure in failures:
            raise failure
        return read(*args, **options)

    monkeypatch.setattr(MemoryFileSystem, "cat_file", flaky)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert torch.equal(dataset[0]["image"], item["image"])
    failures = itertools.repeat(RuntimeError("busy"))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pytest.raises(UnreadableImageError, match="all 7 images"):
            dataset[0]


# The stream shared by processes


@pytest.mark.parametrize("world", [1, 2, 4])
def test_the_parts_of_all_processes_are_the_whole_stream(world: int) -> None:
    whole = list(EpochSampler(11, seed=2, stop=40))
    for start in (0, 8, 24):
        samplers = [EpochSampler(11, 2, start, 40, batch=8, rank=rank, world=world) for rank in range(world)]
        assert [len(sampler) for sampler in samplers] == [(40 - start) // world] * world
        parts = np.array([list(sampler) for sampler in samplers])
        # (process, batch, sample) -> for each batch, the samples of all processes in order
        joined = parts.reshape(world, -1, 8 // world).transpose(1, 0, 2).ravel()
        assert joined.tolist() == whole[start:]
    endless = EpochSampler(11, 2, batch=8, rank=world - 1, world=world)
    assert list(itertools.islice(endless, 8 // world)) == whole[8 - 8 // world : 8]


def test_a_stream_that_cannot_be_shared_is_refused() -> None:
    for options in ({"rank": 2}, {"rank": -1}, {"world": 0}, {"batch": 3}, {"batch": 0}):
        with pytest.raises(ValueError, match="rank < world"):
            EpochSampler(7, **{"batch": 4, "world": 2, **options})
    for bounds in ({"start": 6}, {"stop": 6}):
        with pytest.raises(ValueError, match="multiples of the batch of 4"):
            EpochSampler(7, batch=4, world=2, **bounds)
