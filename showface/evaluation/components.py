"""Pairs of photos and holes that hide a whole component of the face."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from PIL import Image

from showface.data import COMPONENTS, component_hole
from showface.evaluation.protocol import Pair, hash_hole, read_regions
from showface.files import write_atomically


def plan_components(
    images: Sequence[Path],
    folder: Path,
    size: int = 256,
    *,
    image_set: str,
    labels: Mapping[Path, Path] | None = None,
) -> list[Pair]:
    """Give each image a hole for each component, and write the holes into a folder as PNGs, white = hole.

    Args:
        images: files of aligned faces.
        folder: for the masks; created if needed.
        size: side in pixels of the square images that are scored.
        image_set: name of the images in the results.
        labels: for each image, its label image (0-18, as `showface.data.REGIONS`), if it has one.

    Returns:
        `len(images) * len(COMPONENTS)` pairs, component after component. The bin of a pair is its component.
    """
    folder.mkdir(parents=True, exist_ok=True)
    regions = {}
    for path, label in (labels or {}).items():
        with suppress(OSError):  # `evaluate` reports what can't be read
            regions[path] = read_regions(label, path, size)
    pairs = []
    for component in COMPONENTS:
        for number, image in enumerate(images):
            hole = component_hole(component, size, regions.get(image))
            path = folder / f"{component.replace(' ', '-')}-{number:04d}.png"
            write_atomically(path, Image.fromarray(hole).save)
            ratio = float(hole.mean())
            pairs.append(
                Pair(image_set, image, path, hash_hole(hole), ratio, component, size, (labels or {}).get(image))
            )
    return pairs
