"""Detail from known patches for a fill that is smaller than the photo."""

import pytest
import torch
import torch.nn.functional as F

from showface.enlargement import enlarge_fill

SIZE = 32


def case(scale: int, texture: float) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """A smooth picture with stripes, the smooth picture at the small size, and a hole."""
    side = scale * SIZE
    y, x = torch.meshgrid(torch.arange(side) / side, torch.arange(side) / side, indexing="ij")
    smooth = 100 + 50 * torch.stack([x, y, x * y])
    hole = torch.zeros(1, side, side)
    hole[:, side // 4 : side // 2, side // 3 : side // 2 + 1] = 1
    stripes = torch.sin(x * side * torch.pi / scale)
    return F.avg_pool2d(smooth[None], scale)[0], smooth + texture * stripes, hole


def energy(image: torch.Tensor, hole: torch.Tensor) -> float:
    """The mean of squared differences of neighbours, in the hole."""
    steps = image.diff(dim=2, prepend=image[:, :, :1]).square()
    return steps[:, hole[0] > 0].mean().item()


@pytest.mark.parametrize("scale", [2, 3, 4])
def test_a_smooth_fill_gets_the_texture_of_the_photo(scale):
    fill, sharp, hole = case(scale, 10.0)
    out = enlarge_fill(fill, sharp, hole)
    assert out.shape == sharp.shape
    assert torch.equal(out[:, hole[0] == 0], sharp[:, hole[0] == 0])
    assert 0.15 < energy(out, hole) / energy(sharp, hole) < 1.3
    plain = F.interpolate(fill[None], scale_factor=scale, mode="bicubic", align_corners=False)[0]
    assert energy(plain, hole) < 0.02 * energy(sharp, hole)


def test_no_detail_where_the_photo_has_none():
    fill, sharp, hole = case(2, 0.0)
    plain = F.interpolate(fill[None], scale_factor=2, mode="bicubic", align_corners=False)[0]
    assert (enlarge_fill(fill, sharp, hole) - torch.where(hole > 0, plain, sharp)).abs().max() < 0.5


def test_what_lies_under_the_hole_does_not_matter():
    fill, sharp, hole = case(2, 10.0)
    assert torch.equal(
        enlarge_fill(fill, sharp, hole), enlarge_fill(fill, torch.where(hole > 0, torch.nan, sharp), hole)
    )


def test_nothing_known():
    fill, sharp, hole = case(2, 10.0)
    assert enlarge_fill(fill, sharp, torch.ones_like(hole)).isfinite().all()
