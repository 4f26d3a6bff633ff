"""The training set from shards: local or remote tar files of images and region labels."""

from __future__ import annotations

import io
import tarfile
import warnings
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import BinaryIO, NamedTuple, cast

import numpy as np

from showface.data.augmentation import Augmentation
from showface.data.faces import FaceDataset, LostFacesError, select_faces, shorter_side
from showface.data.find import IMAGE_SUFFIXES
from showface.data.folders import Folders, list_faces
from showface.data.tars import IMAGES, BrokenTarError, Key, list_members, open_tar, split_name
from showface.data.urls import NamedBytes, Urls, expand_urls, read_range
from showface.files import write_atomically

LABEL_EXTENSION = "parsing.png"

# Remote shards are listed in parallel, since listing them is mostly waiting.
_LISTING_THREADS = 8


class FaceShards(FaceDataset):
    """Faces from shards, each sample with a new random hole. `FaceDataset` describes the samples.

        dataset = FaceShards("shards/faces-*.tar", Augmentation(size=128))

    A shard is a tar file that follows the convention of WebDataset: members with the same path up to the first dot of
    the file name belong together. `key.jpg` (or another of `IMAGE_SUFFIXES`; the first one counts) is an image, and
    `key.parsing.png` holds its region labels, values 0..18 in the order of `REGIONS`. Other members and hidden ones are
    ignored.

    The members of all shards are listed once; each image is then read by its range of bytes. So the faces of all shards
    are shuffled together, and order and restarts are exact for any number of workers and processes.

    A shard that can't be read any more is reported once, and its faces are replaced by others.

    Attributes:
        shards: paths and URLs of the shards, in order.
        too_small: number of images left out because of `min_side`.
    """

    def __init__(
        self,
        urls: Urls,
        augmentation: Augmentation | None = None,
        *,
        min_side: int = 0,
        seed: int = 0,
    ) -> None:
        """List the members of all shards. This reads the tar headers and, if `min_side` is set, the image headers.

        Args:
            urls: one or more shards, each a path, a local glob pattern or a URL that fsspec can open. In all of them
                `{000..012}` stands for a range of numbers and `{a,b}` for alternatives. A repeated shard counts once.
            augmentation: makes a sample from a face; None takes the defaults of `Augmentation`.
            min_side: if above 0, unreadable images and images with a shorter side below this are left out.
            seed: an integer >= 0.

        Raises:
            FileNotFoundError: a shard does not exist, or nothing matches a pattern.
            OSError: a shard can't be opened.
            ValueError: an option out of range, no shard given, a shard that is not an uncompressed tar file or holds no
                images, or no image left.
            UnreadableImageError: with a `min_side`, every image is unreadable.
            ModuleNotFoundError: a URL is given, and fsspec is not installed.
        """
        self.shards = expand_urls(urls)
        with ThreadPoolExecutor(_LISTING_THREADS) as threads:
            listed = list(threads.map(partial(_list_shard, read_sides=min_side > 0), self.shards))
        for url, (faces, is_cut) in zip(self.shards, listed, strict=True):
            if is_cut:
                warnings.warn(f"shard {url} is cut off or broken after image {len(faces)}", stacklevel=2)
        found = [(shard, face) for shard, (faces, _) in enumerate(listed) for face in faces]
        names = [f"{self.shards[shard]}:{face.image.name}" for shard, face in found]
        kept = select_faces(names, (face.side for _, face in found), min_side)
        source = _ShardSource(self.shards, [found[index] for index in kept.indices])
        super().__init__(source, augmentation or Augmentation(), seed, unreadable=kept.unreadable)
        self.too_small = kept.too_small


def write_shards(folders: Folders, out: Path | str, count_per_shard: int = 1000) -> list[Path]:
    """Pack the faces and labels of folders into shards for `FaceShards`.

    Files are packed unchanged, in the order of `FaceFolder`, so both datasets give the same samples. The same files
    always give the same shards.

    Args:
        folders: as for `FaceFolder`.
        out: the folder for `faces-000000.tar` and so on, created if needed. Each file is written atomically.
        count_per_shard: faces per shard; the last shard may have fewer.

    Returns:
        The shards, in order.

    Raises:
        FileExistsError: `out` already holds such shards.
        FileNotFoundError, NotADirectoryError: a folder does not exist.
        ValueError: a folder without images, or `count_per_shard` is below 1.
    """
    if count_per_shard < 1:
        raise ValueError(f"count_per_shard must be at least 1, got {count_per_shard}")
    out = Path(out)
    # Shards of an earlier, longer run would stay among the new ones.
    if any(out.glob("faces-*.tar")):
        raise FileExistsError(f"{out} holds shards already: delete them, or choose another folder")
    faces = list_faces(folders)
    out.mkdir(parents=True, exist_ok=True)
    paths: list[Path] = []
    for first in range(0, len(faces), count_per_shard):
        path = out / f"faces-{len(paths):06d}.tar"
        write_atomically(path, partial(_write_shard, faces[first : first + count_per_shard], first))
        paths.append(path)
    return paths


def _write_shard(faces: Sequence[tuple[Path, Path | None]], first: int, path: Path) -> None:
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as tar:
        for number, (image, labels) in enumerate(faces, first):
            # The number tells files of the same name apart. A dot would end the key.
            key = f"{number:08d}-{image.stem.replace('.', '_')}"
            _add_member(tar, key + image.suffix.lower(), image)
            if labels is not None:
                _add_member(tar, f"{key}.{LABEL_EXTENSION}", labels)


def _add_member(tar: tarfile.TarFile, name: str, path: Path) -> None:
    data = path.read_bytes()
    member = tarfile.TarInfo(name)  # dated 1970, without an owner, so that the same files give the same tar
    member.size = len(data)
    tar.addfile(member, io.BytesIO(data))


class _Member(NamedTuple):
    """A file in a shard, and the position of its bytes."""

    name: str
    offset: int
    size: int


class _Face(NamedTuple):
    """An image in a shard, its shorter side (0 if not read, the reason if unreadable), and its label file or None."""

    image: _Member
    side: int | str
    labels: _Member | None


class _ShardSource:
    """A `FaceSource` of shard members. It keeps no files open, so it can be pickled and forked."""

    def __init__(self, shards: Sequence[str], faces: Sequence[tuple[int, _Face]]) -> None:
        self.shards = shards
        self.names = [face.image.name for _, face in faces]
        self.shard_of = np.array([shard for shard, _ in faces], dtype=np.int64)
        # Offset and size of each image and of its labels. Offset 0 means no labels: a tar file starts with a header.
        ranges = [face.image[1:] + (face.labels[1:] if face.labels else (0, 0)) for _, face in faces]
        self.ranges = np.array(ranges, dtype=np.int64)
        self.labelled = int(np.count_nonzero(self.ranges[:, 2]))

    def __len__(self) -> int:
        return len(self.names)

    def name(self, index: int) -> str:
        return f"{self.shards[self.shard_of[index]]}:{self.names[index]}"

    def open_image(self, index: int) -> BinaryIO:
        offset, size = self.ranges[index, :2].tolist()
        return self._open(index, offset, size, self.name(index))

    def open_labels(self, index: int) -> BinaryIO | None:
        offset, size = self.ranges[index, 2:].tolist()
        return self._open(index, offset, size, f"the labels of {self.name(index)}") if offset else None

    def _open(self, index: int, offset: int, size: int, name: str) -> BinaryIO:
        shard = self.shard_of[index]
        try:
            return NamedBytes(read_range(self.shards[shard], offset, size), name)
        except OSError as error:
            first, end = np.searchsorted(self.shard_of, [shard, shard + 1]).tolist()
            message = f"shard {self.shards[shard]} can't be read any more ({error})"
            raise LostFacesError(message, first, end - first) from error


def _list_shard(url: str, read_sides: bool) -> tuple[list[_Face], bool]:
    """The faces of a shard, in the order of its images, and whether the shard is cut off."""
    with open_tar(url) as (tar, file):
        faces, is_cut = _list_faces(tar, file, read_sides)
    if not faces:
        end = ", which is cut off or broken" if is_cut else ""
        raise ValueError(f"no images ({IMAGES}) in shard {url}{end}")
    return faces, is_cut


def _list_faces(tar: tarfile.TarFile, file: BinaryIO, read_sides: bool) -> tuple[list[_Face], bool]:
    images: dict[Key, tuple[_Member, int | str]] = {}
    labels: dict[Key, _Member] = {}
    is_cut = False
    try:
        for info in list_members(tar, file):
            key, extension = split_name(info.name)
            if not info.isreg() or key is None:
                continue
            member = _Member(info.name, info.offset_data, info.size)
            if extension == LABEL_EXTENSION:
                labels.setdefault(key, member)
            elif f".{extension}" in IMAGE_SUFFIXES and key not in images:
                side = shorter_side(cast(BinaryIO, tar.extractfile(info))) if read_sides else 0
                images[key] = member, side
    except BrokenTarError:
        is_cut = True
    return [_Face(image, side, labels.get(key)) for key, (image, side) in images.items()], is_cut
