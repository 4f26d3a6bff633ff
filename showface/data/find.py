"""Finding the photos and the masks in folders."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable
from pathlib import Path

IMAGE_SUFFIXES = frozenset(
    {".jpg", ".jpeg", ".jfif", ".png", ".webp", ".bmp", ".tif", ".tiff", ".avif", ".heic", ".heif"}
)
MASK_SUFFIXES = IMAGE_SUFFIXES | {".gif", ".jp2", ".ppm", ".pgm", ".pbm"}
"""Masks are only read, so they may have formats in which photos are rarely kept."""


def find_images(*folders: Path | str, suffixes: Collection[str] = IMAGE_SUFFIXES) -> list[Path]:
    """List the image files in the folders and below, sorted, each once.

    Image files have one of `suffixes`, in upper or lower case. Names that start with a dot are skipped, and links to
    folders are not followed.

    Raises:
        FileNotFoundError: a folder does not exist.
        NotADirectoryError: a path is not a folder.
        ValueError: no folder is given, or a folder holds no image.
    """
    if not folders:
        raise ValueError("find_images needs at least one folder")
    found: set[Path] = set()
    for folder in folders:
        images = set(_walk_images(Path(folder), suffixes))
        if not images:
            raise ValueError(f"no images ({', '.join(sorted(suffixes))}) in folder {folder}")
        found |= images
    return sorted(found)


def find_masks(folder: Path | str) -> list[Path]:
    """List the masks in a folder and below, as `find_images` does, with the suffixes of `MASK_SUFFIXES`."""
    return find_images(folder, suffixes=MASK_SUFFIXES)


def _walk_images(folder: Path, suffixes: Collection[str]) -> Iterable[Path]:
    if not folder.exists():
        raise FileNotFoundError(f"folder does not exist: {folder}")
    if not folder.is_dir():
        raise NotADirectoryError(f"not a folder: {folder}")
    for parent, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in names:
            if not name.startswith(".") and os.path.splitext(name)[1].lower() in suffixes:
                yield Path(parent, name)
