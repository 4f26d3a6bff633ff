"""What modules, losses and operators say to shapes that do not fit, and to values without channels."""

import pytest
import torch

from showface import ops
from showface.losses import image_mean, region_l1
from showface.nn import DisentangledMemory, MaskRegionEnhancement
from showface.nn.blocks import GatedConv2d, ModulatedResidualBlock
from showface.training.feature_losses import distribution_distance


@pytest.mark.parametrize("kernel", [1, 3, 4, 5])
@pytest.mark.parametrize("stride", [1, 2])
def test_gated_convolutions_divide_the_size_by_the_stride(kernel, stride):
    if kernel % 2 == 0 and stride == 1:
        pytest.skip("an even kernel needs a stride")
    out = GatedConv2d(3, 4, stride=stride, kernel=kernel)(torch.zeros(1, 3, 16, 12))
    assert out.shape == (1, 4, 16 // stride, 12 // stride)


def test_enhancement_names_what_does_not_fit():
    x, hole, recalled = torch.zeros(2, 8, 4, 4), torch.zeros(2, 1, 16, 16), torch.zeros(2, 5, 4, 4)
    with_memory, without = MaskRegionEnhancement(8, memory_channels=5), MaskRegionEnhancement(8)
    for bad in (hole[:, 0], hole[:1], torch.zeros(2, 3, 16, 16)):
        with pytest.raises(ValueError, match=r"hole must be \(2, 1, H, W\)"):
            without(x, bad)
    with pytest.raises(ValueError, match="recalled must be None with memory_channels=0"):
        without(x, hole, recalled)
    for bad in (None, recalled[:1], recalled[..., :2]):
        with pytest.raises(ValueError, match=r"recalled must be \(2, 5, 4, 4\)"):
            with_memory(x, hole, bad)
    assert with_memory(x, hole, recalled).shape == without(x, hole).shape == x.shape


@pytest.mark.parametrize("batch", [1, 3])
def test_memory_compares_the_batches(batch):
    memory = DisentangledMemory(6, 5, 4)
    for call in (memory, memory.write):
        with pytest.raises(ValueError, match="features and parsing must be"):
            call(torch.zeros(2, 6, 4, 4), torch.zeros(batch, 5, 4, 4))


def test_a_guided_block_needs_its_guide():
    with pytest.raises(ValueError, match=r"guide must be \(B, 3, h, w\)"):
        ModulatedResidualBlock(4, 3)(torch.zeros(1, 4, 8, 8))


def test_losses_refuse_one_hole_for_several_images():
    """It would be broadcast, and the loss be as many times too large as there are images."""
    image, hole = torch.rand(4, 3, 8, 8), torch.ones(1, 1, 8, 8)
    with pytest.raises(ValueError, match="region must be"):
        region_l1(image, image, hole)
    with pytest.raises(ValueError, match="target must be"):
        region_l1(image, image[:1], hole.expand(4, 1, 8, 8))
    with pytest.raises(ValueError, match="totals and counts"):
        image_mean(torch.zeros(4), torch.zeros(1))
    with pytest.raises(ValueError, match="hole must be"):
        distribution_distance(image, image, hole, torch.randn(5, 3))


@pytest.mark.parametrize("chosen", ["reference", "cpp"])
def test_values_without_channels_give_the_keys_no_gradient(chosen):
    """Also after a call whose gradients remain in the scratch memory of a thread."""
    if reason := ops.why_not("masked_correlation", chosen, "cpu"):
        pytest.skip(reason)
    for channels in (9, 0):
        query, key = (torch.randn(2, 30, 4, requires_grad=True) for _ in range(2))
        value = torch.randn(2, 30, channels, requires_grad=True)
        ops.masked_correlation(
            query, key, value, torch.rand(2, 30) > 0.5, temperature=5.0, backend=chosen
        ).sum().backward()
    assert not query.grad.any()
    assert not key.grad.any()
