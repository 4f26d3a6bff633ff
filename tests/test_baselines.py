"""The baselines: the properties that all of them share, and the special parts of each."""

import json

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch.distributions import Normal
from torch.distributions import kl_divergence as expected_kl

import showface as package
from showface import MDRNets, registry
from showface.baselines import BASELINES, Baseline, BaselineConfig
from showface.baselines.base import count_strides
from showface.baselines.ctsdg import edge_map, known_structure
from showface.baselines.deepfillv2 import ContextualAttention
from showface.baselines.pconv import PartialConv2d
from showface.baselines.pic import Gaussian, kl_divergence
from showface.losses import LossWeights, weighted_sum
from showface.nn import channels_last
from showface.training import load_config

from support.networks import SIZES, TINY, photo, wake

WIDTH = 8
STAGELESS = [name for name, network in BASELINES.items() if not network.stages]
# DSI draws one code after another, so large images take long.
SIZED = [
    pytest.param(
        name, size, id=f"{name}-{size}", marks=[pytest.mark.long] if (name, size) == ("dsi", SIZES[-1]) else []
    )
    for name in BASELINES
    for size in SIZES
]


def make(name: str, image_size: int = 32) -> Baseline:
    return wake(BASELINES[name](BaselineConfig(WIDTH, image_size))).eval()


@pytest.fixture(params=BASELINES)
def network(request) -> Baseline:
    """Each baseline, small and random, in eval mode."""
    return make(request.param)


class TestEveryNetwork:
    @pytest.mark.parametrize(("network", "size"), SIZED, indirect=["network"])
    def test_any_size_keeps_known_pixels(self, network, size):
        image, hole = photo(*size)
        with torch.no_grad():
            output = network(image, hole)
        known = (hole == 0).expand_as(image)
        for result, raw in ((output.image, output.raw_image), (output.coarse, output.raw_coarse)):
            assert result.shape == raw.shape == image.shape
            assert raw.isfinite().all()
            assert torch.equal(result[known], image[known])
            assert torch.equal(result[~known], raw[~known])

    @pytest.mark.parametrize("garbage", [torch.nan, torch.inf, 1e30])
    def test_what_lies_under_the_hole_does_not_matter(self, network, garbage):
        image, hole = photo(37, 50)
        with torch.no_grad():
            results = [network(x, hole) for x in (image, torch.where(hole > 0, garbage, image))]
        assert torch.equal(results[0].raw_image, results[1].raw_image)
        assert torch.equal(results[0].coarse, results[1].coarse)

    @pytest.mark.parametrize("value", [0.0, 1.0])
    def test_full_and_empty_holes(self, network, value):
        image, _ = photo()
        hole = torch.full_like(image[:, :1], value)
        output = network(image, hole)
        assert output.raw_image.isfinite().all()
        assert torch.equal(output.image, image) == (value == 0)
        _, losses = network.train().training_losses(image, hole, no_labels(image), LossWeights())
        weighted_sum(losses, network.loss_weights(LossWeights())).backward()
        assert all(p.grad is None or p.grad.isfinite().all() for p in network.parameters())

    def test_the_same_result_twice(self, network):
        image, hole = photo()
        with torch.no_grad():
            first, second = network(image, hole), network(image, hole)
            alone = network(image[:1], hole[:1])
        assert torch.equal(first.raw_image, second.raw_image)
        torch.testing.assert_close(alone.raw_image, first.raw_image[:1], rtol=1e-4, atol=1e-4)

    def test_bool_holes(self, network):
        image, hole = photo()
        with torch.no_grad():
            assert torch.equal(network(image, hole).image, network(image, hole.bool()).image)

    @pytest.mark.parametrize("network", STAGELESS, indirect=True)
    def test_gradients_reach_all_parameters(self, device, network):
        image, hole = (x.to(device) for x in photo(64, 64))
        _, losses = network.to(device).train().training_losses(image, hole, no_labels(image), LossWeights())
        assert {"hole", "known", "coarse_hole", "coarse_known"} <= set(losses)
        weighted_sum(losses, network.loss_weights(LossWeights())).backward()
        for name, parameter in network.named_parameters():
            assert parameter.grad is not None, name
            assert parameter.grad.isfinite().all(), name
            assert parameter.grad.abs().sum() > 0, name

    @pytest.mark.parametrize("network", STAGELESS, indirect=True)
    def test_a_few_steps_lower_the_loss(self, network):
        network = channels_last(BASELINES[network.system](BaselineConfig(WIDTH, 32))).train()
        image, hole = smooth_photo()
        optimiser = torch.optim.Adam(network.parameters(), 3e-3)
        totals = []
        for _ in range(25):
            _, losses = network.training_losses(image, hole, no_labels(image), LossWeights())
            optimiser.zero_grad()
            weighted_sum(losses, network.loss_weights(LossWeights())).backward()
            optimiser.step()
            network.update_memory()
            totals.append(losses["hole"].item())
        assert np.mean(totals[-3:]) < 0.8 * np.mean(totals[:3])

    def test_round_trip(self, network, tmp_path):
        network.save_pretrained(tmp_path)
        values = json.loads((tmp_path / "config.json").read_text())
        assert values == {"system": network.system, "channels": WIDTH, "image_size": 32}
        loaded = package.load_model(tmp_path)
        assert type(loaded) is type(network)
        assert loaded.config == network.config
        assert not loaded.training
        image, hole = photo()
        with torch.no_grad():
            assert torch.equal(loaded(image, hole).image, channels_last(network)(image, hole).image)

    def test_restores_photos(self, network):
        face = np.random.default_rng(0).integers(0, 256, (45, 70, 3), dtype=np.uint8)
        hole = np.zeros((45, 70), dtype=bool)
        hole[10:30, 20:40] = True
        result = np.asarray(package.inpaint(Image.fromarray(face), hole, model=network))
        assert result.shape == face.shape
        assert np.array_equal(result[~hole], face[~hole])

    def test_the_papers_size_by_default(self, network):
        with torch.device("meta"):  # no memory for the weights
            config = type(network)(BaselineConfig(image_size=32)).config
        assert (config.channels, config.image_size) == (network.paper_channels, 32)

    def test_errors(self, network):
        with pytest.raises(TypeError, match=r"image .*got torch.uint8"):
            network(torch.zeros(1, 3, 8, 8, dtype=torch.uint8), torch.zeros(1, 1, 8, 8))
        with pytest.raises(ValueError, match=r"hole must have shape"):
            network(torch.zeros(1, 3, 8, 8), torch.zeros(1, 8, 8))


class TestNames:
    def test_systems(self):
        assert list(registry.NETWORKS) == ["mdrnets", "pconv", "deepfillv2", "ctsdg", "pic", "dsi", "ict", "unet"]
        assert all(network.system == name for name, network in registry.NETWORKS.items())

    def test_unknown_names_are_told_the_known_ones(self):
        message = "unknown system 'lama': choose one of mdrnets, pconv, deepfillv2, ctsdg, pic, dsi, ict, unet"
        with pytest.raises(ValueError, match=message):
            registry.find_network("lama")
        with pytest.raises(ValueError, match=message):
            load_config(overrides=["system=lama"])

    @pytest.mark.parametrize(("name", "value"), [("channels", -1), ("image_size", 2.5)])
    def test_bad_sizes(self, name, value):
        with pytest.raises(ValueError, match=f"{name} must be an integer from 0"):
            BaselineConfig(**{name: value})

    def test_folders_without_a_name_are_mdrnets(self, model, tmp_path):
        model.save_pretrained(tmp_path)
        values = json.loads((tmp_path / "config.json").read_text())
        assert values.pop("system") == "mdrnets"
        (tmp_path / "config.json").write_text(json.dumps(values))
        assert package.load_model(tmp_path).config == TINY
        assert MDRNets.from_pretrained(tmp_path).config == TINY
        assert isinstance(package.load_model(), MDRNets)

    def test_a_folder_of_another_system(self, model, tmp_path):
        make("unet").save_pretrained(tmp_path)
        with pytest.raises(ValueError, match=r"not a configuration of MDRNets: its system is 'unet'.*load_model"):
            MDRNets.from_pretrained(tmp_path)
        (tmp_path / "config.json").write_text('{"system": "lama"}')
        with pytest.raises(ValueError, match="unknown system 'lama'"):
            package.load_model(tmp_path)
        (tmp_path / "config.json").write_text("[]")
        with pytest.raises(ValueError, match=r"config.json is not a configuration of a model: "):
            package.load_model(tmp_path)

    @pytest.mark.parametrize(
        ("size", "smallest", "strides"), [(512, 2, 8), (256, 2, 7), (64, 2, 5), (96, 2, 5), (16, 8, 2), (4096, 2, 8)]
    )
    def test_strides(self, size, smallest, strides):
        assert count_strides(size, smallest) == strides


class TestPartialConvolution:
    def test_a_window_by_hand(self):
        conv = PartialConv2d(1, 1, kernel=3)
        torch.nn.init.constant_(conv.conv.weight, 2.0)
        torch.nn.init.constant_(conv.bias, 0.5)
        x = torch.arange(1.0, 10.0).view(1, 1, 3, 3)
        valid = torch.tensor([[1.0, 0, 0], [0, 0, 0], [0, 0, 1]]).view(1, 1, 3, 3)
        y, updated = conv((x, valid))
        # The middle window has both valid pixels: 2 * (1 + 9) * 9 / 2 + 0.5. The top left window has only the 1:
        # 2 * 1 * 9 / 1 + 0.5. The top right window has none.
        assert y[0, 0, 1, 1].item() == pytest.approx(90.5)
        assert y[0, 0, 0, 0].item() == pytest.approx(18.5)
        assert y[0, 0, 0, 2].item() == 0
        assert updated[0, 0].tolist() == [[1, 1, 0], [1, 1, 1], [0, 1, 1]]

    def test_where_all_is_valid_it_is_a_convolution(self):
        conv = PartialConv2d(3, 5, kernel=5, stride=2)
        x = torch.randn(2, 3, 13, 10)
        y, updated = conv((x, torch.ones(2, 1, 13, 10)))
        expected = F.conv2d(x, conv.conv.weight, conv.bias, 2, 2)
        torch.testing.assert_close(y[:, :, 1:-1, 1:-1], expected[:, :, 1:-1, 1:-1])
        assert updated.shape == (2, 1, 7, 5)
        assert (updated == 1).all()

    def test_inputs_with_masks_of_their_own(self):
        """The result equals that of one input whose mask has one channel per feature channel."""
        conv = PartialConv2d(5, 4)
        inputs = [(torch.randn(2, c, 6, 7), (torch.rand(2, 1, 6, 7) > 0.7).float()) for c in (2, 3)]
        y, updated = conv(*inputs)
        x = torch.cat([x for x, _ in inputs], dim=1)
        mask = torch.cat([valid.expand_as(x) for x, valid in inputs], dim=1)
        total = F.conv2d(mask, torch.ones(1, 5, 3, 3), padding=1)
        expected = F.conv2d(x * mask, conv.conv.weight, padding=1) * 45 / total.clamp_min(1)
        expected = torch.where(total > 0, expected + conv.bias[:, None, None], 0)
        torch.testing.assert_close(y, expected)
        assert torch.equal(updated, (total > 0).float())

    def test_holes_close_on_the_way_down(self):
        network = make("pconv", 64)
        hole = torch.zeros(1, 1, 64, 64)
        hole[:, :, 8:56, 8:56] = 1
        shares = [valid.mean().item() for _, valid in network.encoder(torch.randn(1, 3, 64, 64), 1 - hole)]
        assert shares == sorted(shares)
        assert shares[-1] == 1


class TestContextualAttention:
    def naive(self, x: torch.Tensor, corrupted: torch.Tensor, temperature: float) -> torch.Tensor:
        """One position at a time: x (C, h, w), corrupted (h/2, w/2) bool -> (C, h, w)."""
        channels, height, width = x.shape[0], x.shape[1] // 2, x.shape[2] // 2
        half = F.pad(x[:, ::2, ::2], (1, 1, 1, 1))
        full = F.pad(x, (1, 1, 1, 1))
        places = [(i, j) for i in range(height) for j in range(width)]

        def patch(place):
            return half[:, place[0] : place[0] + 3, place[1] : place[1] + 3].flatten()

        def inside(i, j):
            return 0 <= i < height and 0 <= j < width

        cosine = {(a, b): F.cosine_similarity(patch(a), patch(b), dim=0).item() for a in places for b in places}
        along_x = {
            (a, b): sum(
                cosine[(a[0], a[1] + d), (b[0], b[1] + d)]
                for d in (-1, 0, 1)
                if inside(a[0], a[1] + d) and inside(b[0], b[1] + d)
            )
            for a, b in cosine
        }
        score = {
            (a, b): sum(
                along_x[(a[0] + d, a[1]), (b[0] + d, b[1])]
                for d in (-1, 0, 1)
                if inside(a[0] + d, a[1]) and inside(b[0] + d, b[1])
            )
            for a, b in cosine
        }
        touched = F.max_pool2d(corrupted[None].float(), 3, stride=1, padding=1)[0] > 0
        known = [place for place in places if not touched[place]] or places
        out = torch.zeros(channels, 2 * height + 2, 2 * width + 2)
        for i, j in places:
            weights = torch.tensor([temperature * score[(i, j), place] for place in known]).softmax(0)
            mixed = sum(
                w * full[:, 2 * a : 2 * a + 4, 2 * b : 2 * b + 4] for w, (a, b) in zip(weights, known, strict=True)
            )
            out[:, 2 * i : 2 * i + 4, 2 * j : 2 * j + 4] += mixed / 4
        return out[:, 1:-1, 1:-1]

    @pytest.mark.parametrize("share", [0.0, 0.15, 1.0])
    def test_against_a_loop(self, share):
        x = torch.randn(2, 3, 8, 10)
        corrupted = torch.rand(2, 1, 4, 5) < share
        hole = F.interpolate(corrupted.float(), scale_factor=8)
        got = ContextualAttention(temperature=2.0)(x, hole)
        for i in range(2):
            torch.testing.assert_close(got[i], self.naive(x[i], corrupted[i, 0], 2.0))


class TestCTSDG:
    def test_edges_of_a_step(self):
        image = torch.full((1, 3, 12, 12), -0.5)
        image[..., 6:] = 0.5
        edges = edge_map(image)[0, 0]
        assert set(edges.unique().tolist()) == {0, 1}
        assert (edges.sum(1) == 1).all()  # one pixel thin
        assert edges[:, 5:7].sum() == 12
        assert edge_map(torch.randn(1, 3, 1, 1)).item() == 0
        assert torch.equal(edge_map(image.mT)[0, 0], edges.T)

    def test_no_edge_comes_from_the_hole(self):
        """Neither from its outline nor from pixels under it."""
        image = torch.full((1, 3, 16, 16), 0.8)
        hole = torch.zeros(1, 1, 16, 16)
        hole[..., 4:12, 5:11] = 1
        blanked = torch.where(hole > 0, 0, image)
        structure = known_structure(blanked, hole)
        assert (structure[:, 1] == 0).all()
        assert torch.equal(structure[:, :1] != 0, hole == 0)

    def test_streams_cross(self):
        """Each decoder starts from the other stream's features: the structure encoder changes the texture."""
        network = make("ctsdg")
        image, hole = photo()
        visible, padded = network.prepare(image, hole)
        _, coarse, edges = network.streams(visible, padded)
        with torch.no_grad():
            network.structure_encoder.convs[-1].bias += 1
        _, coarse_after, edges_after = network.streams(visible, padded)
        assert not torch.equal(coarse, coarse_after)
        assert torch.equal(edges, edges_after)

    def test_the_structure_has_a_loss(self):
        image, hole = photo()
        _, losses = make("ctsdg").training_losses(image, hole, no_labels(image), LossWeights())
        assert losses["structure"] > 0


class TestPIC:
    def test_kl_of_two_gaussians(self):
        q, p = (Gaussian.of(torch.randn(2, 8, 3, 3)) for _ in range(2))
        expected = expected_kl(Normal(q.mean, q.deviation), Normal(p.mean, p.deviation)).mean()
        torch.testing.assert_close(kl_divergence(q, p), expected)
        torch.testing.assert_close(kl_divergence(q, q), torch.zeros(()), atol=1e-6, rtol=0)

    def test_samples(self):
        x = Gaussian(torch.full((20_000,), 3.0), torch.full((20_000,), 0.5)).sample()
        assert x.mean().item() == pytest.approx(3, abs=0.02)
        assert x.std().item() == pytest.approx(0.5, abs=0.02)

    def test_only_training_sees_what_is_hidden(self):
        network = make("pic")
        image, hole = photo()
        other = torch.where(hole > 0, -image, image)
        torch.manual_seed(1)
        _, first = network.training_losses(image, hole, no_labels(image), LossWeights())
        torch.manual_seed(1)
        _, second = network.training_losses(other, hole, no_labels(image), LossWeights())
        assert first["kl"] != second["kl"]
        assert first["known"] == second["known"]


def no_labels(image: torch.Tensor) -> torch.Tensor:
    return torch.full((len(image), *image.shape[2:]), -1, device=image.device)


def smooth_photo() -> tuple[torch.Tensor, torch.Tensor]:
    image = F.interpolate(torch.rand(2, 3, 4, 4) * 2 - 1, (32, 32), mode="bilinear")
    return image, photo()[1]
