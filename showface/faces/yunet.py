"""YuNet, a small network that finds faces and five points on each (Wu, Peng and Yu 2023), in plain PyTorch.

The weights are those of OpenCV Zoo's `face_detection_yunet_2023mar.onnx`, which `tools/convert_yunet.py` converted.
"""

from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn

WEIGHTS = Path(__file__).parent.parent / "assets" / "faces" / "yunet.safetensors"
STRIDES = (8, 16, 32)
POINTS = 5


class Unit(nn.Sequential):
    """A 1x1 convolution, a 3x3 convolution of each channel by itself, and a ReLU that may be left out."""

    def __init__(self, width: int, out: int, relu: bool = True) -> None:
        layers = [nn.Conv2d(width, out, 1), nn.Conv2d(out, out, 3, padding=1, groups=out)]
        super().__init__(*layers, *([nn.ReLU()] if relu else []))


class YuNet(nn.Module):
    """The network: a backbone, a feature pyramid, and four outputs at each of the strides 8, 16 and 32.

    The convolutions are defined in the order in which the ONNX file has them, by which its weights are converted.
    """

    def __init__(self) -> None:
        super().__init__()
        stem = [nn.Conv2d(3, 16, 3, stride=2, padding=1), nn.ReLU(), Unit(16, 16), nn.MaxPool2d(2)]
        self.fine = nn.Sequential(
            *stem, Unit(16, 16), Unit(16, 32), Unit(32, 32), Unit(32, 64), nn.MaxPool2d(2), Unit(64, 64), Unit(64, 64)
        )
        self.middle = nn.Sequential(nn.MaxPool2d(2), Unit(64, 64), Unit(64, 64))
        self.coarse = nn.Sequential(nn.MaxPool2d(2), Unit(64, 64), Unit(64, 64))
        self.lateral = nn.ModuleList(Unit(64, 64) for _ in STRIDES)  # from coarse to fine
        self.heads = nn.ModuleDict(
            {
                name: nn.ModuleList(Unit(64, width, relu=False) for _ in STRIDES)
                for name, width in (("face", 1), ("box", 4), ("object", 1), ("points", 2 * POINTS))
            }
        )

    @classmethod
    def bundled(cls) -> "YuNet":
        """The network with the bundled weights, in eval mode, on the CPU."""
        network = cls()
        network.load_state_dict(load_file(WEIGHTS))
        return network.eval().requires_grad_(False)

    def forward(self, pictures: Tensor) -> Tensor:
        """Score every place of the pictures.

        Args:
            pictures: (B, 3, H, W) float, RGB, 0 to 255, H and W multiples of 32.

        Returns:
            (B, N, 15), N = HW/64 + HW/256 + HW/1024: the box (left, top, right, bottom), the points as x, y pairs, all
            in pixels of the picture, and the score, 0 to 1.
        """
        fine = self.fine(pictures.flip(1))  # the network was trained with BGR
        middle = self.middle(fine)
        coarse = self.lateral[0](self.coarse(middle))
        middle = self.lateral[1](middle + F.interpolate(coarse, scale_factor=2.0, mode="nearest"))
        fine = self.lateral[2](fine + F.interpolate(middle, scale_factor=2.0, mode="nearest"))
        levels = []
        for level, features in enumerate((fine, middle, coarse)):
            raw = {name: heads[level](features) for name, heads in self.heads.items()}  # type: ignore[index]
            levels.append(_decode(raw, STRIDES[level]))
        return torch.cat(levels, dim=1)


def _decode(raw: dict[str, Tensor], stride: int) -> Tensor:
    """One level's outputs (B, C, h, w) as rows (B, hw, 15), as OpenCV's FaceDetectorYN decodes them."""
    height, width = raw["face"].shape[-2:]
    y = torch.arange(height, device=raw["face"].device, dtype=torch.float32)[:, None].expand(height, width)
    x = torch.arange(width, device=raw["face"].device, dtype=torch.float32)[None, :].expand(height, width)
    place = torch.stack((x, y))  # (2, h, w)
    centre = (raw["box"][:, :2] + place) * stride
    half = raw["box"][:, 2:].exp() * (stride / 2)
    points = (raw["points"] + place.repeat(POINTS, 1, 1)) * stride
    score = (raw["face"].sigmoid() * raw["object"].sigmoid()).sqrt()
    return torch.cat((centre - half, centre + half, points, score), dim=1).flatten(2).transpose(1, 2)
