"""The perceptual, style and distribution losses."""

import pytest
import torch
from torch import nn

from showface.losses import LossWeights
from showface.training.feature_losses import (
    distribution_distance,
    feature_losses,
    gram_matrix,
    random_directions,
    texture_distance,
)
from showface.training.features import FrozenFeatures

ALL = LossWeights(perceptual=1.0, style=1.0, distribution=1.0)


class Scaled(nn.Module):
    """A stage that multiplies its input by a number, so that features can be computed by hand."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.factor * x


def by_hand() -> FrozenFeatures:
    """Features are 1 and 3 times the image."""
    return FrozenFeatures([Scaled(1.0), Scaled(3.0)], mean=(0.5,) * 3, std=(0.5,) * 3)


def losses_of(result: torch.Tensor, target: torch.Tensor, weights: LossWeights = ALL) -> dict[str, torch.Tensor]:
    """Losses of a full hole."""
    network = by_hand()
    return feature_losses(network(result), network(target), torch.ones_like(target[:, :1]), weights)


def test_images_of_different_shapes():
    with pytest.raises(ValueError, match="differ in shape"):
        losses_of(torch.zeros(1, 3, 32, 32), torch.zeros(2, 3, 32, 32))


def test_only_losses_with_a_weight_are_computed():
    images = torch.rand(2, 1, 3, 32, 32)
    for name in ("perceptual", "style", "distribution"):
        weights = LossWeights(**{name: 0.5})
        assert weights.compares_features
        assert list(losses_of(*images, weights)) == [name]
    assert not LossWeights(adversarial=1.0).compares_features


def test_gram_matrix_by_hand():
    x = torch.zeros(2, 3, 4, 5)
    x[0, 0], x[0, 1], x[1, 2] = 1.0, 2.0, 3.0
    expected = torch.zeros(2, 3, 3)
    expected[0, :2, :2] = torch.tensor([[1.0, 2.0], [2.0, 4.0]]) / 3
    expected[1, 2, 2] = 9 / 3
    torch.testing.assert_close(gram_matrix(x), expected)
    assert gram_matrix(torch.full((1, 2, 64, 64), 300.0, dtype=torch.float16))[0, 0, 1].item() == 45000.0
    with torch.autocast("cpu", dtype=torch.bfloat16):
        torch.testing.assert_close(gram_matrix(1.001 * x), 1.001**2 * expected)


def test_losses_by_hand():
    target = torch.full((2, 3, 32, 32), 0.5)
    losses = losses_of(torch.full_like(target, 0.75), target)
    assert losses["perceptual"].item() == pytest.approx((0.25 + 3 * 0.25) / 2)
    assert losses["style"].item() == pytest.approx((1 + 9) / 2 * (0.75**2 - 0.5**2) / 3)


def test_style_and_distribution_know_no_places():
    target = torch.rand(1, 3, 32, 32)
    losses = losses_of(target.flip(3), target)
    assert losses["perceptual"].item() > 0.1
    assert losses["style"].item() == pytest.approx(0.0, abs=1e-6)
    assert losses["distribution"].item() == pytest.approx(0.0, abs=1e-6)


def test_no_gradient_reaches_the_target():
    result, target = torch.rand(1, 3, 32, 32, requires_grad=True), torch.rand(1, 3, 32, 32, requires_grad=True)
    sum(losses_of(result, target).values()).backward()
    assert result.grad is not None
    assert target.grad is None


def listed_distance(result, target, hole, directions):
    """The distance of distributions by its definition, one image and one direction at a time; the hole is (B, h, w)."""
    distances = []
    for x, y, listed in zip(result, target, hole.bool(), strict=True):
        if listed.any():
            pairs = [[(z[:, listed].mT @ direction).sort().values for z in (x, y)] for direction in directions]
            distances.append(torch.stack([(a - b).abs().mean() for a, b in pairs]).mean())
    return torch.stack(distances).mean() if distances else torch.zeros((), dtype=result.dtype)


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_distribution_distance_is_its_definition(share):
    """Also with an empty hole, a full one, and one image of two without a hole."""
    result, target = torch.randn(2, 2, 5, 7, 9, dtype=torch.float64)
    directions = random_directions(result).double()
    hole = (torch.rand(2, 7, 9) < share).double()
    for given in (hole, hole * torch.tensor([0.0, 1.0])[:, None, None]):
        distance = distribution_distance(result, target, given[:, None], directions)
        torch.testing.assert_close(distance, listed_distance(result, target, given, directions))
    pooled = hole.repeat_interleave(4, 1).repeat_interleave(4, 2)[:, None]
    expected = distribution_distance(result, target, hole[:, None], directions)
    torch.testing.assert_close(distribution_distance(result, target, pooled, directions), expected)


def test_gradient_of_the_distribution_distance():
    result, target = torch.randn(2, 2, 3, 4, 5, dtype=torch.float64)
    hole = (torch.rand(2, 1, 4, 5) < 0.5).double()
    directions = random_directions(result).double()
    result = result.mT.contiguous().mT.requires_grad_()  # a strided view
    assert torch.autograd.gradcheck(lambda x: distribution_distance(x, target, hole, directions), result)
    distribution_distance(result, target, hole, directions).backward()
    assert (result.grad[(hole == 0).expand_as(result)] == 0).all()
    assert (result.grad[(hole == 1).expand_as(result)] != 0).any()


def test_known_features_may_be_anything():
    result, target = torch.randn(2, 1, 3, 4, 4)
    hole = torch.zeros(1, 1, 4, 4)
    hole[..., :2] = 1
    directions = random_directions(result)
    expected = distribution_distance(result, target, hole, directions)
    result[..., 2:] = torch.nan
    assert torch.equal(distribution_distance(result, target, hole, directions), expected)


def test_directions_have_norm_1():
    directions = random_directions(torch.zeros(1, 8, 2, 2))
    torch.testing.assert_close(directions.norm(dim=1), torch.ones(8))
    assert not torch.equal(directions, random_directions(torch.zeros(1, 8, 2, 2)))


class TestTexture:
    """The texture loss of random images of (2, 3, 24, 20)."""

    def test_of_a_weaker_pattern_is_what_it_lacks(self):
        target = torch.randn(2, 3, 24, 20)
        hole = torch.ones(2, 1, 24, 20)
        assert texture_distance(target, target, hole) == 0
        for share in (0.0, 0.25, 2.0):
            # Not exactly: a target's own detail counts as a little more than it is.
            assert texture_distance(share * target + 0.3, target, hole).item() == pytest.approx(
                abs(1 - share), rel=0.05
            )

    def test_knows_no_places(self):
        target, moved = torch.randn(1, 3, 64, 64), torch.randn(1, 3, 64, 64)
        assert texture_distance(moved, target, torch.ones(1, 1, 64, 64)) < 0.15

    def test_counts_images_and_the_hole_alone(self):
        target = torch.randn(2, 3, 24, 20)
        hole = torch.zeros(2, 1, 24, 20)
        assert texture_distance(0 * target, target, hole) == 0
        hole[0, :, 8:16, 8:16] = 1
        result = target.clone()
        result[0, :, 10:14, 10:14] = 0
        assert texture_distance(result, target, hole) > 0.05
        far = torch.where(torch.arange(20) < 4, 9.0, result)
        torch.manual_seed(1)
        expected = texture_distance(result, target, hole)
        torch.manual_seed(1)
        assert torch.equal(texture_distance(far, target, hole), expected)

    def test_gradient(self):
        result = torch.randn(1, 3, 24, 20, requires_grad=True)
        hole = torch.zeros(1, 1, 24, 20)
        hole[..., 8:16] = 1
        with torch.autocast("cpu", torch.bfloat16):
            distance = texture_distance(result, torch.randn(1, 3, 24, 20), hole)
        assert distance.dtype == torch.float32
        distance.backward()
        assert (result.grad[..., 8:16] != 0).any()
        assert (result.grad[..., :5] == 0).all()
