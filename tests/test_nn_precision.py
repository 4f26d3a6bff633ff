"""The Disentangled Memory Module in all precisions, with a write before the backward, and with broken batches."""

import pytest
import torch

from showface.nn import DisentangledMemory, MaskRegionEnhancement

REGIONS, SLOTS, CHANNELS = 5, 4, 6
STATISTICS = ("memory", "centre", "written")


def a_memory(**options) -> DisentangledMemory:
    return DisentangledMemory(CHANNELS, REGIONS, SLOTS, **options)


def features_and_parsing(batch: int = 2, side: int = 8) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.randn(batch, CHANNELS, side, side), (3 * torch.randn(batch, REGIONS, side, side)).softmax(1)


def test_a_write_before_the_backward_does_not_disturb_it():
    """The order in the README: recall, write, backward."""
    memory, enhance = a_memory(), MaskRegionEnhancement(CHANNELS, CHANNELS)
    features, parsing = features_and_parsing()
    hole = (torch.rand(2, 1, 32, 32) > 0.7).float()
    grads = []
    for write in (False, True):
        x = features.clone().requires_grad_()
        out = enhance(x, hole, memory(x, parsing))
        if write:
            memory.write(features, parsing)
        out.square().sum().backward()
        grads.append(x.grad)
    assert torch.equal(*grads)


def test_sums_over_large_maps_do_not_overflow_half_precision():
    memory, exact = a_memory(), a_memory()
    exact.load_state_dict(memory.state_dict())
    features, parsing = 4 + 2 * torch.rand(1, CHANNELS, 128, 128), torch.zeros(1, REGIONS, 128, 128)
    parsing[:, 1] = 1
    memory.write(features.half(), parsing.half())
    exact.write(features.half().float(), parsing)
    for name, x in exact.state_dict().items():
        torch.testing.assert_close(memory.state_dict()[name], x)
    assert memory(features.half(), parsing.half()).isfinite().all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_does_not_touch_the_centring(dtype):
    """A mean of 100 has steps of 0.5 in bfloat16, as large as what it hides."""
    memory, exact = a_memory(), a_memory()
    exact.load_state_dict(memory.state_dict())
    features, parsing = features_and_parsing(batch=4)
    for _ in range(3):
        exact.write(features + 100, parsing)
        with torch.autocast("cpu", dtype=dtype):
            memory.write(features + 100, parsing)
    for name in STATISTICS:
        torch.testing.assert_close(getattr(memory, name), getattr(exact, name))
    with torch.autocast("cpu", dtype=dtype):
        latent, _ = memory.pool(features + 100, parsing)
    torch.testing.assert_close(latent, exact.pool(features + 100, parsing)[0])


def test_gradient_in_float64():
    memory = DisentangledMemory(4, 3, 5).double()
    features = torch.randn(2, 4, 3, 3, dtype=torch.float64, requires_grad=True)
    parsing = torch.rand(2, 3, 3, 3, dtype=torch.float64).softmax(1).requires_grad_()
    assert torch.autograd.gradcheck(memory, (features, parsing))


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
@pytest.mark.parametrize("broken", [0, 1], ids=["features", "parsing"])
def test_a_broken_batch_changes_nothing(value, broken):
    memory = a_memory()
    memory.write(*features_and_parsing())
    before = {name: getattr(memory, name).clone() for name in STATISTICS}
    case = features_and_parsing()
    case[broken][:, :, 2, 3] = value
    memory.write(*case)
    for name, x in before.items():
        assert torch.equal(getattr(memory, name), x)


def test_the_intact_images_of_a_batch_are_written():
    memory, expected = a_memory(), a_memory()
    expected.load_state_dict(memory.state_dict())
    features, parsing = features_and_parsing(batch=3)
    features[1, 0, 2, 3] = torch.nan
    memory.write(features, parsing)
    expected.write(features[[0, 2]], parsing[[0, 2]])
    for name, x in expected.state_dict().items():
        torch.testing.assert_close(memory.state_dict()[name], x)


def test_an_empty_batch_changes_nothing():
    memory = a_memory()
    before = {name: x.clone() for name, x in memory.state_dict().items()}
    memory.write(*features_and_parsing(batch=0))
    for name, x in memory.state_dict().items():
        assert torch.equal(x, before[name])
    assert memory(*features_and_parsing(batch=0)).shape == (0, CHANNELS, 8, 8)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_counts_and_means_stay_in_float32(dtype):
    memory, exact = a_memory(), a_memory()
    case = features_and_parsing(batch=100)
    exact.write(*case)
    memory.load_state_dict(exact.state_dict())
    memory.to(dtype)
    assert (memory.memory.dtype, memory.centre.dtype, memory.written.dtype) == (dtype, torch.float32, torch.float32)
    assert torch.equal(memory.centre, exact.centre)
    for _ in range(4):
        memory.write(*(x.to(dtype) for x in case))
    assert memory.written.max() == 500
    assert memory(*(x.to(dtype) for x in case)).dtype == dtype
    memory.load_state_dict({name: x.to(dtype) for name, x in exact.state_dict().items()})  # as older versions saved it
    assert memory.centre.dtype == torch.float32
    assert memory.double().written.dtype == torch.float64
