"""masked_correlation in Triton, forward and backward.

The corrupted and the known tokens of each image are listed on the device first, so that the work is
|corrupted| x |keys| without the host waiting for a count. Correlations live in registers, a tile at a time; what is
kept for the backward is one number for each row.
"""

from contextlib import nullcontext
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from showface.kernels.tokens import (
    list_keys,
    list_tokens_kernel,
    load_rows,
    load_temperature,
    store_rows,
    unit_gradient,
    unit_rows,
)

LOG2_E = tl.constexpr(1.4426950408889634)


@triton.jit
def correlation_fwd_kernel(
    query_ptr,  # (B, N, C)
    key_ptr,  # (B, N, C)
    value_ptr,  # (B, N, V)
    order_ptr,  # (B, N) int32
    count_ptr,  # (B,) int32
    temperature_ptr,  # () or None
    out_ptr,  # (B, N, V), or with splits their shares (splits, B, N, V), not yet divided by their sums
    log_sum_ptr,  # (B, N), or (splits, B, N)
    scale,
    tokens,
    channels,
    values,
    splits,
    HIGH_TEMPERATURE: tl.constexpr,
    ALL_KEYS: tl.constexpr,
    ACCUMULATE: tl.constexpr,
    OPERAND: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_V: tl.constexpr,
):
    batch = tl.program_id(1).to(tl.int64)
    split = tl.program_id(2)
    query_ptr += batch * tokens * channels
    key_ptr += batch * tokens * channels
    value_ptr += batch * tokens * values
    order_ptr += batch * tokens
    share = split * tl.num_programs(1) + batch
    out_ptr += share * tokens * values
    log_sum_ptr += share * tokens
    corrupted = tl.load(count_ptr + batch)
    keys = tokens if ALL_KEYS else tokens - corrupted

    i = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    exists = i < tokens
    token = tl.load(order_ptr + i, mask=exists, other=0)
    asks = i < corrupted
    mixed = tl.zeros((BLOCK_M, BLOCK_V), ACCUMULATE)
    total = tl.zeros((BLOCK_M,), ACCUMULATE)
    peak = tl.zeros((BLOCK_M,), ACCUMULATE)
    # Tiles of known tokens only have nothing to compute: they store zeros.
    if tl.program_id(0) * BLOCK_M < corrupted:
        temperature = load_temperature(temperature_ptr, scale, ACCUMULATE) * LOG2_E
        # A correlation is at most the temperature: that is enough to subtract before exponentials, unless it is so
        # high that a row of small correlations would vanish.
        high = temperature > HIGH_TEMPERATURE * LOG2_E
        peak = tl.where(high, -float("inf"), peak + temperature)
        query, _query_inverse = unit_rows(load_rows(query_ptr, token, asks, channels, BLOCK_C), ACCUMULATE)
        query = query.to(OPERAND)
        steps = tl.cdiv(tl.cdiv(keys, BLOCK_N), splits)
        for step in range(split * steps, (split + 1) * steps):
            index, valid = list_keys(order_ptr, corrupted, tokens, step * BLOCK_N, ALL_KEYS, BLOCK_N)
            key, _key_inverse = unit_rows(load_rows(key_ptr, index, valid, channels, BLOCK_C), ACCUMULATE)
            value = load_rows(value_ptr, index, valid, values, BLOCK_V).to(OPERAND)
            score = tl.dot(query, tl.trans(key.to(OPERAND)), input_precision=PRECISION, out_dtype=ACCUMULATE)
            score = tl.where(valid[None, :], score * temperature, -float("inf"))
            if high:
                new_peak = tl.maximum(peak, tl.max(score, axis=1))
                # A step past the last key leaves everything as it is.
                keep = tl.where(new_peak == peak, 1.0, tl.exp2(peak - new_peak))
                total *= keep
                mixed *= keep[:, None]
                peak = new_peak
            weight = tl.where(valid[None, :], tl.exp2(score - peak[:, None]), 0.0)
            total += tl.sum(weight, axis=1)
            mixed += tl.dot(weight.to(OPERAND), value, input_precision=PRECISION, out_dtype=ACCUMULATE)
    answered = asks & (total > 0)
    log_sum = tl.where(answered, peak + tl.log2(tl.where(answered, total, 1.0)), -float("inf") if splits > 1 else 0.0)
    mixed = tl.where(answered[:, None], mixed / tl.where(answered, total, 1.0)[:, None], 0.0)
    tl.store(log_sum_ptr + token, log_sum, mask=exists)
    store_rows(out_ptr, token, exists, values, mixed, BLOCK_V)


@triton.jit
def correlation_merge_kernel(
    share_ptr,  # (splits, B * N, V) float
    share_log_sum_ptr,  # (splits, B * N)
    out_ptr,  # (B * N, V)
    log_sum_ptr,  # (B * N,)
    rows,
    values,
    splits,
    BLOCK_M: tl.constexpr,
    BLOCK_V: tl.constexpr,
):
    first = tl.program_id(0).to(tl.int64) * BLOCK_M
    row = tl.arange(0, BLOCK_M)
    exists = first + row < rows
    log_sums = share_log_sum_ptr + first + row
    peak = tl.full((BLOCK_M,), -float("inf"), share_log_sum_ptr.dtype.element_ty)
    for split in range(splits):
        peak = tl.maximum(peak, tl.load(log_sums + split * rows, mask=exists, other=-float("inf")))
    answered = peak > -float("inf")
    peak = tl.where(answered, peak, 0.0)
    total = tl.zeros_like(peak)
    mixed = tl.zeros((BLOCK_M, BLOCK_V), share_ptr.dtype.element_ty)
    for split in range(splits):
        weight = tl.exp2(tl.load(log_sums + split * rows, mask=exists, other=-float("inf")) - peak)
        total += weight
        mixed += weight[:, None] * load_rows(share_ptr + (split * rows + first) * values, row, exists, values, BLOCK_V)
    total = tl.where(answered, total, 1.0)
    tl.store(log_sum_ptr + first + row, tl.where(answered, peak + tl.log2(total), 0.0), mask=exists)
    store_rows(out_ptr + first * values, row, exists, values, mixed / total[:, None], BLOCK_V)


@triton.jit
def correlation_bwd_query_kernel(
    grad_ptr,  # (B, N, V)
    query_ptr,
    key_ptr,
    value_ptr,
    order_ptr,
    count_ptr,
    out_ptr,  # (B, N, V)
    log_sum_ptr,  # (B, N)
    temperature_ptr,
    grad_query_ptr,  # (B, N, C)
    along_ptr,  # (B, N): <grad, out>, for the other kernel
    grad_temperature_ptr,  # (B, tiles): each tile's share
    scale,
    tokens,
    channels,
    values,
    ALL_KEYS: tl.constexpr,
    ACCUMULATE: tl.constexpr,
    OPERAND: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_V: tl.constexpr,
):
    tile = tl.program_id(0)
    batch = tl.program_id(1).to(tl.int64)
    grad_ptr += batch * tokens * values
    query_ptr += batch * tokens * channels
    key_ptr += batch * tokens * channels
    value_ptr += batch * tokens * values
    order_ptr += batch * tokens
    out_ptr += batch * tokens * values
    log_sum_ptr += batch * tokens
    grad_query_ptr += batch * tokens * channels
    along_ptr += batch * tokens
    corrupted = tl.load(count_ptr + batch)
    keys = tokens if ALL_KEYS else tokens - corrupted

    i = tile * BLOCK_M + tl.arange(0, BLOCK_M)
    exists = i < tokens
    token = tl.load(order_ptr + i, mask=exists, other=0)
    asks = i < corrupted
    grad_unit = tl.zeros((BLOCK_M, BLOCK_C), ACCUMULATE)
    grad_temperature = tl.zeros((), ACCUMULATE)
    if tile * BLOCK_M < corrupted:
        temperature = load_temperature(temperature_ptr, scale, ACCUMULATE)
        query, inverse = unit_rows(load_rows(query_ptr, token, asks, channels, BLOCK_C), ACCUMULATE)
        unit = query.to(OPERAND)
        grad = load_rows(grad_ptr, token, asks, values, BLOCK_V).to(OPERAND)
        out = load_rows(out_ptr, token, asks, values, BLOCK_V)
        along = tl.sum(grad.to(ACCUMULATE) * out.to(ACCUMULATE), axis=1)
        tl.store(along_ptr + token, along, mask=asks)
        log_sum = tl.load(log_sum_ptr + token, mask=asks, other=float("inf"))
        for first in range(0, keys, BLOCK_N):
            index, valid = list_keys(order_ptr, corrupted, tokens, first, ALL_KEYS, BLOCK_N)
            key, _key_inverse = unit_rows(load_rows(key_ptr, index, valid, channels, BLOCK_C), ACCUMULATE)
            key = key.to(OPERAND)
            value = load_rows(value_ptr, index, valid, values, BLOCK_V).to(OPERAND)
            score = tl.dot(unit, tl.trans(key), input_precision=PRECISION, out_dtype=ACCUMULATE)
            weight = tl.exp2(score * (temperature * LOG2_E) - log_sum[:, None])
            weight = tl.where(valid[None, :], weight, 0.0)
            grad_weight = tl.dot(grad, tl.trans(value), input_precision=PRECISION, out_dtype=ACCUMULATE)
            grad_score = (weight * (grad_weight - along[:, None])).to(OPERAND)
            grad_unit += tl.dot(grad_score, key, input_precision=PRECISION, out_dtype=ACCUMULATE)
        grad_temperature = tl.sum(tl.sum(grad_unit * query, axis=1), axis=0)
        wide = load_rows(query_ptr, token, asks, channels, BLOCK_C).to(ACCUMULATE)
        grad_unit = unit_gradient(wide, inverse, grad_unit * temperature)
    tl.store(grad_temperature_ptr + batch * tl.num_programs(0) + tile, grad_temperature)
    store_rows(grad_query_ptr, token, exists, channels, grad_unit, BLOCK_C)


@triton.jit
def correlation_bwd_key_kernel(
    grad_ptr,  # (B, N, V)
    query_ptr,
    key_ptr,
    value_ptr,
    order_ptr,
    count_ptr,
    log_sum_ptr,  # (B, N)
    along_ptr,  # (B, N)
    temperature_ptr,
    grad_key_ptr,  # (B, N, C)
    grad_value_ptr,  # (B, N, V)
    scale,
    tokens,
    channels,
    values,
    ALL_KEYS: tl.constexpr,
    ACCUMULATE: tl.constexpr,
    OPERAND: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_V: tl.constexpr,
):
    batch = tl.program_id(1).to(tl.int64)
    grad_ptr += batch * tokens * values
    query_ptr += batch * tokens * channels
    key_ptr += batch * tokens * channels
    value_ptr += batch * tokens * values
    order_ptr += batch * tokens
    log_sum_ptr += batch * tokens
    along_ptr += batch * tokens
    grad_key_ptr += batch * tokens * channels
    grad_value_ptr += batch * tokens * values
    corrupted = tl.load(count_ptr + batch)

    # The tokens from the last to the first of the list: keys come before those that are none.
    j = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    exists = j < tokens
    token = tl.load(order_ptr + tokens - 1 - j, mask=exists, other=0)
    answers = exists if ALL_KEYS else j < tokens - corrupted
    grad_key = tl.zeros((BLOCK_N, BLOCK_C), ACCUMULATE)
    grad_value = tl.zeros((BLOCK_N, BLOCK_V), ACCUMULATE)
    if ALL_KEYS or tl.program_id(0) * BLOCK_N < tokens - corrupted:
        temperature = load_temperature(temperature_ptr, scale, ACCUMULATE)
        wide, inverse = unit_rows(load_rows(key_ptr, token, answers, channels, BLOCK_C), ACCUMULATE)
        key = wide.to(OPERAND)
        value = load_rows(value_ptr, token, answers, values, BLOCK_V).to(OPERAND)
        for first in range(0, corrupted, BLOCK_M):
            i = first + tl.arange(0, BLOCK_M)
            asks = i < corrupted
            index = tl.load(order_ptr + i, mask=asks, other=0)
            query, _query_inverse = unit_rows(load_rows(query_ptr, index, asks, channels, BLOCK_C), ACCUMULATE)
            query = query.to(OPERAND)
            grad = load_rows(grad_ptr, index, asks, values, BLOCK_V).to(OPERAND)
            log_sum = tl.load(log_sum_ptr + index, mask=asks, other=float("inf"))
            along = tl.load(along_ptr + index, mask=asks, other=0.0)
            score = tl.dot(key, tl.trans(query), input_precision=PRECISION, out_dtype=ACCUMULATE)
            weight = tl.exp2(score * (temperature * LOG2_E) - log_sum[None, :])
            weight = tl.where(asks[None, :], weight, 0.0)
            grad_value += tl.dot(weight.to(OPERAND), grad, input_precision=PRECISION, out_dtype=ACCUMULATE)
            grad_weight = tl.dot(value, tl.trans(grad), input_precision=PRECISION, out_dtype=ACCUMULATE)
            grad_score = (weight * (grad_weight - along[None, :])).to(OPERAND)
            grad_key += tl.dot(grad_score, query, input_precision=PRECISION, out_dtype=ACCUMULATE)
        rows = load_rows(key_ptr, token, answers, channels, BLOCK_C).to(ACCUMULATE)
        grad_key = unit_gradient(rows, inverse, grad_key * temperature)
        grad_key = tl.where(answers[:, None], grad_key, 0.0)
        grad_value = tl.where(answers[:, None], grad_value, 0.0)
    store_rows(grad_key_ptr, token, exists, channels, grad_key, BLOCK_C)
    store_rows(grad_value_ptr, token, exists, values, grad_value, BLOCK_V)


# The widest vectors for which the registers of a chip suffice. Wider ones are for the CUDA kernels.
MAX_WIDTH = {torch.float16: 512, torch.bfloat16: 512, torch.float32: 64, torch.float64: 0}


def blocks(channels: int, values: int, dtype: torch.dtype, backward: bool = False) -> dict[str, Any]:
    """Tile sizes and warps for these widths, as large as the registers from sm_80 to sm_100 hold without spilling."""
    block_c, block_v = (max(16, triton.next_power_of_2(width)) for width in (channels, values))
    width = max(block_c, block_v)
    if dtype.itemsize >= 4:
        rows, columns = (32, 32) if backward else (64, 32)
    elif backward:
        rows, columns = (64, 64) if width <= 32 else (64, 32) if width <= 64 else (32, 32) if width <= 128 else (16, 16)
    else:
        rows, columns = (64, 64) if width <= 128 else (32, 32) if width <= 256 else (16, 16)
    warps = 4 if dtype.itemsize == 2 and width <= 64 and not backward else 8
    return {"BLOCK_M": rows, "BLOCK_N": columns, "BLOCK_C": block_c, "BLOCK_V": block_v, "num_warps": warps}


def _prepare(query: Tensor, hole: Tensor, temperature: Tensor | None, scale: float) -> tuple[Any, ...]:
    """The token lists and counts, the temperature, and the dtype and precision to work in."""
    batch, tokens = hole.shape
    order = torch.empty((batch, tokens), dtype=torch.int32, device=hole.device)
    count = torch.empty((batch,), dtype=torch.int32, device=hole.device)
    list_tokens_kernel[(batch,)](hole.contiguous(), order, count, tokens, BLOCK=1024)
    double = query.dtype == torch.float64
    if double:
        # A Python number reaches a kernel as float32; a tensor keeps all of it.
        factor = torch.full((), scale, dtype=torch.float64, device=query.device)
        temperature, scale = factor if temperature is None else factor * temperature, 1.0
    # What products are made of. The interpreter, which runs on CPU tensors, multiplies bfloat16 wrongly.
    operands = {torch.float16: tl.float16, torch.float32: tl.float32, torch.float64: tl.float64}
    operand = operands.get(query.dtype, tl.bfloat16 if query.is_cuda else tl.float32)
    # Without tf32, three products of tf32 each make up one of float32: as exact to a bit or two, and on tensor cores.
    tf32 = query.dtype == torch.float32 and torch.get_float32_matmul_precision() != "highest"
    options = {
        "ACCUMULATE": tl.float64 if double else tl.float32,
        "OPERAND": operand,
        "PRECISION": "tf32" if tf32 else "tf32x3",
    }
    return order, count, temperature, float(scale), options


def _splits(batch: int, tiles: int, key_tiles: int, device: torch.device) -> int:
    """Shares of the keys, so that a small problem still fills a GPU."""
    processors = torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 1
    return max(1, min(processors // (batch * tiles), key_tiles // 4, 16))


def masked_correlation(
    query: Tensor, key: Tensor, value: Tensor, hole: Tensor, temperature: Tensor | None, scale: float, all_keys: bool
) -> tuple[Tensor, Tensor]:
    """Answer the corrupted tokens, see `showface.ops.definitions`.

    Args:
        query, key: (B, N, C), float16, bfloat16, float32 or float64.
        value: (B, N, V).
        hole: (B, N) bool, True = corrupted.
        temperature: a 0-d tensor of any floating-point dtype, or None for 1.
        scale: a factor on the temperature.
        all_keys: every token answers, not only the known ones.

    Returns:
        out (B, N, V) in the dtype of `value`, and log_sum (B, N), float32 (float64 for float64): the logarithm to
        base 2 of the sum under each corrupted token's softmax. Sums are accumulated in the dtype of log_sum.
    """
    batch, tokens, channels = query.shape
    values = value.shape[2]
    wide = torch.float64 if query.dtype == torch.float64 else torch.float32
    out = torch.empty(value.shape, dtype=value.dtype, device=value.device)
    log_sum = torch.empty(hole.shape, dtype=wide, device=value.device)
    if hole.numel() == 0:
        return out, log_sum
    with torch.cuda.device(query.device) if query.is_cuda else nullcontext():
        order, count, temperature, scale, options = _prepare(query, hole, temperature, scale)
        sizes = blocks(channels, values, query.dtype)
        tiles = triton.cdiv(tokens, sizes["BLOCK_M"])
        splits = _splits(batch, tiles, triton.cdiv(tokens, sizes["BLOCK_N"]), query.device)
        share, share_log_sum = out, log_sum
        if splits > 1:
            share = torch.empty((splits, *out.shape), dtype=wide, device=out.device)
            share_log_sum = torch.empty((splits, *log_sum.shape), dtype=wide, device=out.device)
        tensors = (query.contiguous(), key.contiguous(), value.contiguous(), order, count, temperature)
        correlation_fwd_kernel[(tiles, batch, splits)](
            *tensors,
            share,
            share_log_sum,
            scale,
            tokens,
            channels,
            values,
            splits,
            HIGH_TEMPERATURE=2.0 if query.dtype == torch.float16 else 40.0,
            ALL_KEYS=all_keys,
            **options,
            **sizes,
        )
        if splits > 1:
            rows = batch * tokens
            correlation_merge_kernel[(triton.cdiv(rows, 16),)](
                share, share_log_sum, out, log_sum, rows, values, splits, BLOCK_M=16, BLOCK_V=sizes["BLOCK_V"]
            )
    return out, log_sum


def masked_correlation_backward(
    grad: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    hole: Tensor,
    out: Tensor,
    log_sum: Tensor,
    temperature: Tensor | None,
    scale: float,
    all_keys: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The gradients of query, key, value, each in its dtype, and of `scale * temperature`, in that of log_sum.

    Args are those of the forward, its results, and the gradient of `out`.
    """
    batch, tokens, channels = query.shape
    values = value.shape[2]
    grad_query, grad_key, grad_value = (
        torch.empty(x.shape, dtype=x.dtype, device=x.device) for x in (query, key, value)
    )
    if hole.numel() == 0:
        return grad_query, grad_key, grad_value, log_sum.new_zeros(())
    with torch.cuda.device(query.device) if query.is_cuda else nullcontext():
        order, count, temperature, scale, options = _prepare(query, hole, temperature, scale)
        sizes = blocks(channels, values, query.dtype, backward=True)
        tiles, key_tiles = (triton.cdiv(tokens, sizes[name]) for name in ("BLOCK_M", "BLOCK_N"))
        along = torch.empty_like(log_sum)
        grad_temperature = log_sum.new_empty((batch, tiles))
        tensors = [x.contiguous() for x in (grad, query, key, value)]
        log_sum = log_sum.contiguous()
        correlation_bwd_query_kernel[(tiles, batch)](
            *tensors,
            order,
            count,
            out.contiguous(),
            log_sum,
            temperature,
            grad_query,
            along,
            grad_temperature,
            scale,
            tokens,
            channels,
            values,
            ALL_KEYS=all_keys,
            **options,
            **sizes,
        )
        correlation_bwd_key_kernel[(key_tiles, batch)](
            *tensors,
            order,
            count,
            log_sum,
            along,
            temperature,
            grad_key,
            grad_value,
            scale,
            tokens,
            channels,
            values,
            ALL_KEYS=all_keys,
            **options,
            **sizes,
        )
    return grad_query, grad_key, grad_value, grad_temperature.sum()
