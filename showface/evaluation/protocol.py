"""The evaluation protocol: which image gets which hole, and how systems are run and scored.

`plan` pairs images with masks, and `evaluate` scores systems on the pairs. The same files, size and seed give the same
pairs on every machine, so all systems are compared on the same holes. A system gets an image with a blanked hole, and
only the *composite* is scored: known pixels are always taken from the input.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps

from showface.data import UnreadableImageError, read_image, read_labels, read_mask, resize_and_crop
from showface.data.regions import region_indices
from showface.evaluation.eyes import eye_likeness, hides_an_eye
from showface.evaluation.identity import IdentityDistance
from showface.evaluation.metrics import (
    hole_gradient_percent,
    hole_l1_percent,
    l1_percent,
    psnr,
    region_l1_percent,
    seam_l1_percent,
    ssim,
)
from showface.evaluation.perceptual import LPIPS, FrechetDistances
from showface.files import printable

Bin: TypeAlias = tuple[float, float]
FillHole: TypeAlias = Callable[[npt.NDArray[np.uint8], npt.NDArray[np.bool_]], npt.NDArray[np.uint8]]
"""Fills the hole of an image: `(H, W, 3)` uint8 and `(H, W)` bool (True = corrupted) -> `(H, W, 3)` uint8."""

BINS: tuple[Bin, ...] = ((0.01, 0.20), (0.20, 0.40), (0.40, 0.60))
"""Ranges of hole ratios. A range excludes its first number and includes its second."""
FINE_BINS: tuple[Bin, ...] = ((0.01, 0.1), (0.1, 0.2), (0.2, 0.3), (0.3, 0.4), (0.4, 0.5), (0.5, 0.6))
"""The same range in six bins."""

_BLANK = 127


@dataclass(frozen=True)
class Pair:
    """An image and its mask.

    Attributes:
        image_set: name of the image's set, in the results.
        mask_sha256: hash of the hole as it is used, not of the mask file.
        ratio: hole ratio.
        bin: the range of hole ratios, or the component that the hole hides.
        labels: label image with the photo's regions, for errors by region; or None.
    """

    image_set: str
    image: Path
    mask: Path
    mask_sha256: str
    ratio: float
    bin: Bin | str
    size: int
    labels: Path | None = None

    def record(self) -> dict[str, str | int | float]:
        """The pair's line in a manifest. It has file names without folders, so it is the same on every machine."""
        return {
            "image_set": self.image_set,
            "image": printable(self.image.name),
            "mask": printable(self.mask.name),
            "mask_sha256": self.mask_sha256,
            "ratio": self.ratio,
            "bin": bin_label(self.bin),
            "size": self.size,
        }


@dataclass(frozen=True)
class Score:
    """The score of one system on one pair.

    Attributes:
        hole_gradient_percent, target_gradient_percent: `hole_gradient_percent` of the result and of the target.
        altered_known: number of known pixels that the system changed.
        lpips, identity: None if not measured.
        eye_likeness, target_eye_likeness: `eye_likeness` of the result and of the target; None if no eye is hidden.
        regions: for each region in the hole, the L1 error as a percentage and the number of pixels; empty if the
            regions are unknown.
    """

    system: str
    image_set: str
    image: str
    mask: str
    bin: str
    ratio: float
    l1_percent: float
    hole_l1_percent: float
    seam_l1_percent: float
    psnr: float
    ssim: float
    hole_gradient_percent: float
    target_gradient_percent: float
    altered_known: int
    lpips: float | None = None
    identity: float | None = None
    eye_likeness: float | None = None
    target_eye_likeness: float | None = None
    regions: dict[int, tuple[float, int]] = field(default_factory=dict)


def bin_label(bounds: Bin | str) -> str:
    """The name of a bin: `(0.01, 0.2)` is `"1-20%"`. A component is its own name."""
    if isinstance(bounds, str):
        return bounds
    return f"{bounds[0] * 100:g}-{bounds[1] * 100:g}%"


def read_regions(path: Path, image: Path, size: int) -> npt.NDArray[np.int64]:
    """Read the label image of an image file, and crop and resize it as `read_target` does the image.

    Returns `(size, size)`, the index of each pixel's region in `showface.data.REGIONS`, negative where unknown. Raises
    UnreadableImageError, as for a file that is no image, if the labels are of another mode or do not fit the image.
    """
    size_of_image = read_image(image).size
    try:
        labels = read_labels(path, size_of_image)
    except ValueError as error:
        raise UnreadableImageError(f"cannot use the labels {path}: {error}") from error
    return region_indices(np.asarray(ImageOps.fit(labels, (size, size), Image.Resampling.NEAREST)))


def read_target(path: str | Path, size: int) -> npt.NDArray[np.uint8]:
    """Read an image as `showface.data.read_image`, crop it to a square and resize it: `(size, size, 3)` uint8."""
    image = read_image(path)
    if image.size != (size, size):
        image = resize_and_crop(image, size)
    return np.array(image, dtype=np.uint8)


def read_hole(path: str | Path, size: int) -> npt.NDArray[np.bool_]:
    """Read a mask as `showface.data.read_mask`, crop it to a square and resize it to the nearest pixel.

    Returns `(size, size)` bool, True = hole = white.
    """
    hole = read_mask(path)
    if hole.shape == (size, size):
        return hole
    mask = ImageOps.fit(Image.fromarray(hole.astype(np.uint8)), (size, size), Image.Resampling.NEAREST)
    return np.asarray(mask) > 0


def plan(
    images: Sequence[Path],
    masks: Sequence[Path],
    size: int = 256,
    bins: Sequence[Bin] = BINS,
    seed: int = 0,
    *,
    image_set: str | None = None,
    labels: Mapping[Path, Path] | None = None,
) -> list[Pair]:
    """Give each image one mask in each bin.

    The masks of a bin are shuffled with the seed and assigned in turn. So all masks are used before one is used twice,
    and an image keeps its masks when more images follow it. The hole ratio is measured on the resized mask. Masks
    outside all bins are left out.

    Args:
        images: image files. In each bin, image i gets mask i.
        masks: mask files, white = hole; their order doesn't matter.
        size: side in pixels of the square images that are scored.
        bins: ranges of hole ratios. A range excludes its first number and includes its second.
        seed: seed of the order of masks.
        image_set: name of the images in the results; by default the name of the first image's folder.
        labels: for each image, its label image (0-18, as `showface.data.REGIONS`), for errors by region.

    Returns:
        `len(images) * len(bins)` pairs, bin after bin.

    Raises:
        ValueError: no image, a bad size or bin, or a bin without a mask.
    """
    if not images:
        raise ValueError("there are no images to pair with masks")
    if size < 1:
        raise ValueError(f"size must be positive, got {size}")
    for low, high in bins:
        if not 0 <= low < high <= 1:
            raise ValueError(f"a bin must satisfy 0 <= low < high <= 1, got ({low}, {high})")
    name = image_set if image_set is not None else Path(images[0]).resolve().parent.name

    # Sort by hash, since random generators may change between library versions.
    def order(mask: Path) -> tuple[bytes, Path]:
        return hashlib.sha256(f"{seed}/{mask.name}".encode()).digest(), mask

    holes = []
    for mask in sorted(map(Path, masks), key=order):
        hole = read_hole(mask, size)
        holes.append((mask, float(hole.mean()), hash_hole(hole)))

    pairs = []
    for bounds in bins:
        chosen = [entry for entry in holes if bounds[0] < entry[1] <= bounds[1]]
        if not chosen:
            found = f"{min(h[1] for h in holes):.3f} to {max(h[1] for h in holes):.3f}" if holes else "none"
            raise ValueError(
                f"no mask has a hole ratio in {bin_label(bounds)} (ratios found: {found}); white (255) must mean hole"
            )
        for i, image in enumerate(images):
            mask, ratio, digest = chosen[i % len(chosen)]
            pairs.append(Pair(name, Path(image), mask, digest, ratio, bounds, size, (labels or {}).get(Path(image))))
    return pairs


def complete(fill: FillHole, pair: Pair) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint8], int]:
    """Fill the hole of a pair.

    Returns:
        The target and the composite, both `(size, size, 3)` uint8, and the number of known pixels that `fill`
        changed. In the composite, known pixels are taken from the target.

    Raises:
        ValueError: the mask file has changed since `plan`, or the result has another shape or dtype.
    """
    target, hole, _ = _load(pair)
    return target, *_run(fill, pair, target, hole)


def evaluate(
    systems: Mapping[str, FillHole],
    pairs: Sequence[Pair],
    *,
    lpips: LPIPS | None = None,
    identity: IdentityDistance | None = None,
    frechet: FrechetDistances | None = None,
    aligned: bool = False,
    progress: Callable[[int, int], None] | None = None,
    on_failure: Callable[[Pair, str], object] | None = None,
) -> list[Score]:
    """Score every system on every pair.

    Args:
        systems: the function of each system, by name. It may modify its arguments.
        pairs: from `plan`.
        lpips: if given, measures the perceptual distance of each composite.
        identity: if given, measures the distance of the face in each composite. The faces must be aligned.
        frechet: if given, collects composites and targets by system, image set and bin.
        aligned: the faces are aligned; measures how alike the eyes are where the hole hides one.
        progress: called after each pair with the number of finished pairs and the total.
        on_failure: called with each pair whose photo or labels can't be used, and the reason; the pair is left out.
            By default, such a pair raises.

    Returns:
        `len(pairs) * len(systems)` scores, pair by pair, less those left out.

    Raises:
        ValueError: no systems, a mask file that has changed since `plan`, or a result of another shape or dtype.
        OSError: a mask, or without `on_failure` a photo or its labels, can't be used.
    """
    if not systems:
        raise ValueError("there are no systems to evaluate")
    scores = []
    for done, pair in enumerate(pairs, start=1):
        try:
            target, hole, labels = _load(pair)
        except (OSError, MemoryError) as error:
            if on_failure is None:
                raise
            on_failure(pair, str(error) or type(error).__name__)
            continue
        eyes = eye_likeness(target) if aligned and hides_an_eye(hole) else None
        for name, fill in systems.items():
            try:
                composite, altered = _run(fill, pair, target, hole)
            except ValueError as error:
                raise ValueError(f"{name}: {error}") from error
            if frechet is not None:
                frechet.add((name, pair.image_set, bin_label(pair.bin)), composite, target)
            scores.append(
                Score(
                    system=name,
                    image_set=pair.image_set,
                    image=printable(pair.image.name),
                    mask=printable(pair.mask.name),
                    bin=bin_label(pair.bin),
                    ratio=pair.ratio,
                    l1_percent=l1_percent(composite, target),
                    hole_l1_percent=hole_l1_percent(composite, target, hole),
                    seam_l1_percent=seam_l1_percent(composite, target, hole),
                    psnr=psnr(composite, target),
                    ssim=ssim(composite, target),
                    hole_gradient_percent=hole_gradient_percent(composite, hole),
                    target_gradient_percent=hole_gradient_percent(target, hole),
                    altered_known=altered,
                    lpips=None if lpips is None else lpips(composite, target),
                    identity=None if identity is None else identity(composite, target),
                    eye_likeness=None if eyes is None else eye_likeness(composite),
                    target_eye_likeness=eyes,
                    regions={} if labels is None else region_l1_percent(composite, target, hole, labels),
                )
            )
        if progress is not None:
            progress(done, len(pairs))
    return scores


def _load(pair: Pair) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.bool_], npt.NDArray[np.int64] | None]:
    """The target (size, size, 3), the hole (size, size), and the region indices (size, size) or None."""
    hole = read_hole(pair.mask, pair.size)
    if hash_hole(hole) != pair.mask_sha256:
        raise ValueError(f"{pair.mask.name} isn't the mask that was planned: its hash differs")
    regions = None if pair.labels is None else read_regions(pair.labels, pair.image, pair.size)
    return read_target(pair.image, pair.size), hole, regions


def _run(
    fill: FillHole, pair: Pair, target: npt.NDArray[np.uint8], hole: npt.NDArray[np.bool_]
) -> tuple[npt.NDArray[np.uint8], int]:
    known = ~hole
    # The hole is blanked, so that no system can see the pixels that it must restore.
    blanked = target.copy()
    blanked[hole] = _BLANK
    result = np.asarray(fill(blanked, hole.copy()))
    if result.shape != target.shape or result.dtype != np.uint8:
        raise ValueError(
            f"the result for {pair.image.name} must be uint8 of shape {target.shape}, got {result.dtype} {result.shape}"
        )
    altered = int((result[known] != target[known]).any(axis=1).sum())
    return np.where(hole[..., None], result, target), altered


def hash_hole(hole: npt.NDArray[np.bool_]) -> str:
    """The hash of a hole, as in a manifest."""
    return hashlib.sha256(f"{hole.shape}".encode() + np.packbits(hole).tobytes()).hexdigest()
