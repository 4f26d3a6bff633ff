"""The training set from folders of images and of region labels."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from showface.data.augmentation import Augmentation
from showface.data.faces import FaceDataset, select_faces, shorter_side
from showface.data.find import find_images

PARSING_SUFFIX = "_parsing"

Folders = Path | str | Sequence[Path | str]


class FaceFolder(FaceDataset):
    """Faces from folders, each sample with a new random hole. `FaceDataset` describes the samples.

        dataset = FaceFolder("faces", Augmentation(size=128))

    Attributes:
        paths: the image files, in order.
        labels: the label file of each image, or None.
        too_small: number of images left out because of `min_side`.
    """

    def __init__(
        self,
        folders: Folders,
        augmentation: Augmentation | None = None,
        *,
        min_side: int = 0,
        seed: int = 0,
    ) -> None:
        """List the files and read the header of every image.

        Args:
            folders: one or more folders, searched recursively. The labels of a folder, or of a folder below it, are in
                `<folder>_parsing` beside it: PNGs of values 0..18 under the images' relative names; other values mean
                no label. Label folders are not searched for faces.
            augmentation: makes a sample from a face; None takes the defaults of `Augmentation`.
            min_side: images with a shorter side below this are left out.
            seed: an integer >= 0.

        Raises:
            FileNotFoundError, NotADirectoryError: a folder does not exist.
            ValueError: an option out of range, a folder without images, or no image left.
            UnreadableImageError: every image is unreadable.
        """
        pairs = list_faces(folders)
        kept = select_faces([str(path) for path, _ in pairs], (shorter_side(path) for path, _ in pairs), min_side)
        source = _FolderSource([pairs[index] for index in kept.indices])
        super().__init__(source, augmentation or Augmentation(), seed, unreadable=kept.unreadable)
        self.paths, self.labels, self.too_small = source.paths, source.labels, kept.too_small


class _FolderSource:
    """A `FaceSource` of files."""

    def __init__(self, pairs: Sequence[tuple[Path, Path | None]]) -> None:
        self.paths = [path for path, _ in pairs]
        self.labels = [label for _, label in pairs]
        self.labelled = sum(label is not None for label in self.labels)

    def __len__(self) -> int:
        return len(self.paths)

    def name(self, index: int) -> str:
        return str(self.paths[index])

    def open_image(self, index: int) -> Path:
        return self.paths[index]

    def open_labels(self, index: int) -> Path | None:
        return self.labels[index]


def list_folders(folders: Folders) -> list[Path]:
    """A list of folders; a single folder may be given without a list. Raises ValueError if there is none."""
    listed = [folders] if isinstance(folders, str | os.PathLike) else folders
    roots = [Path(folder) for folder in listed]
    if not roots:
        raise ValueError("folders is empty")
    return roots


def list_faces(folders: Folders) -> list[tuple[Path, Path | None]]:
    """List each face once, with its label file or None, in the order of the folders.

    The labels of a folder, or of a folder below it, are in `<folder>_parsing` beside it, under the images' relative
    names. Label folders are not searched for faces.

    Raises:
        FileNotFoundError, NotADirectoryError: a folder does not exist.
        ValueError: no folder is given, or a folder holds no faces.
    """
    pairs: dict[Path, Path | None] = {}
    for root in list_folders(folders):
        # The label folder is looked up once per folder of images, not once per image.
        siblings: dict[Path, tuple[Path, Path] | None] = {}
        excluded: dict[Path, bool] = {}
        faces = 0
        for path in find_images(root):
            parent = path.parent
            if parent not in excluded:
                excluded[parent] = _is_label_folder(parent, root)
                siblings[parent] = _sibling_labels(parent, root)
            if excluded[parent]:
                continue
            faces += 1
            if pairs.get(path) is None:
                pairs[path] = _label_beside(path, siblings[parent])
        if not faces:
            raise ValueError(f"folder {root} holds only region labels, no faces")
    return list(pairs.items())


def _label_beside(path: Path, sibling: tuple[Path, Path] | None) -> Path | None:
    """The label file of an image, or None; `sibling` is from `_sibling_labels` for the image's folder."""
    if sibling is None:
        return None
    label = sibling[1] / path.relative_to(sibling[0]).with_suffix(".png")
    return label if label.is_file() else None


def _upwards(folder: Path, root: Path) -> Iterator[Path]:
    """The folder and its parents, up to and including the root."""
    yield folder
    while folder != root:
        folder = folder.parent
        yield folder


def _is_label_folder(folder: Path, root: Path) -> bool:
    for above in _upwards(folder, root):
        path = Path(os.path.abspath(above))
        stem = path.name.removesuffix(PARSING_SUFFIX)
        if stem and stem != path.name and path.with_name(stem).is_dir():
            return True
    return False


def _sibling_labels(folder: Path, root: Path) -> tuple[Path, Path] | None:
    """Search upwards for a folder that has a label folder beside it. Returns both folders, or None."""
    for above in _upwards(folder, root):
        path = Path(os.path.abspath(above))
        labels = path.with_name(path.name + PARSING_SUFFIX)
        if path.name and labels.is_dir():
            return above, labels
    return None
