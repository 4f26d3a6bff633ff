"""Launches of the attention kernels: sizes, buffers and the order of the steps."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from showface.kernels import tiles
from showface.kernels.attention import (
    attention_bwd_key_kernel,
    attention_bwd_query_kernel,
    attention_fwd_kernel,
    attention_merge_kernel,
)
from showface.kernels.tokens import group_blocks, tiles_of


class Groups(NamedTuple):
    """Which queries ask which keys."""

    order: Tensor  # (B, N), see `tokens.sort_tokens`; the groups themselves where there is no offset
    offset: Tensor | None  # (B, count + 2)
    count: int  # groups of each image
    listed: bool  # the keys of an image are its tokens of no group; else they are the rows of a matrix for each group
    key_rows: int  # of a matrix of keys


class Numbers(NamedTuple):
    """What the kernels compute with."""

    temperature: Tensor | None
    scale: float
    kind: str
    options: dict[str, Any]
    wide: torch.dtype  # of sums


@contextmanager
def on_device_of(x: Tensor) -> Iterator[None]:
    """Triton launches on the current device."""
    if x.is_cuda:
        with torch.cuda.device(x.device):
            yield
    else:
        yield


def numbers(x: Tensor, temperature: Tensor | None, scale: float) -> Numbers:
    """How tensors like x are computed with."""
    double = x.dtype == torch.float64
    if double:
        # A Python number reaches a kernel as float32; a tensor keeps all of it.
        factor = torch.full((), scale, dtype=torch.float64, device=x.device)
        temperature, scale = factor if temperature is None else factor * temperature, 1.0
    # What products are made of. The interpreter, which runs on CPU tensors, multiplies bfloat16 wrongly.
    operands = {torch.float16: tl.float16, torch.float32: tl.float32, torch.float64: tl.float64}
    operand = operands.get(x.dtype, tl.bfloat16 if x.is_cuda else tl.float32)
    # Without tf32, three products of tf32 each make up one of float32: as exact to a bit or two, and on tensor cores.
    tf32 = x.dtype == torch.float32 and torch.get_float32_matmul_precision() != "highest"
    options = {
        "ACCUMULATE": tl.float64 if double else tl.float32,
        "OPERAND": operand,
        "PRECISION": "tf32" if tf32 else "tf32x3",
    }
    kind = tiles.kind_of(x.dtype, tf32)
    return Numbers(temperature, float(scale), kind, options, torch.float64 if double else torch.float32)


def _constants(kernel: str, n: Numbers, query: Tensor, values: int, groups: Groups) -> dict[str, Any]:
    tokens, channels = query.shape[1:]
    tile = tiles.look_up(kernel, n.kind, tiles.width_class(channels, values), tiles.chip_of(query.device))
    small = tokens < tiles.SMALL_GROUP * groups.count
    return tiles.constants(tile, kernel, channels, values, small) | n.options


def _splits(programs: int, steps: int, device: torch.device) -> int:
    """Shares of the keys, or of the queries, so that a small problem still fills a GPU."""
    processors = torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 1
    return max(1, min(processors // programs, steps // 4, 16))


def attend(
    query: Tensor, key: Tensor, value: Tensor | None, groups: Groups, n: Numbers
) -> tuple[Tensor | None, Tensor]:
    """out (B, N, V) in the dtype of value, and log_sum (B, N); without a value only that. Tensors are contiguous."""
    batch, tokens, channels = query.shape
    values = 0 if value is None else value.shape[2]
    out = None if value is None else value.new_empty((batch, tokens, values))
    log_sum = query.new_empty((batch, tokens), dtype=n.wide)
    sizes = _constants("forward", n, query, values, groups)
    parts = max(1, triton.cdiv(values, sizes["BLOCK_P"]))
    programs = tiles_of(tokens, groups.count, sizes["BLOCK_M"])
    key_tiles = triton.cdiv(groups.key_rows, sizes["BLOCK_N"])
    splits = _splits(triton.cdiv(tokens, sizes["BLOCK_M"]) * batch * parts, key_tiles, query.device)
    share, share_log_sum = out, log_sum
    if splits > 1:
        share = None if out is None else query.new_empty((splits, *out.shape), dtype=n.wide)
        share_log_sum = log_sum.new_empty((splits, *log_sum.shape))
    attention_fwd_kernel[(programs, batch, splits * parts)](
        query,
        key,
        value,
        groups.order,
        groups.offset,
        n.temperature,
        share,
        share_log_sum,
        n.scale,
        tokens,
        groups.count,
        groups.key_rows,
        channels,
        values,
        splits,
        parts,
        HIGH_TEMPERATURE=2.0 if query.dtype == torch.float16 else 40.0,
        LISTED=groups.listed,
        **group_blocks(groups.count),
        **sizes,
    )
    if splits > 1:
        rows = batch * tokens
        grid = triton.cdiv(rows, 16), max(1, triton.cdiv(values, 128))
        block = min(128, tiles.round_up(values))
        attention_merge_kernel[grid](
            share, share_log_sum, out, log_sum, rows, values, splits, BLOCK_M=16, BLOCK_P=block
        )
    return out, log_sum


def attend_backward(
    grad: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor | None,
    groups: Groups,
    out: Tensor,
    log_sum: Tensor,
    n: Numbers,
) -> tuple[Tensor, Tensor, Tensor | None, Tensor]:
    """The gradients of query, key, value and the temperature. Without a value the keys are the values."""
    batch, tokens, channels = query.shape
    values = grad.shape[2]
    sizes = _constants("backward_query", n, query, values, groups)
    programs = tiles_of(tokens, groups.count, sizes["BLOCK_M"])
    grad_query, along = torch.empty_like(query), torch.empty_like(log_sum)
    grad_temperature = log_sum.new_empty((batch, programs))
    data = (grad, query, key, key if value is None else value, groups.order, groups.offset)
    shape = (n.scale, tokens, groups.count, groups.key_rows, channels, values)
    attention_bwd_query_kernel[(programs, batch, max(1, triton.cdiv(channels, sizes["BLOCK_P"])))](
        *data,
        out,
        log_sum,
        n.temperature,
        grad_query,
        along,
        grad_temperature,
        *shape,
        LISTED=groups.listed,
        BLOCK_G=group_blocks(groups.count)["BLOCK_G"],
        **sizes,
    )
    gradients = _over_queries("backward_key", grad, query, key, data[3], groups, log_sum, along, n, value is None)
    return grad_query, *gradients[:2], grad_temperature.sum()


def accumulate(query: Tensor, key: Tensor, groups: Groups, log_sum: Tensor, n: Numbers) -> tuple[Tensor, Tensor]:
    """For each key, the sum of a[i,j] over the queries, and that of a[i,j] * query[i]; in wide numbers."""
    _, total, mass = _over_queries("accumulate", query, query, key, None, groups, log_sum, None, n, False)
    return mass, total


def _over_queries(
    kernel: str,
    grad: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor | None,
    groups: Groups,
    log_sum: Tensor,
    along: Tensor | None,
    n: Numbers,
    tied: bool,  # the keys are the values
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """What sums over queries: the gradients of the keys (with `along`) and of the values, and without it the mass."""
    batch, tokens, channels = query.shape
    values = grad.shape[2]
    sizes = _constants(kernel, n, query, values, groups)
    parts = max(1, triton.cdiv(values if along is None else max(channels, values), sizes["BLOCK_P"]))
    tiles_here, blocks = triton.cdiv(groups.key_rows, sizes["BLOCK_N"]), batch * groups.count
    steps = triton.cdiv(triton.cdiv(tokens, groups.count), sizes["BLOCK_M"])
    splits = _splits(tiles_here * blocks * parts, steps, query.device)

    def buffer(wanted: bool, *shape: int) -> Tensor | None:
        dtype = n.wide if splits > 1 or along is None else key.dtype
        return key.new_empty((splits, *shape), dtype=dtype) if wanted else None

    grad_key = buffer(along is not None, *key.shape)
    grad_value = buffer(not tied, *key.shape[:2], values)
    mass = buffer(along is None, *key.shape[:2])
    attention_bwd_key_kernel[(tiles_here, blocks, splits * parts)](
        grad,
        query,
        key,
        value,
        groups.order,
        groups.offset,
        log_sum,
        along,
        n.temperature,
        grad_key,
        grad_value,
        mass,
        n.scale,
        tokens,
        groups.count,
        groups.key_rows,
        channels,
        values,
        splits,
        parts,
        LISTED=groups.listed,
        # Sums that are kept in float32 are made of it.
        VALUE_OPERAND=n.options["ACCUMULATE" if along is None else "OPERAND"],
        **sizes,
    )
    dtypes = (key.dtype, key.dtype, n.wide) if along is not None else (n.wide,) * 3
    results = zip((grad_key, grad_value, mass), dtypes, strict=True)
    return tuple(x if x is None else x[0] if splits == 1 else x.sum(0).to(dtype) for x, dtype in results)
