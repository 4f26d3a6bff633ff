"""Detail of large faces: three ways to bring a fill that was made at a small size to the size of the photo.

    python experiments/large_faces.py faces/ffhq --masks masks --size 256 --factors 2 4

The fill is made at SIZE / factor pixels. *enlarged* is the plain enlargement. *detail* is
`showface.enlargement.enlarge_fill`, which `showface.inpaint` uses: known patches that look alike lend their detail.
*refined again* runs the network's second stage once more, at twice the size of the fill, on the enlarged fill. *full
size* fills at SIZE itself: the best that is possible for a size that the network was trained at.

Scored, in the hole: PSNR; sharpness, the mean gradient as a share of the photo's; the distance of EfficientNet-Lite0's
features (needs the extra `train`), a substitute for LPIPS, whose weights are not bundled; and the seam, the mean
difference to the photo at the hole's outermost pixels, in % of the full range.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from statistics import fmean

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

import showface
from showface.data import find_images, image_to_tensor, mask_to_tensor, tensor_to_image
from showface.enlargement import enlarge_fill
from showface.evaluation import (
    hole_gradient_percent,
    markdown_table,
    plan,
    psnr,
    read_hole,
    read_target,
    seam_l1_percent,
)
from showface.models import MDRNets
from showface.training.features import FrozenFeatures, frozen_features

Method = Callable[[MDRNets, Tensor, Tensor, int], Tensor]


def small_fill(model: MDRNets, photo: Tensor, hole: Tensor, factor: int) -> Tensor:
    """The fill at 1 / factor of the size. A small pixel belongs to the hole if any part of it does."""
    return model(F.avg_pool2d(photo, factor), F.max_pool2d(hole, factor)).image


def enlarged(model: MDRNets, photo: Tensor, hole: Tensor, factor: int) -> Tensor:
    fill = small_fill(model, photo, hole, factor)
    return F.interpolate(fill, scale_factor=factor, mode="bicubic", align_corners=False)


def detail(model: MDRNets, photo: Tensor, hole: Tensor, factor: int) -> Tensor:
    fill = small_fill(model, photo, hole, factor)
    return enlarge_fill((fill[0] + 1) * 127.5, (photo[0] + 1) * 127.5, hole[0])[None] / 127.5 - 1


def refined_again(model: MDRNets, photo: Tensor, hole: Tensor, factor: int) -> Tensor:
    """The second stage with the enlarged fill in the place of the coarse image."""
    fill = small_fill(model, photo, hole, factor)
    while factor > 1:
        factor //= 2
        fill = F.interpolate(fill, scale_factor=2, mode="bicubic", align_corners=False)
        known, cover = F.avg_pool2d(photo, factor), F.max_pool2d(hole, factor)
        coarse = torch.where(cover > 0, fill, known)
        _, parsing = model.coarse(coarse, cover)
        assert model.encoder is not None
        assert model.refinement is not None
        enhanced = model._enhance(model.encoder(coarse, cover), parsing.softmax(1), cover)
        fill = torch.where(cover > 0, model.refinement(coarse, cover, enhanced), known)
    return fill


METHODS: dict[str, Method] = {"enlarged": enlarged, "detail": detail, "refined again": refined_again}


def feature_distance(features: FrozenFeatures, one: Tensor, other: Tensor) -> float:
    """The mean squared distance of unit features, summed over stages, as LPIPS without its learned weights."""
    total = 0.0
    for a, b in zip(features(one), features(other), strict=True):
        total += float((F.normalize(a, dim=1) - F.normalize(b, dim=1)).square().sum(1).mean())
    return total


@torch.inference_mode()
def run(folder: Path, masks: Path, size: int, factors: list[int], count: int) -> str:
    """A markdown table: the means over `count` faces and hole ratios of 20-40 and 40-60%."""
    model, features = showface.load_model(), frozen_features("efficientnet-lite0")
    assert isinstance(model, MDRNets)
    scores: dict[tuple[str, str], list[tuple[float, ...]]] = {}
    pairs = plan(find_images(folder)[:count], find_images(masks), size, [(0.2, 0.4), (0.4, 0.6)])
    for pair in pairs:
        truth, cover = read_target(pair.image, size), read_hole(pair.mask, size)
        photo, hole = image_to_tensor(Image.fromarray(truth))[None], mask_to_tensor(cover)[None]
        ways = [(1, "full size", enlarged), *((k, name, way) for k in factors for name, way in METHODS.items())]
        for factor, name, way in ways:
            start = time.perf_counter()
            image = torch.where(hole > 0, way(model, photo, hole, factor), photo)
            seconds = time.perf_counter() - start
            result = np.asarray(tensor_to_image(image))
            scores.setdefault((f"{size // factor}", name), []).append(
                (
                    psnr(result[cover][None], truth[cover][None]),
                    hole_gradient_percent(result, cover) / hole_gradient_percent(truth, cover),
                    feature_distance(features, image, photo),
                    seam_l1_percent(result, truth, cover),
                    seconds,
                )
            )
    lines = []
    for key, values in scores.items():
        means = [fmean(column) for column in zip(*values, strict=True)]
        lines.append(
            [*key, *(f"{x:{form}}" for x, form in zip(means, (".2f", ".0%", ".3f", ".2f", ".2f"), strict=True))]
        )
    return markdown_table(["filled at", "then", "PSNR", "sharpness", "features", "seam, %", "s"], lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    add = parser.add_argument
    add("images", type=Path, metavar="FACES_FOLDER", help="folder of aligned faces")
    add("--masks", type=Path, required=True, help="folder of masks, white = hole")
    add("--size", type=int, default=256, help="side of the photos; best the faces' own (default 256)")
    add(
        "--factors", type=int, nargs="+", default=[2, 4], help="how much smaller the fill is: powers of 2 (default 2 4)"
    )
    add("--count", type=int, default=30, help="number of faces (default 30)")
    arguments = parser.parse_args()
    print(run(arguments.images, arguments.masks, arguments.size, arguments.factors, arguments.count), end="")


if __name__ == "__main__":
    main()
