"""Norms of rows, and device functions that load, store and multiply listed rows. Wide rows are processed in pieces."""

import triton
import triton.language as tl

MIN_NORM = tl.constexpr(1e-6)


@triton.jit
def load_rows(ptr, index, valid, width, first, BLOCK: tl.constexpr):
    """Load (rows, BLOCK): the columns from `first` on of the rows `index` of a matrix; zeros where not valid.

    Offsets have 32 bits, so a matrix must have less than 2**31 elements. Offsets of 64 bits would fill the registers.
    """
    c = first + tl.arange(0, BLOCK)
    at = ptr + index[:, None] * width + c[None, :]
    return tl.load(at, mask=valid[:, None] & (c < width)[None, :], other=0.0)


@triton.jit
def store_rows(ptr, index, valid, width, first, rows, BLOCK: tl.constexpr):
    c = first + tl.arange(0, BLOCK)
    at = ptr + index[:, None] * width + c[None, :]
    tl.store(at, rows.to(ptr.dtype.element_ty), mask=valid[:, None] & (c < width)[None, :])


@triton.jit
def row_dots(a_ptr, b_ptr, index, valid, width, ACCUMULATE: tl.constexpr, BLOCK: tl.constexpr):
    """<a[i], b[i]> for rows i of two matrices of the same width."""
    total = tl.zeros((index.shape[0],), ACCUMULATE)
    for first in range(0, width, BLOCK):
        a = load_rows(a_ptr, index, valid, width, first, BLOCK).to(ACCUMULATE)
        b = load_rows(b_ptr, index, valid, width, first, BLOCK).to(ACCUMULATE)
        total += tl.sum(a * b, axis=1)
    return total


@triton.jit
def pair_dots(
    a,  # the rows of the first matrix; used with WHOLE only
    b,  # the rows of the second matrix; used with WHOLE only
    a_ptr,
    a_index,
    a_valid,
    b_ptr,
    b_index,
    b_valid,
    width,
    WHOLE: tl.constexpr,
    ACCUMULATE: tl.constexpr,
    OPERAND: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """All dot products <a[i], b[j]> of rows of two matrices."""
    if WHOLE:
        dots = tl.dot(a.to(OPERAND), tl.trans(b.to(OPERAND)), input_precision=PRECISION, out_dtype=ACCUMULATE)
    else:
        dots = tl.zeros((a_index.shape[0], b_index.shape[0]), ACCUMULATE)
        for first in range(0, width, BLOCK):
            x = load_rows(a_ptr, a_index, a_valid, width, first, BLOCK)
            y = load_rows(b_ptr, b_index, b_valid, width, first, BLOCK)
            dots = tl.dot(x.to(OPERAND), tl.trans(y.to(OPERAND)), dots, input_precision=PRECISION, out_dtype=ACCUMULATE)
    return dots


@triton.jit
def add_unit_rows(acc, weight, rows, inverse, ACCUMULATE: tl.constexpr, OPERAND: tl.constexpr, PRECISION: tl.constexpr):
    """acc + weight * unit(rows), for weight (M, N) and rows (N, C) with the inverse norms `inverse`."""
    if OPERAND.is_fp16():
        # A gradient divided by a small norm may exceed the range of float16.
        rows = rows.to(ACCUMULATE) * inverse[:, None]
    else:
        weight *= inverse[None, :]  # with bare rows, the product reads them from shared memory
    return tl.dot(weight.to(OPERAND), rows.to(OPERAND), acc, input_precision=PRECISION, out_dtype=ACCUMULATE)


@triton.jit
def unit_gradient(rows, inverse, grad, projection):
    """The gradient of rows, from `grad`, that of the unit rows. projection: (rows,), <grad, unit rows>."""
    # Rows shorter than MIN_NORM are divided by the constant MIN_NORM, so nothing is projected out. A GPU's 1 / MIN_NORM
    # may be the next smaller number.
    projection = tl.where(inverse < (1 - 1e-6) / MIN_NORM, projection, 0.0) * inverse
    return (grad - rows * projection[:, None]) * inverse[:, None]


@triton.jit
def load_temperature(temperature_ptr, scale, ACCUMULATE: tl.constexpr):
    temperature = tl.zeros((), ACCUMULATE) + scale
    if temperature_ptr is not None:
        temperature *= tl.load(temperature_ptr).to(ACCUMULATE)
    return temperature


@triton.jit
def write_inverse_norms(
    x_ptr, inverse_ptr, rows, width, ACCUMULATE: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_C: tl.constexpr
):
    """1 / norm of a tile of rows. Norms are clamped to MIN_NORM."""
    first = tl.program_id(0).to(tl.int64) * BLOCK_M
    row = tl.arange(0, BLOCK_M)
    exists = first + row < rows
    x_ptr += first * width
    square = row_dots(x_ptr, x_ptr, row, exists, width, ACCUMULATE, BLOCK_C)
    tl.store(inverse_ptr + first + row, 1 / tl.maximum(tl.sqrt(square), MIN_NORM), mask=exists)


@triton.jit
def inverse_norms_kernel(
    query_ptr,  # (queries, width)
    key_ptr,  # (keys, width)
    query_inverse_ptr,  # (queries,)
    key_inverse_ptr,  # (keys,)
    queries,
    keys,
    width,
    ACCUMULATE: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    if tl.program_id(1) == 0:
        write_inverse_norms(query_ptr, query_inverse_ptr, queries, width, ACCUMULATE, BLOCK_M, BLOCK_C)
    else:
        write_inverse_norms(key_ptr, key_inverse_ptr, keys, width, ACCUMULATE, BLOCK_M, BLOCK_C)
