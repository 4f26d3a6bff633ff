"""Layers whose `forward` `kernels.kernelize` puts into other people's modules. So they have nothing but a `forward`."""

import torch
from torch import Tensor

from .operators import masked_correlation, memory_read


class MaskedCorrelation(torch.nn.Module):
    """`masked_correlation`, for the place of attention in which corrupted tokens look at known ones."""

    can_torch_compile = True
    has_backward = True

    def forward(self, query: Tensor, key: Tensor, value: Tensor, hole: Tensor, temperature: float | Tensor) -> Tensor:
        return masked_correlation(query, key, value, hole, temperature=temperature)


class MemoryRead(torch.nn.Module):
    """`memory_read`, for the place of a lookup in codebooks."""

    can_torch_compile = True
    has_backward = True

    def forward(self, latent: Tensor, memory: Tensor, region: Tensor, temperature: float | Tensor) -> Tensor:
        return memory_read(latent, memory, region, temperature=temperature)
