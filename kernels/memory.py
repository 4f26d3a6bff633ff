"""memory_read in Triton: one program for each token."""

from contextlib import nullcontext

import torch
import triton
import triton.language as tl
from torch import Tensor

from showface.kernels.rows import MIN_NORM

# How many numbers of a memory block a program holds at once: 32 for each thread of 4 warps. With twice as many,
# float64 no longer fits the registers and float32 takes 200 of them, which halves the programs that run side by side.
TILE = 4096


@triton.jit
def memory_read_fwd_kernel(
    latent_ptr,  # (T, C)
    memory_ptr,  # (K, S, C)
    region_ptr,  # (T,)
    temperature_ptr,  # () or None
    out_ptr,  # (T, C)
    scale,
    regions,
    slots,
    channels,
    ACCUMULATE: tl.constexpr,
    BLOCK_S: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    token = tl.program_id(0).to(tl.int64)
    region = tl.load(region_ptr + token)
    # A token without a region reads a block of no slots, that is zeros.
    stored = tl.where((region >= 0) & (region < regions), slots, 0)

    c = tl.arange(0, BLOCK_C)
    in_row = c < channels
    latent = tl.load(latent_ptr + token * channels + c, mask=in_row, other=0.0).to(ACCUMULATE)
    norm = tl.sqrt(tl.sum(latent * latent, axis=0))
    temperature = scale + tl.zeros_like(norm)
    if temperature_ptr is not None:
        temperature *= tl.load(temperature_ptr).to(ACCUMULATE)
    latent *= temperature / tl.maximum(norm, MIN_NORM)

    # Softmax and weighted sum in one pass over the slots: what was summed so far is rescaled when the peak rises.
    peak = tl.zeros_like(norm) - float("inf")
    total = tl.zeros_like(norm)
    mixed = tl.zeros_like(latent)
    block_ptr = memory_ptr + region * slots * channels
    for first in range(0, slots, BLOCK_S):
        s = first + tl.arange(0, BLOCK_S)
        in_block = s < slots
        tile = tl.load(
            block_ptr + s[:, None].to(tl.int64) * channels + c[None, :],
            mask=(s < stored)[:, None] & in_row[None, :],
            other=0.0,
        ).to(ACCUMULATE)
        slot_norm = tl.maximum(tl.sqrt(tl.sum(tile * tile, axis=1)), MIN_NORM)
        score = tl.sum(tile * latent[None, :], axis=1) / slot_norm
        score = tl.where(in_block, score, -float("inf"))
        new_peak = tl.maximum(peak, tl.max(score, axis=0))
        keep = tl.exp(peak - new_peak)
        weight = tl.exp(score - new_peak)
        total = total * keep + tl.sum(weight, axis=0)
        mixed = mixed * keep + tl.sum(weight[:, None] * tile, axis=0)
        peak = new_peak
    # Without a region the tiles were zeros, and so is `mixed`.
    tl.store(out_ptr + token * channels + c, (mixed / total).to(out_ptr.dtype.element_ty), mask=in_row)


def read_blocks(slots: int, channels: int) -> dict[str, int]:
    """The sizes that `memory_read_fwd_kernel` is compiled for, to read blocks of this shape."""
    block_c = triton.next_power_of_2(channels)
    return {"BLOCK_S": min(triton.next_power_of_2(slots), max(1, TILE // block_c)), "BLOCK_C": block_c}


def memory_read(latent: Tensor, memory: Tensor, region: Tensor, temperature: Tensor | None, scale: float) -> Tensor:
    """Read the memory: out[t] = sum over s of a[t,s] * memory[region[t],s], see `showface.ops.definitions`.

    Args:
        latent: (T, C), float16, bfloat16, float32 or float64.
        memory: (K, S, C), of the same dtype and on the same device.
        region: (T,) int64; a token with a region outside 0..K-1 reads zeros.
        temperature: a 0-d tensor of any floating-point dtype on the same device, or None for 1.
        scale: a factor on the temperature.

    Returns:
        (T, C), of the dtype of `latent`. float16 and bfloat16 are accumulated in float32.
    """
    regions, slots, channels = memory.shape
    out = torch.empty(latent.shape, dtype=latent.dtype, device=latent.device)
    if out.numel() == 0:
        return out
    double = latent.dtype == torch.float64
    if double:
        # A Python number reaches a kernel as float32; a tensor keeps all of it.
        factor = torch.full((), scale, dtype=latent.dtype, device=latent.device)
        temperature, scale = factor if temperature is None else factor * temperature, 1.0
    with torch.cuda.device(latent.device) if latent.is_cuda else nullcontext():
        memory_read_fwd_kernel[(latent.shape[0],)](
            latent.contiguous(),
            memory.contiguous(),
            region.contiguous(),
            temperature,
            out,
            float(scale),
            regions,
            slots,
            channels,
            ACCUMULATE=tl.float64 if double else tl.float32,
            **read_blocks(slots, channels),
        )
    return out
