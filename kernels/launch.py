"""Launches of the attention kernels: grid sizes, buffers and the order of launches."""

from collections.abc import Iterator, Sequence
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
)
from showface.kernels.combine import attention_combine_kernel, sum_pieces_kernel
from showface.kernels.rows import inverse_norms_kernel
from showface.kernels.work import list_work
from showface.native import allow_tf32


class Groups(NamedTuple):
    """Which queries attend to which keys."""

    order: Tensor  # (B, N), see `tokens.sort_tokens`
    offset: Tensor  # (B, count + 2)
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


def _slots(device: torch.device, warps: int, parts: int) -> int:
    """The number of items that a GPU does at a time, with 8 warps on each multiprocessor."""
    processors = torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 1
    return max(1, processors * max(1, 8 // warps) // parts)


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


class Work(NamedTuple):
    """The list of the work of a kernel, see `list_work`."""

    items: Tensor
    most_pieces: int
    rows: int  # of a tile

    def partial(self, like: Tensor, width: int) -> Tensor | None:
        """A buffer for the results of pieces; None if no tile may be cut."""
        return like.new_empty((self.most_pieces, self.rows, width)) if self.most_pieces else None

    def combining_grid(self, *widths: int) -> tuple[dict[str, int], tuple[int, int, int]]:
        """Sizes of the tiles, and the grid, of the kernels that combine pieces of results of these widths."""
        sizes = {"BLOCK_R": 16, "BLOCK_P": min(128, tiles.round_up(max(widths)))}
        blocks = sum(triton.cdiv(width, sizes["BLOCK_P"]) for width in widths)
        return sizes, (self.most_pieces, self.rows // sizes["BLOCK_R"], max(1, blocks))


def _list_work(groups: Groups, tokens: int, sizes: dict[str, Any], parts: int, over_queries: bool = False) -> Work:
    rows, columns = sizes["BLOCK_M"], sizes["BLOCK_N"]
    if over_queries:
        rows, columns = columns, rows
    slots = _slots(groups.order.device, sizes["num_warps"], parts)
    how = {"over_queries": over_queries, "listed_keys": groups.listed_keys}
    work = list_work(groups.offset, tokens, groups.key_rows, slots, **how, rows=rows, columns=columns)
    return Work(*work, rows)


def _sum_pieces(
    work: Work, groups: Groups, tokens: int, results: Sequence[tuple[Tensor | None, Tensor]], listed: bool
) -> None:
    """Add up the pieces of one or two results, each given with the buffer of its pieces. listed: rows are tokens."""
    if not work.most_pieces:
        return
    (partial, out), (more_partial, more_out) = results[0], results[1] if len(results) > 1 else (None, None)
    widths = [result.shape[-1] for _, result in results]
    sizes, grid = work.combining_grid(*widths)
    data = work.items, groups.order, partial, out, more_partial, more_out, tokens, groups.count, groups.key_rows
    sum_pieces_kernel[grid](*data, widths[0], widths[-1], LISTED=listed, BLOCK_ROWS=work.rows, **sizes)


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
    work = _list_work(groups, tokens, sizes, parts)
    partial, partial_lse = None if out is None else work.partial(lse, values), work.partial(lse, 1)
    attention_fwd_kernel[(len(work.items), parts)](
        query,
        key,
        value,
        *norms,
        groups.order,
        work.items,
        n.temperature,
        out,
        lse,
        partial,
        partial_lse,
        n.scale,
        tokens,
        groups.count,
        groups.key_rows,
        channels,
        values,
        HIGH_TEMPERATURE=2.0 if query.dtype == torch.float16 else 40.0,
        LISTED_KEYS=groups.listed_keys,
        CUT=work.most_pieces > 0,
        **sizes,
    )
    if work.most_pieces:
        combining, grid = work.combining_grid(values)
        data = work.items, groups.order, partial, partial_lse, out, lse, tokens, values
        attention_combine_kernel[grid](*data, BLOCK_M=work.rows, **combining)
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
    tokens, channels = query.shape[1:]
    values = grad.shape[2]
    sizes = _constants("backward_query", n, query, values, groups)
    parts = max(1, triton.cdiv(channels, sizes["BLOCK_P"]))
    work = _list_work(groups, tokens, sizes, parts)
    grad_query, delta = torch.empty_like(query), torch.empty_like(lse)
    partial, grad_temperature = work.partial(lse, channels), lse.new_empty(len(work.items))
    norms = norms_of(query, key, n)
    attention_bwd_query_kernel[(len(work.items), parts)](
        grad,
        query,
        key,
        key if value is None else value,
        *norms,
        groups.order,
        work.items,
        out,
        lse,
        n.temperature,
        grad_query,
        partial,
        delta,
        grad_temperature,
        n.scale,
        tokens,
        groups.count,
        groups.key_rows,
        channels,
        values,
        LISTED_KEYS=groups.listed_keys,
        CUT=work.most_pieces > 0,
        **sizes,
    )
    _sum_pieces(work, groups, tokens, [(partial, grad_query)], True)
    tied = value is None
    key_value = key if tied else value
    gradients = _over_queries("backward_key", grad, query, key, key_value, groups, norms, lse, delta, n, tied)
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
    tokens, channels = query.shape[1:]
    values = grad.shape[2]
    sizes = _constants(kernel, n, query, values, groups)
    parts = max(1, triton.cdiv(values if delta is None else max(channels, values), sizes["BLOCK_P"]))
    work = _list_work(groups, tokens, sizes, parts, over_queries=True)
    dtype = n.wide if delta is None else key.dtype
    widths = (None if delta is None else channels, None if tied else values, 1 if delta is None else None)
    results = [None if width is None else key.new_empty((*key.shape[:2], width), dtype=dtype) for width in widths]
    partials = [None if width is None else work.partial(lse, width) for width in widths]
    attention_bwd_key_kernel[(len(work.items), parts)](
        grad,
        query,
        key,
        value,
        *norms,
        groups.order,
        work.items,
        lse,
        delta,
        n.temperature,
        *results,
        *partials,
        n.scale,
        tokens,
        groups.count,
        groups.key_rows,
        channels,
        values,
        LISTED_KEYS=groups.listed_keys,
        CUT=work.most_pieces > 0,
        # float32 sums use float32 operands.
        VALUE_OPERAND=n.options["ACCUMULATE" if delta is None else "OPERAND"],
        **sizes,
    )
    cut = [(partial, result) for partial, result in zip(partials, results, strict=True) if result is not None]
    _sum_pieces(work, groups, tokens, cut, groups.listed_keys)
    grad_key, grad_value, mass = results
    return grad_key, grad_value, None if mass is None else mass[..., 0]
