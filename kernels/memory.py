"""The memory in Triton: attention of tokens to the slots of their region's block, the sums for a write, the blend."""

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from showface.kernels import launch
from showface.kernels.rows import load_rows, store_rows
from showface.kernels.tiles import round_up
from showface.kernels.tokens import sort_tokens


@triton.jit
def memory_blend_kernel(
    memory_ptr,  # (rows, C)
    mass_ptr,  # (rows,)
    total_ptr,  # (rows, C)
    log_keep_ptr,  # () float64, used instead of log_keep; or None
    out_ptr,  # (rows, C)
    log_keep,  # log(1 - rate)
    rows,
    channels,
    ACCUMULATE: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    first = tl.program_id(0).to(tl.int64) * BLOCK_M
    column = tl.program_id(1) * BLOCK_C
    row = tl.arange(0, BLOCK_M)
    exists = first + row < rows
    mass = tl.load(mass_ptr + first + row, mask=exists, other=0.0).to(ACCUMULATE)
    if log_keep_ptr is not None:
        log_keep = tl.load(log_keep_ptr)
    # gain = 1 - exp(power). For small powers a series avoids cancellation.
    power = mass * log_keep
    small = tl.maximum(power, -1.0)
    series = tl.full((BLOCK_M,), 1.0, ACCUMULATE)
    for i in tl.static_range(18):
        series = 1 + series * small / (19 - i)
    gain = tl.where(power < -1.0, 1 - tl.exp(power), -small * series)
    old = load_rows(memory_ptr + first * channels, row, exists, channels, column, BLOCK_C)
    total = load_rows(total_ptr + first * channels, row, exists, channels, column, BLOCK_C).to(ACCUMULATE)
    wide = old.to(ACCUMULATE)
    mean = total / tl.where(mass > 0, mass, 1.0)[:, None]
    new = (wide + gain[:, None] * (mean - wide)).to(old.dtype)
    new = tl.where((mass > 0)[:, None], new, old)
    store_rows(out_ptr + first * channels, row, exists, channels, column, new, BLOCK_C)


def _groups(memory: Tensor, region: Tensor) -> launch.Groups:
    """The tokens of each region are a group, the slots of the region's block its keys."""
    blocks, slots, _ = memory.shape
    return launch.Groups(*sort_tokens(region[None], blocks), blocks, False, slots)


def memory_attend(
    latent: Tensor, memory: Tensor, value: Tensor | None, region: Tensor, temperature: Tensor | None, scale: float
) -> tuple[Tensor, Tensor]:
    """Read the memory: out[t] = sum over s of a[t,s] * value[region[t],s], see `showface.ops.definitions`.

    Args:
        latent: (T, C), float16, bfloat16, float32 or float64.
        memory: (K, S, C).
        value: (K, S, V), or None if the slots are the values.
        region: (T,) int64; tokens with a region outside 0..K-1 get zeros.
        temperature: () of any floating-point dtype, or None for 1.
        scale: a factor of the temperature.

    Returns:
        out (T, V), and lse (T,), float32 (float64 for float64): the log-sum-exp (base 2) of each token's scores. Sums
        are accumulated in the dtype of lse.
    """
    value = memory if value is None else value
    with launch.on_device_of(latent):
        n = launch.numbers(latent, temperature, scale)
        if len(latent) == 0:
            return latent.new_empty((0, value.shape[2])), latent.new_empty((0,), dtype=n.wide)
        groups = _groups(memory, region)
        query, key = latent[None].contiguous(), memory.contiguous()
        out, lse = launch.attend(query, key, value.contiguous(), groups, launch.norms_of(query, key, n), n)
    return out[0], lse[0]


def memory_attend_backward(
    grad: Tensor,
    latent: Tensor,
    memory: Tensor,
    value: Tensor | None,
    region: Tensor,
    out: Tensor,
    lse: Tensor,
    temperature: Tensor | None,
    scale: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The gradients of latent, memory and value, each in its dtype, and of `scale * temperature`, in the dtype of lse.

    The arguments are the gradient of `out`, and the arguments and results of the forward. Without value, the gradient
    of memory includes that of the values, and the gradient of value has no elements.
    """
    nothing = memory.new_empty((0,))
    if len(latent) == 0:
        to_value = nothing if value is None else torch.zeros_like(value)
        return torch.empty_like(latent), torch.zeros_like(memory), to_value, lse.new_zeros(())
    with launch.on_device_of(latent):
        n = launch.numbers(latent, temperature, scale)
        grad_latent, grad_memory, grad_value, grad_tau = launch.attend_backward(
            grad[None].contiguous(),
            latent[None].contiguous(),
            memory.contiguous(),
            None if value is None else value.contiguous(),
            _groups(memory, region),
            out[None].contiguous(),
            lse[None].contiguous(),
            n,
        )
    return grad_latent[0], grad_memory, nothing if grad_value is None else grad_value, grad_tau


def memory_accumulate(
    latent: Tensor, memory: Tensor, region: Tensor, temperature: Tensor | None, scale: float
) -> tuple[Tensor, Tensor]:
    """rho (K, S) and total (K, S, C): the sums of a[t,s] and of a[t,s] * latent[t] over the tokens of each region.

    Arguments as in `memory_attend`. Both are float32 (float64 for float64), and exactly 0 for a region without tokens.
    """
    with launch.on_device_of(latent):
        n = launch.numbers(latent, temperature, scale)
        if len(latent) == 0:
            return memory.new_zeros(memory.shape[:2], dtype=n.wide), memory.new_zeros(memory.shape, dtype=n.wide)
        groups = _groups(memory, region)
        query, key = latent[None].contiguous(), memory.contiguous()
        norms = launch.norms_of(query, key, n)
        _, lse = launch.attend(query, key, None, groups, norms, n)
        return launch.accumulate(query, key, groups, norms, lse, n)


def memory_blend(memory: Tensor, rho: Tensor, total: Tensor, rate: float) -> Tensor:
    """memory + g * (total / rho - memory) with g = 1 - (1 - rate) ** rho. Where rho is 0, the bits do not change.

    Args:
        memory: (K, S, C).
        rho, total: (K, S) and (K, S, C), of `memory_accumulate`.
        rate: in (0, 1).
    """
    out = torch.empty(memory.shape, dtype=memory.dtype, device=memory.device)
    if out.numel() == 0:
        return out
    channels, rows = memory.shape[2], rho.numel()
    log_keep, double = math.log1p(-rate), rho.dtype == torch.float64
    block = min(128, round_up(channels))
    with launch.on_device_of(memory):
        memory_blend_kernel[(triton.cdiv(rows, 16), triton.cdiv(channels, block))](
            memory.contiguous(),
            rho.contiguous(),
            total.contiguous(),
            # Triton passes Python floats as float32; a tensor keeps float64.
            torch.full((), log_keep, dtype=torch.float64, device=memory.device) if double else None,
            out,
            log_keep,
            rows,
            channels,
            ACCUMULATE=tl.float64 if double else tl.float32,
            BLOCK_M=16,
            BLOCK_C=block,
        )
    return out
