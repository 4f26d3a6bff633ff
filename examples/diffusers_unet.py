"""Masked correlation as the attention of a diffusers UNet that inpaints. Needs `pip install diffusers`.

python examples/diffusers_unet.py --steps 20
"""

import argparse

import torch
from diffusers import UNet2DModel
from torch import Tensor, nn

from showface.nn import MaskRegionEnhancement


class HoleAttention(nn.Module):
    """Takes the place of diffusers' `Attention`: tokens of the hole attend to known tokens only."""

    hole: Tensor | None = None  # (B, 1, H, W), set before each step

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(4, channels)
        self.enhance = MaskRegionEnhancement(channels)

    def forward(self, hidden_states: Tensor, temb: Tensor | None = None) -> Tensor:
        return hidden_states + self.enhance(self.norm(hidden_states), self.hole)


parser = argparse.ArgumentParser(description="Train a tiny diffusion UNet with masked correlation for some steps.")
parser.add_argument("--steps", type=int, default=20)
steps = parser.parse_args().steps

torch.manual_seed(0)
# Its input is the noisy image, the hole, and the image without the hole.
unet = UNet2DModel(sample_size=16, in_channels=7, out_channels=3, block_out_channels=(16, 32), layers_per_block=1,
                   down_block_types=("DownBlock2D", "DownBlock2D"), up_block_types=("UpBlock2D", "UpBlock2D"),
                   norm_num_groups=4, attention_head_dim=8)  # fmt: skip
attention = HoleAttention(32)
unet.mid_block.attentions[0] = attention
optimiser = torch.optim.AdamW(unet.parameters(), lr=1e-3)
image = torch.rand(2, 3, 16, 16) * 2 - 1
attention.hole = hole = torch.zeros(2, 1, 16, 16)
hole[..., 4:12, 4:12] = 1
for _ in range(steps):
    noise, time = torch.randn_like(image), torch.randint(1000, (2,))
    amount = (time / 1000).view(2, 1, 1, 1)
    noisy = (1 - amount) * image + amount * noise
    loss = ((unet(torch.cat([noisy, hole, image * (1 - hole)], 1), time).sample - noise).square() * hole).mean()
    optimiser.zero_grad()
    loss.backward()
    optimiser.step()
print(f"loss {loss.item():.3f}, gradient of the keys {attention.enhance.key.weight.grad.norm().item():.1e}")

features = torch.randn(2, 32, 8, 8).requires_grad_()  # of one token in the hole, by all tokens
(gradient,) = torch.autograd.grad(attention.enhance(features, hole)[..., 3, 3].sum(), features)
reach = gradient.abs().sum(1)
print(
    f"it depends on known tokens: {bool(reach[:, 0, 0].min() > 0)}, on others in the hole: {bool(reach[:, 4, 4].any())}"
)
