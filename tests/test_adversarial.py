"""The discriminator, the hinge GAN losses, feature matching and the gradient penalty."""

from copy import deepcopy

import pytest
import torch

from showface.models.discriminator import FeatureDiscriminator, MultiScaleDiscriminator, PatchDiscriminator
from showface.training.gan import discriminator_loss, feature_matching, generator_loss, gradient_penalty


def a_case(height=64, width=64):
    hole = torch.zeros(2, 1, height, width)
    hole[:, :, 8:20, 4:16] = 1
    return 2 * torch.rand(2, 3, height, width) - 1, hole


def weights_of(discriminator):
    return [conv.weight.detach().flatten(1) for conv in (*discriminator.convs, discriminator.logits)]


@pytest.mark.parametrize(
    ("layers", "size", "logits"),
    [(4, (64, 64), (4, 4)), (4, (33, 65), (3, 5)), (2, (33, 50), (9, 13)), (6, (32, 32), (1, 1))],
)
def test_shapes(layers, size, logits):
    image, hole = a_case(*size)
    assert PatchDiscriminator(channels=4, layers=layers)(image, hole).shape == (2, 1, *logits)


def test_widths():
    widths = [conv.weight.shape[:2] for conv in PatchDiscriminator(channels=8, layers=5).convs]
    assert widths == [(8, 4), (16, 8), (32, 16), (32, 32), (32, 32)]


def test_a_logit_sees_93_pixels():
    image, hole = torch.rand(1, 3, 160, 160, requires_grad=True), torch.zeros(1, 1, 160, 160)
    PatchDiscriminator(channels=4)(image, hole)[0, 0, 5, 5].backward()
    seen = image.grad[0].abs().sum(0).nonzero()
    assert (seen.amax(0) - seen.amin(0) + 1).tolist() == [93, 93]


def test_spectral_norms_are_one_after_some_steps():
    discriminator = PatchDiscriminator(channels=8)
    with torch.no_grad():
        for parameter in discriminator.parameters():
            parameter.mul_(30)
        for _ in range(50):
            discriminator(*a_case(32, 32))
    for weight in weights_of(discriminator):
        assert torch.linalg.svdvals(weight)[0].item() == pytest.approx(1, abs=0.03)


def test_only_training_moves_the_estimates():
    discriminator = PatchDiscriminator(channels=4)
    before = weights_of(discriminator.eval())
    discriminator(*a_case())
    torch.testing.assert_close(weights_of(discriminator), before, rtol=0, atol=0)
    discriminator.train()(*a_case())
    assert any(not torch.equal(x, y) for x, y in zip(weights_of(discriminator.eval()), before, strict=True))


def test_the_hole_is_seen():
    discriminator = PatchDiscriminator(channels=4).eval()
    image, hole = a_case()
    assert not torch.equal(discriminator(image, hole), discriminator(image, 1 - hole))


def test_gradients_of_both_sides():
    discriminator = PatchDiscriminator(channels=4)
    image, hole = a_case()
    fake = torch.rand_like(image).requires_grad_()
    discriminator_loss([discriminator(image, hole)], [discriminator(fake.detach(), hole)], hole).backward()
    assert all(parameter.grad.isfinite().all() for parameter in discriminator.parameters())
    assert all((parameter.grad != 0).any() for parameter in discriminator.convs.parameters())
    assert fake.grad is None
    discriminator.zero_grad()
    discriminator.requires_grad_(False)  # as in the generator's step
    generator_loss([discriminator(fake, hole)], torch.ones_like(hole)).backward()
    assert (fake.grad != 0).float().mean() > 0.9
    assert all(parameter.grad is None for parameter in discriminator.parameters())


def test_without_normalisation_the_weights_are_plain_parameters():
    discriminator = PatchDiscriminator(channels=4, normalise=False)
    assert {name.rpartition(".")[2] for name in discriminator.state_dict()} == {"weight", "bias"}


def test_gradient_penalty_of_a_linear_discriminator():
    """Its logits are the image's first channel times `scale`: the gradient has `scale` at each pixel that counts."""

    class Linear(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.scale = torch.nn.Parameter(torch.tensor(3.0))

        def forward(self, image, hole):
            return [self.scale * image[:, :1], self.scale * image[:, 1:2]]

    discriminator = Linear()
    image, hole = a_case()
    penalty = gradient_penalty(discriminator, image, hole)
    # Half of `scale` in each of two channels, since the mean over two scales is taken; 144 pixels of each image.
    assert penalty.item() == pytest.approx(2 * 144 * 1.5**2)
    penalty.backward()
    assert discriminator.scale.grad.item() == pytest.approx(2 * 144 * 1.5**2 * 2 / 3)


def test_gradient_penalty_of_an_empty_hole_is_zero():
    image, hole = a_case()
    assert gradient_penalty(MultiScaleDiscriminator(4, normalise=False), image, 0 * hole).item() == 0


def test_gradient_penalty_makes_a_discriminator_flatter():
    discriminator = MultiScaleDiscriminator(channels=4, layers=2, scales=2, normalise=False)
    optimizer = torch.optim.Adam(discriminator.parameters(), 1e-3)
    penalties = []
    for _ in range(20):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            penalty = gradient_penalty(discriminator, *a_case())
        optimizer.zero_grad()
        penalty.backward()
        optimizer.step()
        penalties.append(penalty.item())
    assert penalty.dtype == torch.float32
    assert 0 < penalties[-1] < 0.5 * penalties[0]


class Frozen(torch.nn.Module):
    """Two feature maps of an image, with 2 and 40 channels at strides 2 and 4."""

    def __init__(self):
        super().__init__()
        self.register_buffer("weight", torch.randn(42, 3, 1, 1), persistent=False)

    def forward(self, image):
        half, quarter = (torch.nn.functional.avg_pool2d(image, size) for size in (2, 4))
        first, second = self.weight.split([2, 40])
        return [torch.nn.functional.conv2d(half, first), torch.nn.functional.conv2d(quarter, second)]


def test_heads_on_feature_maps():
    discriminator = FeatureDiscriminator(Frozen(), channels=8)
    image, hole = a_case(64, 96)
    features = discriminator.features(image, hole)
    assert [[x.shape[1:] for x in one] for one in features] == [
        [(4, 32, 48), (4, 32, 48), (1, 32, 48)],
        [(8, 16, 24), (8, 16, 24), (1, 16, 24)],
    ]
    logits = discriminator.eval()(image, hole)
    assert not torch.equal(logits[0], discriminator(image, 1 - hole)[0])
    assert not any(name.startswith("network") for name in discriminator.state_dict())
    assert all(name.startswith("heads") for name, _ in discriminator.named_parameters())
    fake = image.clone().requires_grad_()
    generator_loss(discriminator(fake, hole), hole).backward()
    assert (fake.grad != 0).any()
    with pytest.raises(ValueError, match="at least one channel"):
        FeatureDiscriminator(Frozen(), channels=0)


def test_the_two_play_against_each_other():
    """After a few steps it tells dark from bright images, and its gradient makes a dark image brighter."""
    discriminator = PatchDiscriminator(channels=8, layers=3)
    hole = torch.ones(2, 1, 32, 32)
    real, fake = torch.full((2, 3, 32, 32), 0.5), torch.full((2, 3, 32, 32), -0.5, requires_grad=True)
    optimizer = torch.optim.Adam(discriminator.parameters(), 1e-3)
    losses = []
    for _ in range(40):
        loss = discriminator_loss([discriminator(real, hole)], [discriminator(fake.detach(), hole)], hole)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]
    (gradient,) = torch.autograd.grad(generator_loss([discriminator(fake, hole)], hole), fake)
    assert gradient.sum() < 0


def test_autocast_gives_float32_losses():
    discriminator = PatchDiscriminator(channels=4)
    image, hole = a_case()
    exact = deepcopy(discriminator)(image, hole)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits = discriminator(image, hole)
        losses = discriminator_loss([logits], [-logits], hole), generator_loss([logits], hole)
    assert logits.dtype == torch.bfloat16
    torch.testing.assert_close(logits.float(), exact, rtol=0.05, atol=0.02)
    for loss in losses:
        assert loss.dtype == torch.float32
        assert loss.shape == ()
    sum(losses).backward()
    assert all(parameter.grad.dtype == torch.float32 for parameter in discriminator.parameters())


def test_autocast_estimates_spectral_norms_in_float32(device):
    discriminator = PatchDiscriminator(channels=4).to(device)
    image, hole = (x.to(device) for x in a_case())
    exact = deepcopy(discriminator)
    exact(image, hole)
    with torch.autocast(device, dtype=torch.bfloat16):
        discriminator(image, hole)
    torch.testing.assert_close(weights_of(discriminator.eval()), weights_of(exact.eval()))


def test_bad_input():
    discriminator = PatchDiscriminator(channels=4)
    image, hole = a_case()
    for bad in ((image, hole[:1]), (image, hole[..., 1:]), (image[:, :1], hole), (image[0], hole[0])):
        with pytest.raises(ValueError, match="holes"):
            discriminator(*bad)
    with pytest.raises(ValueError, match="at least 32"):
        discriminator(image[..., :31], hole[..., :31])
    for sizes in ({"channels": 0}, {"layers": 0}):
        with pytest.raises(ValueError, match="at least one"):
            PatchDiscriminator(**sizes)


def test_each_scale_sees_half_the_size():
    discriminator = MultiScaleDiscriminator(channels=4, layers=2, scales=2)
    image, hole = a_case(64, 96)
    fine, coarse = discriminator(image, hole)
    assert (fine.shape, coarse.shape) == ((2, 1, 16, 24), (2, 1, 8, 12))
    # A pattern that the halving averages out leaves the coarse scale as it was.
    checkerboard = (torch.arange(64)[:, None] + torch.arange(96)) % 2 - 0.5
    other_fine, other_coarse = discriminator.eval()(image + checkerboard, hole)
    fine, coarse = discriminator(image, hole)
    torch.testing.assert_close(other_coarse, coarse)
    assert (other_fine - fine).abs().max() > 1e-3
    with pytest.raises(ValueError, match="at least 32"):
        discriminator(image[..., :48, :48], hole[..., :48, :48])
    with pytest.raises(ValueError, match="at least one scale"):
        MultiScaleDiscriminator(scales=0)


def test_losses_are_means_over_scales():
    coarse, fine = torch.full((1, 1, 2, 2), 0.5), torch.full((1, 1, 4, 4), -0.5)
    hole = torch.ones(1, 1, 8, 8)
    assert generator_loss([fine, coarse], hole).item() == 0
    assert discriminator_loss([fine, coarse], [fine, coarse], hole).item() == (1.5 + 0.5 + 0.5 + 1.5) / 2


def test_the_last_features_are_the_logits():
    discriminator = MultiScaleDiscriminator(channels=4, layers=2, scales=2).eval()
    image, hole = a_case()
    features = discriminator.features(image, hole)
    assert [[tuple(x.shape[1:]) for x in scale] for scale in features] == [
        [(4, 32, 32), (8, 16, 16), (1, 16, 16)],
        [(4, 16, 16), (8, 8, 8), (1, 8, 8)],
    ]
    for scale, logits in zip(features, discriminator(image, hole), strict=True):
        assert torch.equal(scale[-1], logits)


def test_maps_that_are_known_already_give_the_same_logits():
    image, hole = a_case()
    network = Frozen()
    discriminator = FeatureDiscriminator(network, channels=4).eval()
    logits, again = discriminator(image, hole), discriminator(image, hole, network(image))
    assert all(map(torch.equal, logits, again))
    assert not any(map(torch.equal, logits, discriminator(image, hole, network(-image))))


def test_feature_matching_by_hand():
    hole = torch.zeros(1, 1, 4, 4)
    hole[..., 0, 3] = 1  # the upper right place of a 2 x 2 map
    fine = torch.tensor([[1.0, 3.0], [9.0, 9.0]]).expand(1, 2, 2, 2), torch.full((1, 1, 2, 2), 7.0)
    coarse = torch.full((1, 3, 1, 1), -0.5, dtype=torch.bfloat16), torch.full((1, 1, 1, 1), 7.0)
    zeros = [[torch.zeros_like(x) for x in scale] for scale in (fine, coarse)]
    # A mean of both scales; the logits and places without a hole don't count.
    assert feature_matching([fine, coarse], zeros, hole).item() == (3 + 0.5) / 2
    assert feature_matching([fine, coarse], zeros, torch.ones(1, 1, 4, 4)).item() == (5.5 + 0.5) / 2
    assert feature_matching([fine, coarse], zeros, torch.zeros(1, 1, 4, 4)).item() == 0


def test_hinge_by_hand():
    real, fake = torch.tensor([2.0, 0.5, -1.0, 1.0]), torch.tensor([-3.0, -0.5, 1.0, -1.0])
    real, fake = real.view(1, 1, 2, 2), fake.view(1, 1, 2, 2)
    hole = torch.ones(1, 1, 32, 32)
    expected = (0 + 0.5 + 2 + 0) / 4 + (0 + 0.5 + 2 + 0) / 4
    assert discriminator_loss([real], [fake], hole).item() == pytest.approx(expected)
    assert generator_loss([fake], hole).item() == pytest.approx(3.5 / 4)
    small = torch.full((1, 1, 2, 2), 2**-10, dtype=torch.bfloat16)  # 1 ± this is not a bfloat16
    assert discriminator_loss([small], [-small], hole).item() == 2 - 2 * 2**-10


def test_patches_that_the_hole_touches_count():
    real, fake = torch.tensor([2.0, 0.5, -1.0, 1.0]), torch.tensor([-3.0, -0.5, 1.0, -1.0])
    real, fake = real.view(1, 1, 2, 2), fake.view(1, 1, 2, 2)
    hole = torch.zeros(1, 1, 32, 32)
    hole[..., 15, 16:] = 1  # the last row of the upper right patch
    assert discriminator_loss([real], [fake], hole).item() == 1.0
    assert generator_loss([fake], hole).item() == 0.5
    hole[..., 16, 31] = 1  # and the first row of the one below
    assert generator_loss([fake], hole).item() == pytest.approx((0.5 + 1) / 2)


def test_images_count_alike():
    fake = torch.tensor([[1.0, 1.0, 1.0, 1.0], [3.0, 9.0, 9.0, 9.0], [9.0, 9.0, 9.0, 9.0]]).view(3, 1, 2, 2)
    hole = torch.zeros(3, 1, 32, 32)
    hole[0] = 1
    hole[1, :, 0, 0] = 1  # one patch of the second image, and none of the third
    assert generator_loss([fake], hole).item() == -2.0


def test_an_empty_hole_can_still_be_differentiated():
    fake = torch.randn(1, 1, 2, 2, requires_grad=True)
    loss = generator_loss([fake], torch.zeros(1, 1, 32, 32))
    loss.backward()
    assert loss.item() == 0
    assert (fake.grad == 0).all()
