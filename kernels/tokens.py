"""Lists of corrupted and known tokens, and rows of tokens, for the kernels that work on them."""

import triton
import triton.language as tl

MIN_NORM = tl.constexpr(1e-6)


@triton.jit
def list_tokens_kernel(
    hole_ptr,  # (B, N) bool
    order_ptr,  # (B, N) int32: the corrupted tokens, then the known ones
    count_ptr,  # (B,) int32: how many are corrupted
    tokens,
    BLOCK: tl.constexpr,
):
    batch = tl.program_id(0).to(tl.int64)
    hole_ptr += batch * tokens
    order_ptr += batch * tokens
    corrupted = 0
    for first in range(0, tokens, BLOCK):
        i = first + tl.arange(0, BLOCK)
        corrupted += tl.sum(tl.load(hole_ptr + i, mask=i < tokens, other=0).to(tl.int32), axis=0)
    tl.store(count_ptr + batch, corrupted)
    before = 0
    for first in range(0, tokens, BLOCK):
        i = first + tl.arange(0, BLOCK)
        hole = tl.load(hole_ptr + i, mask=i < tokens, other=0).to(tl.int32)
        rank = before + tl.cumsum(hole, axis=0) - hole  # corrupted tokens before this one
        place = tl.where(hole > 0, rank, corrupted + i - rank)
        tl.store(order_ptr + place, i, mask=i < tokens)
        before += tl.sum(hole, axis=0)


@triton.jit
def load_rows(ptr, index, valid, width, BLOCK: tl.constexpr):
    """Rows of a (N, width) matrix, zeros where not valid: (rows, BLOCK).

    One image's matrix: offsets within it are 32 bits, since those of 64 would fill the registers.
    """
    c = tl.arange(0, BLOCK)
    at = ptr + index[:, None] * width + c[None, :]
    return tl.load(at, mask=valid[:, None] & (c < width)[None, :], other=0.0)


@triton.jit
def store_rows(ptr, index, valid, width, rows, BLOCK: tl.constexpr):
    c = tl.arange(0, BLOCK)
    at = ptr + index[:, None] * width + c[None, :]
    tl.store(at, rows.to(ptr.dtype.element_ty), mask=valid[:, None] & (c < width)[None, :])


@triton.jit
def unit_rows(rows, ACCUMULATE: tl.constexpr):
    """The rows at unit length, and one over their lengths."""
    wide = rows.to(ACCUMULATE)
    inverse = 1 / tl.maximum(tl.sqrt(tl.sum(wide * wide, axis=1)), MIN_NORM)
    return wide * inverse[:, None], inverse


@triton.jit
def unit_gradient(rows, inverse, grad):
    """The gradient of rows (wide) from that of the rows at unit length."""
    along = tl.sum(rows * grad, axis=1) * inverse * inverse
    # Rows shorter than MIN_NORM are scaled by a constant: nothing is projected out.
    along = tl.where(inverse < 1 / MIN_NORM, along, 0.0)
    return (grad - rows * along[:, None]) * inverse[:, None]


@triton.jit
def load_temperature(temperature_ptr, scale, ACCUMULATE: tl.constexpr):
    temperature = tl.zeros((), ACCUMULATE) + scale
    if temperature_ptr is not None:
        temperature *= tl.load(temperature_ptr).to(ACCUMULATE)
    return temperature


@triton.jit
def list_keys(order_ptr, corrupted, tokens, first, ALL_KEYS: tl.constexpr, BLOCK: tl.constexpr):
    """Keys first, first + 1, ... of an image: their tokens, and which exist."""
    j = first + tl.arange(0, BLOCK)
    if ALL_KEYS:
        return j, j < tokens
    valid = j < tokens - corrupted
    return tl.load(order_ptr + corrupted + j, mask=valid, other=0), valid
