"""Perceptual metrics: LPIPS and the Fréchet inception distance.

They need network weights on disk. Nothing is downloaded: if a file is missing, the error says where to get it.
"""

from __future__ import annotations

import pickle
from copy import deepcopy
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from showface.files import existing_file

Key = tuple[str, str, str]

_ALEXNET = "https://download.pytorch.org/models/alexnet-owt-7be5be79.pth"
_INCEPTION = (
    "https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/weights-inception-2015-12-05-6726825d.pth"
)


class LPIPS:
    """Learned perceptual image patch similarity (Zhang et al., 2018), version 0.1 on AlexNet; lower is better.

        lpips = LPIPS("alexnet-owt-7be5be79.pth")
        distance = lpips(result, target)        # (H, W, 3) uint8 each

    Args:
        weights: file with the state dict of torchvision's AlexNet. The weights that LPIPS gives to its
            channels come with torchmetrics.

    Raises:
        FileNotFoundError: no such file; the message says where to get it.
        ModuleNotFoundError: torchmetrics is not installed.
        ValueError: the file holds other weights.
    """

    # Index in torchvision's model, input and output channels, kernel, stride and padding of AlexNet's convolutions.
    _LAYERS = (
        (0, 3, 64, 11, 4, 2),
        (3, 64, 192, 5, 1, 2),
        (6, 192, 384, 3, 1, 1),
        (8, 384, 256, 3, 1, 1),
        (10, 256, 256, 3, 1, 1),
    )
    _MEAN, _STD = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)

    def __init__(self, weights: str | Path) -> None:
        path = existing_file(weights, "LPIPS needs AlexNet's weights", _ALEXNET)
        importance = _lpips_importance()
        try:
            state = torch.load(path, map_location="cpu", weights_only=True)
            self._convolutions = []
            for place, inputs, outputs, kernel, stride, padding in self._LAYERS:
                layer = nn.Conv2d(inputs, outputs, kernel, stride, padding)
                layer.load_state_dict({name: state[f"features.{place}.{name}"] for name in ("weight", "bias")})
                self._convolutions.append(layer.eval().requires_grad_(False))
            self._importance = [importance[f"lin{i}.model.1.weight"] for i in range(5)]  # (1, channels, 1, 1) each
        except Exception as error:  # torch.load raises as many kinds of errors as there are kinds of files
            raise ValueError(f"{path} does not hold torchvision's AlexNet: {_problem(error)}") from error

    @torch.no_grad()
    def __call__(self, result: npt.NDArray[np.uint8], target: npt.NDArray[np.uint8]) -> float:
        """The distance between two images (H, W, 3) uint8, each at least 63 pixels wide and high."""
        distance = torch.zeros(())
        layers = zip(self._features(result), self._features(target), self._importance, strict=True)
        for x, y, importance in layers:
            difference = F.normalize(x, dim=1, eps=1e-10) - F.normalize(y, dim=1, eps=1e-10)
            distance = distance + (importance * difference.square()).sum(1).mean()
        return float(distance)

    def _features(self, image: npt.NDArray[np.uint8]) -> list[Tensor]:
        x = torch.from_numpy(image.astype(np.float32)).permute(2, 0, 1)[None] / 127.5 - 1
        x = (x - torch.tensor(self._MEAN).view(1, 3, 1, 1)) / torch.tensor(self._STD).view(1, 3, 1, 1)
        features = []
        for number, layer in enumerate(self._convolutions):
            if number in (1, 2):
                x = F.max_pool2d(x, 3, 2)
            x = layer(x).relu()
            features.append(x)
        return features


class FrechetDistances:
    """Fréchet inception distances (Heusel et al., 2017) between composites and targets; lower is better.

    They are computed with torchmetrics.

    Args:
        weights: file with torch-fidelity's Inception-v3; or another feature extractor, a module (B, 3, H, W) uint8 ->
            (B, F). The distances of another extractor must not be called FID.

    Raises:
        FileNotFoundError: no such file; the message says where to get it.
        ModuleNotFoundError: torchmetrics or torch-fidelity is not installed.
        ValueError: the file holds other weights.
    """

    def __init__(self, weights: str | Path | nn.Module) -> None:
        if isinstance(weights, nn.Module):
            self._extractor = weights
        else:
            path = existing_file(weights, "FID needs Inception's weights", _INCEPTION)
            for package in ("torchmetrics", "torch_fidelity"):
                if find_spec(package) is None:
                    raise ModuleNotFoundError(f"FID needs {package}: install 'showface[fid]'")
            from torchmetrics.image.fid import NoTrainInceptionV3

            try:
                self._extractor = NoTrainInceptionV3("inception-v3-compat", ["2048"], str(path))
            except Exception as error:  # torch.load raises as many kinds of errors as there are kinds of files
                raise ValueError(f"{path} does not hold torch-fidelity's Inception: {_problem(error)}") from error
        self._metrics: dict[Key, Any] = {}

    def add(self, key: Key, composite: npt.NDArray[np.uint8], target: npt.NDArray[np.uint8]) -> None:
        """Add a composite and its target, (H, W, 3) uint8 each, under a key of system, image set and bin."""
        if key not in self._metrics:
            from torchmetrics.image.fid import FrechetInceptionDistance

            metric = FrechetInceptionDistance(feature=self._extractor)
            self._metrics[key] = metric.set_dtype(torch.float64)
        for image, real in ((composite, False), (target, True)):
            self._metrics[key].update(torch.from_numpy(image).permute(2, 0, 1)[None], real=real)

    def distance(self, *keys: Key) -> float | None:
        """The distance over all images under these keys; None for fewer than two images."""
        metrics = [self._metrics[key] for key in keys if key in self._metrics]
        if sum(int(metric.fake_features_num_samples) for metric in metrics) < 2:
            return None
        whole = deepcopy(metrics[0])
        for metric in metrics[1:]:
            for name in metric._defaults:
                setattr(whole, name, getattr(whole, name) + getattr(metric, name))
        return float(whole.compute())


def _problem(error: Exception) -> str:
    """An error of `torch.load`, or of using what it gave, in one line."""
    if isinstance(error, pickle.UnpicklingError):
        return "it is no file of weights"  # torch's own message advises to run the file's code
    if isinstance(error, KeyError):
        return f"it has no {error}"
    return (str(error) or type(error).__name__).splitlines()[0]


def _lpips_importance() -> dict[str, Tensor]:
    spec = find_spec("torchmetrics")
    if spec is None or spec.origin is None:
        raise ModuleNotFoundError("LPIPS needs torchmetrics: install 'showface[evaluate]'")
    path = Path(spec.origin).parent / "functional" / "image" / "lpips_models" / "alex.pth"
    state: dict[str, Tensor] = torch.load(path, map_location="cpu", weights_only=True)
    return state
