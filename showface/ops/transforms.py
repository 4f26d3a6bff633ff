"""The operators under forward-mode differentiation and under the transforms of `torch.func`.

The kernels only have gradients for `backward`. With `torch.func` (`jvp`, `jacfwd`, `grad`, `hessian`, `vmap`, ...) or
`torch.autograd.forward_ad`, `showface.ops` calls the functions of this module instead. They are plain PyTorch without
branches on values, so torch can transform them, also twice. They store all weights, so they need more memory than the
kernels. They can't read values, so a region outside 0..K-1 counts as -1. Autocast converts their arguments to the same
dtypes as the operators'. `showface.export` uses `dense_correlation` too.

Source: *ours*.
"""

import torch
from torch import Tensor
from torch._C import _functorch
from torch.autograd import forward_ad

from showface.ops import definitions
from showface.ops.backends import reference
from showface.ops.definitions import unit
from showface.ops.precision import as_autocast, full_precision, temperature_factor, widen


def is_needed(op: str, backend: str, *tensors: Tensor | None) -> bool:
    """Whether a transform of `torch.func`, or forward-mode differentiation of one of these tensors, is at work.

    Raises:
        RuntimeError: it is, but a backend was named that has only kernels. The message names `op`.
    """
    needed = _functorch.maybe_current_level() is not None
    if forward_ad._current_level >= 0 and not needed:
        needed = any(x is not None and forward_ad.unpack_dual(x).tangent is not None for x in tensors)
    if needed and backend not in ("auto", "reference"):
        raise RuntimeError(
            f"showface.ops.{op}: backend {backend!r} has no forward-mode derivatives and no transforms of torch.func: "
            "use backend='auto' or 'reference'"
        )
    return needed


def memory_read(latent: Tensor, memory: Tensor, region: Tensor, temperature: Tensor | None, scale: float) -> Tensor:
    """`showface.ops.memory_read`, with the temperature in two factors."""
    latent, memory = as_autocast(latent, memory)
    z, m, region = _address(latent, memory, region)
    with full_precision(z):
        out = definitions.memory_read(z, m, region, temperature_factor(temperature, scale, z))
    return out.to(latent.dtype)


def memory_accumulate(
    latent: Tensor, memory: Tensor, region: Tensor, temperature: Tensor | None, scale: float
) -> tuple[Tensor, Tensor]:
    """`showface.ops.memory_accumulate`, with the temperature in two factors."""
    latent, memory = as_autocast(latent, memory, dtype=torch.float32)
    z, m, region = _address(latent, memory, region)
    with full_precision(z):
        return definitions.memory_accumulate(z, m, region, temperature_factor(temperature, scale, z))


def memory_write(
    latent: Tensor, memory: Tensor, region: Tensor, temperature: Tensor | None, scale: float, rate: float
) -> tuple[Tensor, Tensor]:
    """`showface.ops.memory_write`, with the temperature in two factors."""
    latent, memory = as_autocast(latent, memory, dtype=torch.float32)
    rho, total = memory_accumulate(latent, memory, region, temperature, scale)
    return memory_blend(memory, rho, total, rate), rho


def memory_blend(memory: Tensor, rho: Tensor, total: Tensor, rate: float) -> Tensor:
    """`showface.ops.memory_blend`."""
    m, mass, sums = widen(memory, rho, total)
    return definitions.memory_blend(m, mass, sums, rate).to(memory.dtype)


def _address(latent: Tensor, memory: Tensor, region: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Latents and memory in the dtype to compute in, and regions of which all are -1 to K-1."""
    region = torch.where(region < memory.shape[0], region, -1)
    z, m = widen(latent, memory)
    # A NaN in a latent without a region would reach the gradients: 0 times NaN is NaN.
    return torch.where((region < 0)[:, None], 1, z), m, region


def masked_correlation(
    query: Tensor, key: Tensor, value: Tensor, hole: Tensor, temperature: Tensor | None, scale: float, keys: str
) -> Tensor:
    """`showface.ops.masked_correlation`, with the temperature in two factors. It computes all N x N weights."""
    query, key, value = as_autocast(query, key, value)
    return dense_correlation(query, key, value, hole, temperature, scale, keys)[0]


def dense_correlation(
    query: Tensor, key: Tensor, value: Tensor, hole: Tensor, temperature: Tensor | None, scale: float, keys: str
) -> tuple[Tensor, Tensor]:
    """The result of `masked_correlation` (B, N, Cv), and the logits of its corrupted rows (B, N, N).

    Logits of tokens that are no keys are -inf, unless the image has no keys.
    """
    q, k, v = widen(query, key, value)
    is_key = reference.is_key(hole, keys)
    has_key = is_key.any(-1)[:, None, None]
    # Tokens that take no part must not reach the gradients, whatever they hold.
    q, k = torch.where(hole[..., None], q, 1), torch.where(is_key[..., None], k, 1)
    v = torch.where(is_key[..., None], v, 0)
    with full_precision(q):
        logits = (temperature_factor(temperature, scale, q) * unit(q)) @ unit(k).mT
        # Without any key a row would be NaN, and so would its gradient.
        logits = torch.where(is_key[:, None] | ~has_key, logits, -torch.inf)
        out = torch.softmax(logits, dim=-1) @ v
    return torch.where(hole[..., None] & has_key, out, 0).to(value.dtype), logits


def coordination_loss(features: Tensor, target: Tensor, hole: Tensor) -> tuple[Tensor, Tensor]:
    """`showface.ops.coordination_loss`: the reference's forward, which is out of place and has no branches."""
    f, g = widen(*as_autocast(features, target, dtype=torch.float32))
    with full_precision(f):
        return reference.coordination_loss(f, g, hole)
