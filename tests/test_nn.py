"""The two modules of the poster, the push-pull fill, tokens, and blocks."""

import pytest
import torch

from showface import ops
from showface.nn import (
    DisentangledMemory,
    GatedConv2d,
    MaskRegionEnhancement,
    ModulatedResidualBlock,
    ResidualBlock,
    channels_last,
    hole_tokens,
    push_pull_fill,
    to_map,
    to_tokens,
)
from showface.nn.blocks import ImageHead

from support.tolerances import assert_close

REGIONS, SLOTS, CHANNELS = 5, 4, 6


def a_memory(**options) -> DisentangledMemory:
    return DisentangledMemory(CHANNELS, REGIONS, SLOTS, **options)


def features_and_parsing(present=tuple(range(REGIONS)), batch: int = 2, side: int = 8):
    """Random features, and a one-hot parsing with only the regions in `present`."""
    features = torch.randn(batch, CHANNELS, side, side)
    labels = torch.tensor(present)[torch.randint(len(present), (batch, side, side))]
    return features, torch.nn.functional.one_hot(labels, REGIONS).movedim(-1, 1).float()


class TestDisentangledMemory:
    def test_recalls_one_vector_per_region(self, device):
        memory = a_memory().to(device)
        features, parsing = (x.to(device) for x in features_and_parsing())
        recalled = memory(features, parsing)
        assert recalled.shape == features.shape
        latent, region = memory.pool(features, parsing)
        expected = ops.memory_read(latent, memory.memory, region, temperature=memory.temperature)
        expected = expected.view(2, REGIONS, CHANNELS)[torch.arange(2)[:, None, None], parsing.argmax(1)]
        torch.testing.assert_close(recalled, expected.movedim(-1, 1))

    def test_pools_the_mean_of_each_region(self):
        features, parsing = features_and_parsing(present=(0, 3))
        latent, region = a_memory().pool(features, parsing)
        assert region.tolist() == [0, -1, -1, 3, -1] * 2
        inside = parsing[1, 3].bool()
        torch.testing.assert_close(latent.view(2, REGIONS, CHANNELS)[1, 3], features[1][:, inside].mean(1))
        assert (latent[region < 0] == 0).all()

    def test_a_soft_parsing_mixes_what_is_recalled(self):
        memory = a_memory()
        features = torch.randn(1, CHANNELS, 8, 8)
        parsing = torch.randn(1, REGIONS, 8, 8, requires_grad=True)
        recalled = memory(features, parsing.softmax(1))
        recalled.square().sum().backward()
        assert parsing.grad.isfinite().all()
        assert parsing.grad.abs().sum() > 0
        assert memory.log_temperature.grad.abs() > 0

    def test_write_changes_only_the_regions_that_are_there(self, device):
        memory = a_memory(patience=1000).to(device)
        memory.idle.zero_()
        before = memory.memory.clone()
        memory.write(*(x.to(device) for x in features_and_parsing(present=(1, 4))))
        for region in range(REGIONS):
            assert torch.equal(memory.memory[region], before[region]) == (region not in (1, 4))
        assert (memory.idle[[0, 2, 3]] == 1).all()

    def test_write_is_the_operators_write(self):
        memory = a_memory(rate=0.2)
        memory.idle.zero_()
        features, parsing = features_and_parsing()
        latent, region = memory.pool(features, parsing)
        centre = torch.stack([latent[region == block].mean(0) for block in range(REGIONS)])
        latent = latent - centre[region]
        expected, rho = ops.memory_write(latent, memory.memory, region, temperature=memory.temperature, rate=0.2)
        memory.write(features, parsing)
        torch.testing.assert_close(memory.memory, expected)
        assert torch.equal(memory.idle == 0, rho >= memory.reseed_below)
        assert memory.memory.grad_fn is None

    def test_centres_are_the_means_of_what_was_written(self):
        memory = a_memory()
        batches = [features_and_parsing(present=(0, 2), batch=batch) for batch in (3, 5)]
        raw = [memory.pool(*batch) for batch in batches]
        for batch in batches:
            memory.write(*batch)
        latent, region = (torch.cat(x) for x in zip(*raw, strict=True))
        assert memory.written.tolist() == [8, 0, 8, 0, 0]
        for block in (0, 2):
            torch.testing.assert_close(memory.centre[block], latent[region == block].mean(0))
        assert (memory.centre[[1, 3, 4]] == 0).all()
        seen, _ = memory.pool(*batches[0])
        torch.testing.assert_close(seen[region[: len(seen)] == 2], (raw[0][0] - memory.centre[2])[raw[0][1] == 2])

    def test_centres_follow_the_newest_writes(self):
        memory = a_memory(horizon=10)
        case = features_and_parsing()
        for _ in range(100):
            memory.write(*(x + 1 if x is case[0] else x for x in case))
        latent, region = a_memory().pool(case[0] + 1, case[1])
        expected = torch.stack([latent[region == block].mean(0) for block in range(REGIONS)])
        torch.testing.assert_close(memory.centre, expected)
        assert (memory.written == 10).all()

    def test_a_common_mean_does_not_change_what_is_told_apart(self):
        """Adding a large mean to all latents of a region does not change the slots that they pick."""
        memory, moved = a_memory(), a_memory()
        moved.load_state_dict(memory.state_dict())
        features, parsing = features_and_parsing(batch=4)
        for _ in range(3):
            memory.write(features, parsing)
            moved.write(features + 10, parsing)
        torch.testing.assert_close(moved.centre, memory.centre + 10)
        torch.testing.assert_close(moved.memory, memory.memory, atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(moved(features + 10, parsing), memory(features, parsing) + 10, atol=1e-4, rtol=1e-4)

    def test_first_writes_fill_slots_with_latents(self):
        memory = a_memory()
        features, parsing = features_and_parsing(present=(0, 2))
        latent, region = memory.pool(features, parsing)
        # The slot was idle long enough and has almost no mass, so it is replaced next.
        memory.reseed_below = 1e3
        for _ in range(SLOTS):
            memory.write(features, parsing)
        for block in (0, 2):
            distance = torch.cdist(memory.memory[block], latent[region == block]).amin(1)
            assert (distance < 1.0).all()

    def test_idle_slots_are_given_away_one_at_a_time(self):
        memory = a_memory(patience=3)
        memory.write(*features_and_parsing(present=(1,)))
        memory.idle.zero_()
        memory.idle[1, 2] = 5
        features, parsing = features_and_parsing(present=(1,), batch=1)
        memory.reseed_below = 1e3
        memory.write(features, parsing)
        latent, region = memory.pool(features, parsing)
        torch.testing.assert_close(memory.memory[1, 2], latent[region == 1][0])
        assert memory.idle[1].tolist() == [1, 1, 0, 1]

    def test_idle_slots_of_absent_regions_stay(self):
        memory = a_memory(patience=1)
        before = memory.memory.clone()
        memory.write(*features_and_parsing(present=(1,)))
        assert torch.equal(memory.memory[0], before[0])
        assert (memory.idle[0] == 2).all()

    def test_state_dict_round_trip(self):
        memory, other = a_memory(), a_memory()
        memory.write(*features_and_parsing())
        other.load_state_dict(memory.state_dict())
        assert set(memory.state_dict()) == {"memory", "idle", "centre", "written", "log_temperature"}
        case = features_and_parsing()
        assert torch.equal(memory(*case), other(*case))
        assert torch.equal(memory.idle, other.idle)

    def test_compiles_whole(self):
        torch._dynamo.reset()
        memory, other = a_memory(), a_memory()
        other.load_state_dict(memory.state_dict())
        case = features_and_parsing()
        torch.compile(memory.write, fullgraph=True, backend="aot_eager")(*case)
        other.write(*case)
        for name, x in other.state_dict().items():
            torch.testing.assert_close(memory.state_dict()[name], x)
        recalled = torch.compile(memory, fullgraph=True, backend="aot_eager")(*case)
        torch.testing.assert_close(recalled, other(*case))

    def test_float64(self):
        memory = a_memory().to(torch.float64)
        features, parsing = (x.double() for x in features_and_parsing())
        assert memory(features, parsing).dtype == torch.float64
        memory.write(features, parsing)
        assert (memory.memory.dtype, memory.idle.dtype) == (torch.float64, torch.int32)

    def test_half_precision_features(self):
        memory = a_memory()
        features, parsing = features_and_parsing()
        out = memory(features.bfloat16(), parsing.bfloat16())
        assert out.dtype == torch.bfloat16
        torch.testing.assert_close(out.float(), memory(features, parsing), rtol=0.05, atol=0.05)

    def test_fixed_temperature(self):
        memory = a_memory(temperature=7.0, learnable_temperature=False)
        assert not memory.log_temperature.requires_grad
        torch.testing.assert_close(memory.temperature, torch.tensor(7.0))

    def test_errors(self):
        with pytest.raises(ValueError, match="temperature must be positive, got 0"):
            a_memory(temperature=0)
        features, parsing = features_and_parsing()
        message = r"features and parsing must be \(B, 6, h, w\) and \(B, 5, h, w\), got"
        for bad in ((features[:, 1:], parsing), (features, parsing[:, 1:]), (features, parsing[..., 1:])):
            with pytest.raises(ValueError, match=message):
                a_memory()(*bad)


class TestMaskRegionEnhancement:
    def hole(self, height: int = 32, width: int = 32) -> torch.Tensor:
        hole = torch.zeros(2, 1, height, width)
        hole[:, :, height // 4 : height // 2, width // 4 : width // 2] = 1
        return hole

    @pytest.mark.parametrize("with_memory", [False, True])
    def test_known_tokens_get_the_fused_features_only(self, device, with_memory):
        enhance = MaskRegionEnhancement(6, 6 if with_memory else 0, key_channels=4).to(device)
        features, recalled = torch.randn(2, 2, 6, 8, 8, device=device)
        inputs = [features, recalled] if with_memory else [features]
        hole = self.hole().to(device)
        out = enhance(features, hole, recalled if with_memory else None)
        fused = enhance.fuse(torch.cat(inputs, dim=1))
        corrupted = hole_tokens(hole, features).view(2, 1, 8, 8).expand_as(out)
        assert torch.equal(out[~corrupted], fused[~corrupted])
        assert not torch.isclose(out[corrupted], fused[corrupted]).any()

    def test_all_weights_and_inputs_get_gradients(self):
        enhance = MaskRegionEnhancement(6, 6)
        features, recalled = (torch.randn(2, 6, 8, 8, requires_grad=True) for _ in range(2))
        enhance(features, self.hole(), recalled).square().sum().backward()
        for x in (features, recalled, *enhance.parameters()):
            assert x.grad.abs().sum() > 0

    @pytest.mark.parametrize("size", [(8, 8), (32, 32), (64, 32), (30, 31), (4, 4)], ids=str)
    def test_holes_of_any_size(self, size):
        features = torch.randn(2, 6, 8, 8)
        assert MaskRegionEnhancement(6)(features, self.hole(*size)).shape == features.shape

    @pytest.mark.parametrize("value", [0.0, 1.0])
    def test_without_pairs_only_fuses(self, value):
        enhance = MaskRegionEnhancement(6)
        features = torch.randn(2, 6, 8, 8)
        assert torch.equal(enhance(features, torch.full((2, 1, 32, 32), value)), enhance.fuse(features))

    def test_errors(self):
        with pytest.raises(ValueError, match="temperature must be positive, got -1"):
            MaskRegionEnhancement(6, temperature=-1)


class TestPushPullFill:
    @pytest.mark.parametrize("size", [(1, 1), (1, 5), (7, 1), (16, 16), (13, 31), (37, 50)], ids=str)
    def test_known_pixels_and_bounds(self, device, size):
        image = torch.rand(2, 3, *size, device=device) * 2 - 1
        hole = (torch.rand(2, 1, *size, device=device) < 0.6).float()
        hole[..., 0, 0] = 0
        filled = push_pull_fill(image, hole)
        known = hole.expand_as(image) == 0
        assert torch.equal(filled[known], image[known])
        # A fill is a weighted mean of known pixels.
        low = torch.where(known, image, 2).amin((2, 3), keepdim=True)
        high = torch.where(known, image, -2).amax((2, 3), keepdim=True)
        assert ((filled >= low - 1e-5) & (filled <= high + 1e-5)).all()

    @pytest.mark.parametrize("size", [(16, 16), (13, 31)], ids=str)
    def test_constant_stays_constant(self, size):
        hole = (torch.rand(1, 1, *size) < 0.95).float()
        hole[..., 3, 5] = 0
        image = torch.full((1, 3, *size), 0.3)
        torch.testing.assert_close(push_pull_fill(image, hole), image)

    def test_all_hole_gives_zero(self):
        image = torch.rand(2, 3, 9, 12)
        hole = torch.ones(2, 1, 9, 12)
        hole[1, :, 4] = 0
        filled = push_pull_fill(image, hole)
        assert (filled[0] == 0).all()
        assert filled.isfinite().all()

    @pytest.mark.parametrize("garbage", [torch.nan, torch.inf, 1e30])
    def test_what_lies_under_the_hole_does_not_matter(self, garbage):
        image, hole = torch.rand(1, 3, 12, 9), (torch.rand(1, 1, 12, 9) < 0.5).float()
        spoilt = torch.where(hole > 0, garbage, image)
        assert torch.equal(push_pull_fill(spoilt, hole), push_pull_fill(image, hole))

    def test_half_precision(self):
        image, hole = torch.rand(1, 3, 32, 32), (torch.rand(1, 1, 32, 32) < 0.7).float()
        filled = push_pull_fill(image.bfloat16(), hole.bfloat16())
        assert filled.dtype == torch.bfloat16
        torch.testing.assert_close(filled.float(), push_pull_fill(image, hole), rtol=0, atol=0.03)


class TestTokens:
    def test_round_trip_is_a_view_of_a_channels_last_map(self):
        x = torch.randn(2, 6, 5, 7).to(memory_format=torch.channels_last)
        tokens = to_tokens(x)
        assert tokens.shape == (2, 35, 6)
        assert tokens.is_contiguous()
        assert tokens.data_ptr() == x.data_ptr()
        back = to_map(tokens, x)
        assert back.data_ptr() == x.data_ptr()
        assert back.stride() == x.stride()
        assert torch.equal(back, x)
        assert torch.equal(tokens[1, 7 * 2 + 3], x[1, :, 2, 3])

    def test_round_trip_of_a_contiguous_map(self):
        x = torch.randn(2, 6, 5, 7)
        assert torch.equal(to_map(to_tokens(x), x), x)

    def test_any_pixel_corrupts_its_token(self):
        hole = torch.zeros(1, 1, 16, 16)
        hole[0, 0, 5, 11] = 1
        tokens = hole_tokens(hole, torch.zeros(1, 3, 4, 4))
        assert tokens.dtype == torch.bool
        assert tokens.nonzero().tolist() == [[0, 1 * 4 + 2]]

    def test_channels_last_weights(self):
        module = channels_last(torch.nn.Conv2d(4, 8, 3))
        assert module.weight.is_contiguous(memory_format=torch.channels_last)


def test_image_head_draws_no_pattern_of_its_blocks():
    """Constant features give a constant correction for all weights, unlike with pixel-shuffle alone."""
    head = ImageHead(8)
    torch.nn.init.normal_(head.conv.weight)
    torch.nn.init.normal_(head.conv.bias)
    flat = head(torch.randn(2, 8, 1, 1).expand(2, 8, 9, 9))[..., 12:-12, 12:-12]
    torch.testing.assert_close(flat, flat[..., :1, :1].expand_as(flat))
    detail = head(torch.randn(2, 8, 9, 9))
    assert detail.shape == (2, 3, 36, 36)
    assert detail.unflatten(3, (9, 4))[..., 3, :].std(-1).min() > 0.01  # pixels of a block still differ


def test_gated_convolution():
    layer = GatedConv2d(4, 6, stride=2)
    x = torch.randn(1, 4, 8, 8)
    features, gate = layer.conv(x).chunk(2, dim=1)
    assert_close(layer(x), features * gate.sigmoid())
    assert layer(x).shape == (1, 6, 4, 4)


def test_residual_blocks_start_as_the_identity():
    x, guide = torch.randn(1, 6, 8, 8), torch.randn(1, 3, 8, 8)
    assert torch.equal(ResidualBlock(6)(x), x)
    assert torch.equal(ModulatedResidualBlock(6, 3)(x, guide), x)
    assert torch.equal(ModulatedResidualBlock(6, 0)(x), x)
