"""Launches of the attention kernels: grid sizes, buffers and the order of launches."""

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
    attention_combine_kernel,
    attention_fwd_kernel,
)
from showface.kernels.rows import inverse_norms_kernel
from showface.kernels.tokens import group_blocks, tiles_of
from showface.native import allow_tf32


class Groups(NamedTuple):
    """Which queries attend to which keys."""

    order: Tensor  # (B, N), see `tokens.sort_tokens`; without offset, (N,) the group of each token
    offset: Tensor | None  # (B, count + 2)
    count: int  # number of groups per image
    listed_keys: bool  # keys are the tokens of no group; else each group has a matrix of keys
    key_rows: int  # rows of a matrix of keys, or with listed_keys the number of tokens


class Numbers(NamedTuple):
    """Temperature, dtypes and precision of a call."""

    temperature: Tensor | None
    scale: float
    kind: str  # see `tiles.kind_of`
    options: dict[str, Any]  # compile-time constants of the kernels
    wide: torch.dtype  # dtype of the accumulators


@contextmanager
def on_device_of(x: Tensor) -> Iterator[None]:
    """Make the device of x current, since Triton launches on the current device."""
    if x.is_cuda:
        with torch.cuda.device(x.device):
            yield
    else:
        yield


def numbers(x: Tensor, temperature: Tensor | None, scale: float) -> Numbers:
    """Temperature, dtypes and precision for tensors with the dtype of x."""
    double = x.dtype == torch.float64
    if double:
        # Triton passes Python floats as float32; a tensor keeps float64.
        factor = torch.full((), scale, dtype=torch.float64, device=x.device)
        temperature, scale = factor if temperature is None else factor * temperature, 1.0
    # dtype of the operands of products. Triton's interpreter (CPU tensors) multiplies bfloat16 wrongly.
    operands = {torch.float16: tl.float16, torch.float32: tl.float32, torch.float64: tl.float64}
    operand = operands.get(x.dtype, tl.bfloat16 if x.is_cuda else tl.float32)
    # Without tf32, each float32 product is computed as three tf32 products on tensor cores, exact to a bit or two.
    tf32 = x.dtype == torch.float32 and allow_tf32()
    options = {
        "ACCUMULATE": tl.float64 if double else tl.float32,
        "OPERAND": operand,
        "PRECISION": "tf32" if tf32 else "tf32x3",
    }
    kind = tiles.kind_of(x.dtype, tf32)
    return Numbers(temperature, float(scale), kind, options, torch.float64 if double else torch.float32)


def _constants(kernel: str, n: Numbers, query: Tensor, values: int, groups: Groups) -> dict[str, Any]:
    tokens, channels = query.shape[1:]
    tile = tiles.INTERPRETED
    if query.is_cuda:
        width, chip = tiles.width_class(channels, values), tiles.chip_of(query.device)
        tile = tiles.look_up(kernel, n.kind, width, chip, tokens / groups.count)
    small = tokens < tiles.SMALL_GROUP * groups.count
    return tiles.constants(tile, kernel, channels, values, small) | n.options


def _splits(programs: int, steps: int, device: torch.device) -> int:
    """Number of splits of the keys (or queries), so that a small problem still fills a GPU."""
    processors = torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 1
    return max(1, min(processors // programs, steps // 4, 16))


class Norms(NamedTuple):
    """The inverse norms of the queries (B, N), and of the keys, in the dtype of the accumulators."""

    query: Tensor
    key: Tensor


def norms_of(query: Tensor, key: Tensor, n: Numbers) -> Norms:
    """Compute the inverse norms once, since many programs need those of the same row."""
    norms = Norms(query.new_empty(query.shape[:-1], dtype=n.wide), key.new_empty(key.shape[:-1], dtype=n.wide))
    queries, keys = norms.query.numel(), norms.key.numel()
    block = tiles.NORMS["BLOCK_M"]
    inverse_norms_kernel[(triton.cdiv(max(queries, keys), block), 2)](
        query, key, *norms, queries, keys, query.shape[-1], ACCUMULATE=n.options["ACCUMULATE"], **tiles.NORMS
    )
    return norms


def attend(
    query: Tensor, key: Tensor, value: Tensor | None, groups: Groups, norms: Norms, n: Numbers
) -> tuple[Tensor | None, Tensor]:
    """out (B, N, V) in the dtype of value, and lse (B, N). Without value, out is None. Tensors must be contiguous."""
    batch, tokens, channels = query.shape
    values = 0 if value is None else value.shape[2]
    out = None if value is None else value.new_empty((batch, tokens, values))
    lse = query.new_empty((batch, tokens), dtype=n.wide)
    sizes = _constants("forward", n, query, values, groups)
    parts = max(1, triton.cdiv(values, sizes["BLOCK_P"]))
    programs = tiles_of(tokens, groups.count, sizes["BLOCK_M"])
    key_tiles = triton.cdiv(groups.key_rows, sizes["BLOCK_N"])
    splits = _splits(triton.cdiv(tokens, sizes["BLOCK_M"]) * batch * parts, key_tiles, query.device)
    partial, partial_lse = out, lse
    if splits > 1:
        partial = None if out is None else query.new_empty((splits, *out.shape), dtype=n.wide)
        partial_lse = lse.new_empty((splits, *lse.shape))
    attention_fwd_kernel[(programs, batch, splits * parts)](
        query,
        key,
        value,
        *norms,
        groups.order,
        groups.offset,
        n.temperature,
        partial,
        partial_lse,
        n.scale,
        tokens,
        groups.count,
        groups.key_rows,
        channels,
        values,
        splits,
        parts,
        HIGH_TEMPERATURE=2.0 if query.dtype == torch.float16 else 40.0,
        LISTED_KEYS=groups.listed_keys,
        **group_blocks(groups.count),
        **sizes,
    )
    if splits > 1:
        rows = batch * tokens
        grid = triton.cdiv(rows, 16), max(1, triton.cdiv(values, 128))
        block = min(128, tiles.round_up(values))
        attention_combine_kernel[grid](partial, partial_lse, out, lse, rows, values, splits, BLOCK_M=16, BLOCK_P=block)
    return out, lse


def attend_backward(
    grad: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor | None,
    groups: Groups,
    out: Tensor,
    lse: Tensor,
    n: Numbers,
) -> tuple[Tensor, Tensor, Tensor | None, Tensor]:
    """The gradients of query, key, value and the temperature. Without value, the keys are the values."""
    batch, tokens, channels = query.shape
    values = grad.shape[2]
    sizes = _constants("backward_query", n, query, values, groups)
    programs = tiles_of(tokens, groups.count, sizes["BLOCK_M"])
    grad_query, delta = torch.empty_like(query), torch.empty_like(lse)
    grad_temperature = lse.new_empty((batch, programs))
    norms = norms_of(query, key, n)
    data = (grad, query, key, key if value is None else value, *norms, groups.order, groups.offset)
    shape = (n.scale, tokens, groups.count, groups.key_rows, channels, values)
    attention_bwd_query_kernel[(programs, batch, max(1, triton.cdiv(channels, sizes["BLOCK_P"])))](
        *data,
        out,
        lse,
        n.temperature,
        grad_query,
        delta,
        grad_temperature,
        *shape,
        LISTED_KEYS=groups.listed_keys,
        BLOCK_G=group_blocks(groups.count)["BLOCK_G"],
        **sizes,
    )
    gradients = _over_queries("backward_key", grad, query, key, data[3], groups, norms, lse, delta, n, value is None)
    return grad_query, *gradients[:2], grad_temperature.sum()


def accumulate(
    query: Tensor, key: Tensor, groups: Groups, norms: Norms, lse: Tensor, n: Numbers
) -> tuple[Tensor, Tensor]:
    """For each key j, the sums over the queries i of a[i,j] and of a[i,j] * query[i], in the dtype `n.wide`."""
    _, total, mass = _over_queries("accumulate", query, query, key, None, groups, norms, lse, None, n, False)
    return mass, total


def _over_queries(
    kernel: str,
    grad: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor | None,
    groups: Groups,
    norms: Norms,
    lse: Tensor,
    delta: Tensor | None,
    n: Numbers,
    tied: bool,  # keys and values are one tensor
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Sums over queries: with `delta` the gradients of keys and values; without it the sums of `accumulate`."""
    batch, tokens, channels = query.shape
    values = grad.shape[2]
    sizes = _constants(kernel, n, query, values, groups)
    parts = max(1, triton.cdiv(values if delta is None else max(channels, values), sizes["BLOCK_P"]))
    tiles_here, blocks = triton.cdiv(groups.key_rows, sizes["BLOCK_N"]), batch * groups.count
    steps = triton.cdiv(triton.cdiv(tokens, groups.count), sizes["BLOCK_M"])
    splits = _splits(tiles_here * blocks * parts, steps, query.device)
    if groups.count > 1:
        # One region, such as the background, may have most of the tokens. Few programs would then do most of the work.
        splits = max(splits, min(8, triton.cdiv(tokens, sizes["BLOCK_M"]) // 32))

    def buffer(wanted: bool, *shape: int) -> Tensor | None:
        dtype = n.wide if splits > 1 or delta is None else key.dtype
        return key.new_empty((splits, *shape), dtype=dtype) if wanted else None

    grad_key = buffer(delta is not None, *key.shape)
    grad_value = buffer(not tied, *key.shape[:2], values)
    mass = buffer(delta is None, *key.shape[:2])
    attention_bwd_key_kernel[(tiles_here, blocks, splits * parts)](
        grad,
        query,
        key,
        value,
        *norms,
        groups.order,
        groups.offset,
        lse,
        delta,
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
        LISTED_KEYS=groups.listed_keys,
        # float32 sums use float32 operands.
        VALUE_OPERAND=n.options["ACCUMULATE" if delta is None else "OPERAND"],
        **sizes,
    )
    dtypes = (key.dtype, key.dtype, n.wide) if delta is not None else (n.wide,) * 3
    results = zip((grad_key, grad_value, mass), dtypes, strict=True)
    return tuple(x if x is None else x[0] if splits == 1 else x.sum(0).to(dtype) for x, dtype in results)
