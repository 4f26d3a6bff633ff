"""The definition of every operator in plain PyTorch: the specification.

Each function is written for readability, not speed. Autograd differentiates it in every floating-point argument. All
kernels are tested against these functions. The definitions are *ours*; the poster names the parts
(disentangled memory, masked correlation mining, InCo² loss) and gives no equation.

Shapes: T tokens, K regions (one memory block each), S slots a block, C channels, B images, N tokens an image.
A *temperature* multiplies a cosine: larger is sharper.
"""

import math

import torch
from torch import Tensor

EPSILON = 1e-6


def unit(x: Tensor) -> Tensor:
    """`x / max(|x|, 1e-6)` over the last dimension; a zero vector stays zero, with a finite gradient."""
    return x / torch.linalg.vector_norm(x, dim=-1, keepdim=True).clamp_min(EPSILON)


def memory_address(
    latent: Tensor,  # (T, C)
    memory: Tensor,  # (K, S, C)
    region: Tensor,  # (T,) int64, -1 = no region
    temperature: float | Tensor,
) -> Tensor:  # (T, S)
    """a[t,s] = softmax over s of temperature * <unit(latent[t]), unit(memory[region[t], s])>; zeros for region -1."""
    block = unit(memory)[region.clamp_min(0)]  # (T, S, C)
    cosine = torch.einsum("tc,tsc->ts", unit(latent), block)
    address = torch.softmax(temperature * cosine, dim=-1)
    return address.masked_fill((region < 0)[:, None], 0)


def memory_read(latent: Tensor, memory: Tensor, region: Tensor, temperature: float | Tensor) -> Tensor:
    """out[t] = sum over s of a[t,s] * memory[region[t], s]: (T, C)."""
    address = memory_address(latent, memory, region, temperature)
    out = torch.einsum("ts,tsc->tc", address, memory[region.clamp_min(0)])
    # Zero weights alone are not enough: 0 times a NaN or infinity in block 0 is NaN.
    return out.masked_fill((region < 0)[:, None], 0)


def memory_accumulate(
    latent: Tensor, memory: Tensor, region: Tensor, temperature: float | Tensor
) -> tuple[Tensor, Tensor]:
    """The first half of a write: the mass rho (K, S) that landed in each slot, and the weighted sum (K, S, C).

    Both are plain sums over tokens, so processes add theirs before `memory_blend`.
    """
    regions = memory.shape[0]
    address = memory_address(latent, memory, region, temperature)
    # (T, K): which block each token writes to; an all-zero row for region -1.
    member = (region[:, None] == torch.arange(regions, device=region.device)).to(address.dtype)
    rho = torch.einsum("tk,ts->ks", member, address)
    total = torch.einsum("tk,ts,tc->ksc", member, address, latent)
    return rho, total


def memory_blend(memory: Tensor, rho: Tensor, total: Tensor, rate: float) -> Tensor:
    """The second half of a write: (K, S, C).

    m' = m + g * (total / rho - m) with g = 1 - (1 - rate) ** rho, which equals an exponential average of `rate`
    applied once per unit of mass. A slot without mass keeps its exact bits.
    """
    written = (rho > 0)[..., None]
    gain = -torch.expm1(rho[..., None] * math.log1p(-rate))  # 1 - (1 - rate) ** rho, exact for a small rho too
    # Divide by 1 where there is no mass: 0 / 0 would put a NaN into the gradient even though `where` drops it.
    mean = total / torch.where(written, rho[..., None], 1)
    return torch.where(written, memory + gain * (mean - memory), memory)


def memory_write(
    latent: Tensor, memory: Tensor, region: Tensor, temperature: float | Tensor, rate: float
) -> tuple[Tensor, Tensor]:
    """The memory after the tokens were written (K, S, C), and rho (K, S), the mass that each slot received."""
    rho, total = memory_accumulate(latent, memory, region, temperature)
    return memory_blend(memory, rho, total, rate), rho


def masked_correlation(
    query: Tensor,  # (B, N, C)
    key: Tensor,  # (B, N, C)
    value: Tensor,  # (B, N, Cv)
    hole: Tensor,  # (B, N) bool, True = corrupted
    temperature: float | Tensor,
    keys: str = "valid",  # "valid": known tokens only; "all": every token
) -> Tensor:  # (B, N, Cv)
    """out[b,i] = sum over keys j of softmax_j(temperature * <unit(q_i), unit(k_j)>) * v_j for corrupted i, else 0.

    An image without any key gives zeros.
    """
    outputs = []
    for q, k, v, corrupted in zip(unit(query), unit(key), value, hole, strict=True):
        source = ~corrupted if keys == "valid" else torch.ones_like(corrupted)
        out = torch.zeros_like(v)
        if source.any():
            correlation = torch.softmax(temperature * (q[corrupted] @ k[source].T), dim=-1)
            out = out.index_put((corrupted,), correlation @ v[source])
        outputs.append(out)
    return torch.stack(outputs) if outputs else torch.zeros_like(value)


def coordination_loss(features: Tensor, target: Tensor, hole: Tensor) -> tuple[Tensor, Tensor]:
    """InCo² loss, computed from the full (N, N) matrix that defines it: two scalars, inter and intra.

    With D[i,j] = <f_i, f_j> - <g_i, g_j> of unit features f (result) and g (target):
    inter = mean of D² over i corrupted, j known; intra = mean of D² over i, j corrupted; each is the mean over the
    images that have such pairs, and 0 if none has.
    """
    inter, intra = [], []
    for f, g, corrupted in zip(unit(features), unit(target), hole, strict=True):
        difference = (f @ f.T - g @ g.T).square()
        across = difference[corrupted][:, ~corrupted]
        within = difference[corrupted][:, corrupted]
        if across.numel():
            inter.append(across.mean())
        if within.numel():
            intra.append(within.mean())
    # A zero that still depends on the inputs keeps backward() valid when no image has such pairs.
    nothing = 0 * (features.sum() + target.sum())
    return (
        torch.stack(inter).mean() if inter else nothing,
        torch.stack(intra).mean() if intra else nothing,
    )
