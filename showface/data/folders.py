"""The training set from folders of images and of region labels."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from showface.data.augmentation import Augmentation
from showface.data.faces import FaceDataset, select_faces, shorter_side
from showface.data.images import find_images

PARSING_SUFFIX = "_parsing"

Folders = Path | str | Sequence[Path | str]
LabelFolders = Path | str | Sequence[Path | str | None]


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
        parsing: LabelFolders | None = None,
        min_side: int = 0,
        seed: int = 0,
    ) -> None:
        """List the files and read the header of every image.

        Args:
            folders: one or more folders, searched recursively.
            augmentation: makes a sample from a face; None takes the defaults of `Augmentation`.
            parsing: label folders, one per entry of `folders` (None for a folder without labels). Each holds PNGs of
                values 0..18 under the images' relative names; other values mean no label. By default, the labels of a
                folder, or of a folder below it, are in `<folder>_parsing` beside it. Label folders are never searched
                for faces.
            min_side: images with a shorter side below this are left out.
            seed: an integer >= 0.

        Raises:
            FileNotFoundError, NotADirectoryError: a folder does not exist.
            ValueError: an option out of range, a folder without images, or no image left.
            UnreadableImageError: every image is unreadable.
        """
        pairs = list_faces(folders, parsing)
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


def list_faces(folders: Folders, parsing: LabelFolders | None = None) -> list[tuple[Path, Path | None]]:
    """List each face once, with its label file or None, in the order of the folders. Arguments as for `FaceFolder`."""
    listed = [folders] if isinstance(folders, str | os.PathLike) else folders
    roots = [Path(folder) for folder in listed]
    if not roots:
        raise ValueError("folders is empty")
    given: list[Path | None] = [None] * len(roots)
    if parsing is not None:
        entries = [parsing] if isinstance(parsing, str | os.PathLike) else list(parsing)
        given = [None if entry is None else Path(entry) for entry in entries]
        if len(given) != len(roots):
            raise ValueError(f"parsing needs one entry per folder: {len(given)} for {len(roots)} folders")
    pairs: dict[Path, Path | None] = {}
    for root, labels in zip(roots, given, strict=True):
        named = {path.relative_to(labels).as_posix(): path for path in find_images(labels)} if labels else {}
        # The label folder is looked up once per folder of images, not once per image.
        siblings: dict[Path, tuple[Path, Path] | None] = {}
        excluded: dict[Path, bool] = {}
        faces = 0
        for path in find_images(root):
            parent = path.parent
            if parent not in excluded:
                excluded[parent] = _is_label_folder(parent, root, given)
                siblings[parent] = _sibling_labels(parent, root) if parsing is None else None
            if excluded[parent]:
                continue
            faces += 1
            sibling = siblings[parent]
            label = None
            if labels is not None:
                label = named.get(path.relative_to(root).with_suffix(".png").as_posix())
            else:
                label = _label_beside(path, sibling)
            if pairs.get(path) is None:
                pairs[path] = label
        if not faces:
            raise ValueError(f"folder {root} holds only region labels, no faces")
    return list(pairs.items())


def find_labels(images: Sequence[Path]) -> dict[Path, Path]:
    """Find the label image of each image that has one: `<folder>_parsing/<name>.png` beside the image's folder."""
    siblings = {folder: _sibling_labels(folder, folder) for folder in {path.parent for path in images}}
    labels = {path: _label_beside(path, siblings[path.parent]) for path in images}
    return {path: label for path, label in labels.items() if label is not None}


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


def _is_label_folder(folder: Path, root: Path, given: Sequence[Path | None]) -> bool:
    known = {path.resolve() for path in given if path is not None}
    for above in _upwards(folder, root):
        path = Path(os.path.abspath(above))
        stem = path.name.removesuffix(PARSING_SUFFIX)
        if path.resolve() in known or (stem and stem != path.name and path.with_name(stem).is_dir()):
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
