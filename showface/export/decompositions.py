"""The operators that networks call in `forward`, as dense plain PyTorch, for programs that know only torch's operators.

They compute what `showface.ops.definitions` defines. `masked_correlation` is written without a loop over images and
without selecting tokens, so that one graph holds for every hole. It costs N x N for N tokens instead of
|corrupted| x |keys|. Source: *ours*.
"""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from showface.ops.definitions import unit
from showface.ops.precision import temperature_factor, widen
from showface.ops.transforms import dense_correlation


def read_with_lse(
    latent: Tensor, memory: Tensor, region: Tensor, temperature: Tensor | None, scale: float, backend: str = "auto"
) -> tuple[Tensor, Tensor]:
    """`memory_read_with_lse`: the values read (T, C), and the log-sum-exp of each token, base 2 (T,)."""
    z, m = widen(latent, memory)
    tau = temperature_factor(temperature, scale, z)
    nowhere = (region < 0)[:, None]
    block = m[region.clamp_min(0)]  # (T, S, C)
    logits = tau * (unit(block) @ unit(z)[..., None])[..., 0]  # (T, S)
    out = (torch.softmax(logits, dim=-1)[:, None] @ block)[:, 0]
    lse = torch.logsumexp(logits, dim=-1) / math.log(2)
    return torch.where(nowhere, 0, out).to(latent.dtype), torch.where(nowhere[:, 0], 0, lse)


def correlation_with_lse(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    hole: Tensor,
    temperature: Tensor | None,
    scale: float,
    keys: str,
    backend: str = "auto",
) -> tuple[Tensor, Tensor]:
    """`masked_correlation_with_lse`: the output (B, N, Cv), and the log-sum-exp of each token, base 2 (B, N)."""
    out, logits = dense_correlation(query, key, value, hole, temperature, scale, keys)
    answered = hole & ~hole.all(dim=1, keepdim=True) if keys == "valid" else hole
    lse = torch.logsumexp(logits, dim=-1) / math.log(2)
    return out, torch.where(answered, lse, 0)


def decompositions() -> dict[Any, Callable[..., Any]]:
    """A table for `ExportedProgram.run_decompositions`, which leaves torch's own operators as they are."""
    ours = torch.ops.showface
    return {
        ours.memory_read.default: lambda *args: read_with_lse(*args)[0],
        ours.memory_read_with_lse.default: read_with_lse,
        ours.masked_correlation.default: lambda *args: correlation_with_lse(*args)[0],
        ours.masked_correlation_with_lse.default: correlation_with_lse,
    }
