"""Combine the results of the pieces of tiles that were cut, in the order of the pieces (see `showface.kernels.work`).

Programs take the items of pieces. That of a tile's first piece does the tile.
"""

import triton
import triton.language as tl

from showface.kernels.rows import load_rows, store_rows
from showface.kernels.work import list_rows, load_item


@triton.jit
def attention_combine_kernel(
    item_ptr,
    order_ptr,
    partial_ptr,  # (most pieces, BLOCK_M, V) in the accumulator's dtype, or None if only lse is wanted
    partial_lse_ptr,  # (most pieces, BLOCK_M)
    out_ptr,  # (B, N, V), or None if only lse is wanted
    lse_ptr,  # (B, N)
    tokens,
    values,
    BLOCK_M: tl.constexpr,
    BLOCK_R: tl.constexpr,  # rows that a program does
    BLOCK_P: tl.constexpr,
):
    first = tl.program_id(0).to(tl.int64)
    start = tl.program_id(1) * BLOCK_R
    column = tl.program_id(2) * BLOCK_P
    image, _, row, rows, _, _, piece, pieces = load_item(item_ptr, first)
    if (piece == 0) & (pieces > 1):
        token, exists = list_rows(order_ptr + image * tokens, row, rows, start, True, BLOCK_R)
        i = start + tl.arange(0, BLOCK_R)
        partial_lse = partial_lse_ptr + first * BLOCK_M + i
        row_max = tl.full((BLOCK_R,), -float("inf"), partial_lse_ptr.dtype.element_ty)
        for number in range(pieces):
            row_max = tl.maximum(row_max, tl.load(partial_lse + number * BLOCK_M))
        row_max = tl.where(row_max > -float("inf"), row_max, 0.0)
        row_sum = tl.zeros_like(row_max)
        acc = tl.zeros((BLOCK_R, BLOCK_P), partial_lse_ptr.dtype.element_ty)
        for number in range(pieces):
            weight = tl.exp2(tl.load(partial_lse + number * BLOCK_M) - row_max)
            row_sum += weight
            if partial_ptr is not None:
                partials = partial_ptr + (first + number) * BLOCK_M * values
                acc += weight[:, None] * load_rows(partials, i, i >= 0, values, column, BLOCK_P)
        has_keys = row_sum != 0  # true for NaN
        row_sum = tl.where(has_keys, row_sum, 1.0)
        lse = tl.where(has_keys, row_max + tl.log2(row_sum), 0.0)
        if tl.program_id(2) == 0:
            tl.store(lse_ptr + image * tokens + token, lse, mask=exists)
        if partial_ptr is not None:
            acc /= row_sum[:, None]
            store_rows(out_ptr + image * tokens * values, token, exists, values, column, acc, BLOCK_P)


@triton.jit
def sum_columns(
    item_ptr, order_ptr, partial_ptr, out_ptr, tokens, groups, key_rows, width, column,
    LISTED: tl.constexpr, BLOCK_ROWS: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_P: tl.constexpr,
):  # fmt: skip
    """Add up the pieces of some columns of a tile."""
    first = tl.program_id(0).to(tl.int64)
    start = tl.program_id(1) * BLOCK_R
    image, group, row, rows, _, _, piece, pieces = load_item(item_ptr, first)
    if (piece == 0) & (pieces > 1):
        index, exists = list_rows(order_ptr + image * tokens, row, rows, start, LISTED, BLOCK_R)
        i = start + tl.arange(0, BLOCK_R)
        acc = tl.zeros((BLOCK_R, BLOCK_P), partial_ptr.dtype.element_ty)
        for number in range(pieces):
            partials = partial_ptr + (first + number) * BLOCK_ROWS * width
            acc += load_rows(partials, i, i >= 0, width, column, BLOCK_P)
        matrix = image * tokens if LISTED else (image * groups + group) * key_rows
        store_rows(out_ptr + matrix * width, index, exists, width, column, acc, BLOCK_P)


@triton.jit
def sum_pieces_kernel(
    item_ptr,
    order_ptr,
    partial_ptr,  # (most pieces, BLOCK_ROWS, width) in the accumulator's dtype
    out_ptr,  # (B, N, width), or (B * groups, key_rows, width)
    more_partial_ptr,  # the same of another result with more_width columns, or None
    more_out_ptr,
    tokens,
    groups,
    key_rows,
    width,
    more_width,
    LISTED: tl.constexpr,  # rows are tokens; else rows of the group's matrix
    BLOCK_ROWS: tl.constexpr,
    BLOCK_R: tl.constexpr,  # rows that a program does
    BLOCK_P: tl.constexpr,
):
    blocks = tl.cdiv(width, BLOCK_P)
    block = tl.program_id(2)
    if block < blocks:
        sum_columns(
            item_ptr, order_ptr, partial_ptr, out_ptr, tokens, groups, key_rows, width, block * BLOCK_P,
            LISTED, BLOCK_ROWS, BLOCK_R, BLOCK_P,
        )  # fmt: skip
    elif more_out_ptr is not None:
        sum_columns(
            item_ptr, order_ptr, more_partial_ptr, more_out_ptr, tokens, groups, key_rows, more_width,
            (block - blocks) * BLOCK_P, LISTED, BLOCK_ROWS, BLOCK_R, BLOCK_P,
        )  # fmt: skip
