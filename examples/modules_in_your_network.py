"""The two modules of the method in a small network of your own, trained for some steps on the bundled portrait.

python examples/modules_in_your_network.py --steps 50
"""

import argparse
from importlib.resources import as_file, files

import numpy as np
import torch
from torch import Tensor, nn

from showface.data import image_to_tensor, random_hole, read_image
from showface.nn import DisentangledMemory, MaskRegionEnhancement


class YourNetwork(nn.Module):
    """An encoder and a decoder at stride 4, with the memory and the enhancement between them."""

    def __init__(self, channels: int = 32, regions: int = 19) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Conv2d(4, channels, 8, stride=4, padding=2), nn.ELU())
        self.parsing = nn.Sequential(nn.Conv2d(channels, regions, 1), nn.Softmax(dim=1))
        self.memory = DisentangledMemory(channels, regions, slots=8)
        self.enhance = MaskRegionEnhancement(channels, memory_channels=channels)
        self.decoder = nn.Sequential(nn.Conv2d(channels, 3 * 16, 3, padding=1), nn.PixelShuffle(4), nn.Tanh())

    def encode(self, image: Tensor, hole: Tensor) -> Tensor:
        return self.encoder(torch.cat([image * (1 - hole), hole], dim=1))

    def forward(self, image: Tensor, hole: Tensor) -> Tensor:  # (B, 3, H, W), (B, 1, H, W) -> (B, 3, H, W)
        features = self.encode(image, hole)
        recalled = self.memory(features, self.parsing(features))  # each part of the face reads its own block
        fill = self.decoder(self.enhance(features, hole, recalled))  # corrupted tokens attend to known ones
        return torch.where(hole.bool(), fill, image)


parser = argparse.ArgumentParser(description="Train a small network that uses showface's modules.")
parser.add_argument("--steps", type=int, default=50)
steps = parser.parse_args().steps

with as_file(files("showface") / "assets" / "demo" / "portrait.png") as path:
    image = image_to_tensor(read_image(path).resize((64, 64)))[None]
torch.manual_seed(0)
rng = np.random.default_rng(0)
network = YourNetwork()
optimiser = torch.optim.AdamW(network.parameters(), lr=2e-3)
for step in range(steps):
    hole = torch.from_numpy(random_hole(64, 64, rng)).float()[None, None]
    loss = (network(image, hole) - image).abs().sum() / hole.sum() / 3
    optimiser.zero_grad()
    loss.backward()
    optimiser.step()
    clean = network.encode(image, torch.zeros_like(hole))  # the memory stores parts of uncorrupted images
    network.memory.write(clean, network.parsing(clean))  # changes buffers, has no gradient
    if step % 10 == 0 or step == steps - 1:
        print(f"step {step}: L1 in the hole {loss.item():.3f}")
