"""The evaluation protocol: which image gets which hole, and how systems are run and scored on them.

`plan` pairs images with masks, `evaluate` scores systems on the pairs. The same files, size and seed give the
same pairs on every machine, so that two systems are always compared on the same holes. Each system sees an
image whose hole has been blanked, and only the *composite* is scored: known pixels come from the input,
whatever the system returned.
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

from showface.data import REGIONS, read_image, read_mask, resize_and_crop
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

__all__ = [
    "BINS",
    "FINE_BINS",
    "Pair",
    "Score",
    "System",
    "bin_label",
    "complete",
    "evaluate",
    "plan",
    "read_hole",
    "read_labels",
    "read_target",
]

Bin: TypeAlias = tuple[float, float]
System: TypeAlias = Callable[[npt.NDArray[np.uint8], npt.NDArray[np.bool_]], npt.NDArray[np.uint8]]
"""Takes an image `(H, W, 3)` uint8 and a hole `(H, W)` bool (True = corrupted), returns `(H, W, 3)` uint8."""

BINS: tuple[Bin, ...] = ((0.01, 0.20), (0.20, 0.40), (0.40, 0.60))
"""Hole ratios: above the first number, up to and with the second."""
FINE_BINS: tuple[Bin, ...] = ((0.01, 0.1), (0.1, 0.2), (0.2, 0.3), (0.3, 0.4), (0.4, 0.5), (0.5, 0.6))

_BLANK = 127


@dataclass(frozen=True)
class Pair:
    """An image and the hole it is scored with; `mask_sha256` is of the hole as used, not of its file.

    `labels` is a PNG of the image's regions, for errors by region, or None.
    """

    image_set: str
    image: Path
    mask: Path
    mask_sha256: str
    ratio: float
    bin: Bin
    size: int
    labels: Path | None = None

    def record(self) -> dict[str, str | int | float]:
        """What a manifest says of the pair: names without folders, so that machines agree on it."""
        return {
            "image_set": self.image_set,
            "image": self.image.name,
            "mask": self.mask.name,
            "mask_sha256": self.mask_sha256,
            "ratio": self.ratio,
            "bin": bin_label(self.bin),
            "size": self.size,
        }


@dataclass(frozen=True)
class Score:
    """One system's result on one pair.

    `hole_gradient_percent` is the result's, `target_gradient_percent` the target's in the same hole. `altered_known`
    counts known pixels that the system had changed. `lpips` is None where it was not asked for. `regions` holds the
    hole's L1 in percent and its pixels by region, where these are known.
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
    regions: dict[int, tuple[float, int]] = field(default_factory=dict)


def bin_label(bounds: Bin) -> str:
    """The name of a bin: `(0.01, 0.2)` is `"1-20%"`."""
    return f"{bounds[0] * 100:g}-{bounds[1] * 100:g}%"


def read_target(path: str | Path, size: int) -> npt.NDArray[np.uint8]:
    """Read an image as `(size, size, 3)` uint8: as `showface.data.read_image`, cropped to a square and resized."""
    image = read_image(path)
    if image.size != (size, size):
        image = resize_and_crop(image, size)
    return np.array(image, dtype=np.uint8)


def read_hole(path: str | Path, size: int) -> npt.NDArray[np.bool_]:
    """Read a mask as `(size, size)` bool, True = hole = white: as `showface.data.read_mask`, cropped to a square and
    resized to the nearest pixel.
    """
    hole = read_mask(path)
    if hole.shape == (size, size):
        return hole
    mask = ImageOps.fit(Image.fromarray(hole.astype(np.uint8)), (size, size), Image.Resampling.NEAREST)
    return np.asarray(mask) > 0


def read_labels(path: str | Path, size: int) -> npt.NDArray[np.int64]:
    """Read a PNG of regions as `(size, size)` int64, -1 where unknown, cropped to a square and resized to the nearest
    pixel.
    """
    with Image.open(path) as labels:
        fitted = ImageOps.fit(labels, (size, size), Image.Resampling.NEAREST)
    regions = np.array(fitted, dtype=np.int64)
    return np.where(regions < len(REGIONS), regions, -1)


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

    The masks of a bin are shuffled by the seed and dealt out in turn, so all of them are used before any is
    used twice, and the first images get the same masks however many follow. The hole ratio is measured on the
    mask as it will be used; a mask that falls in no bin is left out.

    Args:
        images: image files, of which number i gets the bin's i-th mask.
        masks: mask files, white = hole; their order doesn't matter.
        size: side of the square at which images are scored, in pixels.
        bins: hole ratios, each above its first number and up to its second.
        seed: another seed deals the masks out in another order.
        image_set: the images' name in the results; by default that of the first one's folder.
        labels: by image, the PNG of its regions (0-18, as `showface.data.REGIONS`), for errors by region.

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

    # An order by hash rather than a random generator's: generators may change between library versions.
    def order(mask: Path) -> tuple[bytes, Path]:
        return hashlib.sha256(f"{seed}/{mask.name}".encode()).digest(), mask

    holes = []
    for mask in sorted(map(Path, masks), key=order):
        hole = read_hole(mask, size)
        holes.append((mask, float(hole.mean()), _hash(hole)))

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


def complete(system: System, pair: Pair) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint8], int]:
    """Run a system on a pair.

    Returns:
        The target and the composite, both `(size, size, 3)` uint8, and the number of known pixels that the
        system had changed; in the composite they are as in the target.

    Raises:
        ValueError: the mask is no longer the one that was planned, or the result has another shape or dtype.
    """
    target, hole = _load(pair)
    return target, *_run(system, pair, target, hole)


def evaluate(
    systems: Mapping[str, System],
    pairs: Sequence[Pair],
    *,
    lpips: LPIPS | None = None,
    frechet: FrechetDistances | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> list[Score]:
    """Score every system on every pair.

    Args:
        systems: callables by name, see `System`. What they get is theirs to change.
        pairs: from `plan`.
        lpips: measures each composite's perceptual distance too.
        frechet: collects the composites and targets, by system, image set and bin.
        progress: called after each pair with the number done and the number of all.

    Returns:
        `len(pairs) * len(systems)` scores, pair after pair.

    Raises:
        ValueError: no systems, a mask that isn't the planned one, or a result of another shape or dtype.
    """
    if not systems:
        raise ValueError("there are no systems to evaluate")
    scores = []
    for done, pair in enumerate(pairs, start=1):
        target, hole = _load(pair)
        labels = read_labels(pair.labels, pair.size) if pair.labels else None
        for name, system in systems.items():
            try:
                composite, altered = _run(system, pair, target, hole)
            except ValueError as error:
                raise ValueError(f"{name}: {error}") from error
            if frechet is not None:
                frechet.add((name, pair.image_set, bin_label(pair.bin)), composite, target)
            scores.append(
                Score(
                    system=name,
                    image_set=pair.image_set,
                    image=pair.image.name,
                    mask=pair.mask.name,
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
                    regions={} if labels is None else region_l1_percent(composite, target, hole, labels),
                )
            )
        if progress is not None:
            progress(done, len(pairs))
    return scores


def _load(pair: Pair) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.bool_]]:
    hole = read_hole(pair.mask, pair.size)
    if _hash(hole) != pair.mask_sha256:
        raise ValueError(f"{pair.mask.name} isn't the mask that was planned: its hash differs")
    return read_target(pair.image, pair.size), hole


def _run(
    system: System, pair: Pair, target: npt.NDArray[np.uint8], hole: npt.NDArray[np.bool_]
) -> tuple[npt.NDArray[np.uint8], int]:
    known = ~hole
    # Blanked, so that no system can look at what it is to restore.
    blanked = target.copy()
    blanked[hole] = _BLANK
    result = np.asarray(system(blanked, hole.copy()))
    if result.shape != target.shape or result.dtype != np.uint8:
        raise ValueError(
            f"the result for {pair.image.name} must be uint8 of shape {target.shape}, got {result.dtype} {result.shape}"
        )
    altered = int((result[known] != target[known]).any(axis=1).sum())
    return np.where(hole[..., None], result, target), altered


def _hash(hole: npt.NDArray[np.bool_]) -> str:
    return hashlib.sha256(f"{hole.shape}".encode() + np.packbits(hole).tobytes()).hexdigest()
