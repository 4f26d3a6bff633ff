"""Rows of matrices, for the kernels that work on lists of them. Rows too wide for registers go through in pieces."""

import triton
import triton.language as tl

MIN_NORM = tl.constexpr(1e-6)


@triton.jit
def load_rows(ptr, index, valid, width, first, BLOCK: tl.constexpr):
    """Columns first, first + 1, ... of rows of a (rows, width) matrix, zeros where not valid: (rows, BLOCK).

    Offsets are 32 bits, since those of 64 would fill the registers: a matrix has less than 2**31 elements.
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
def inverse_length(square):
    """One over the length of vectors, from the sums of their squares. Nothing is closer to zero than MIN_NORM."""
    return 1 / tl.maximum(tl.sqrt(square), MIN_NORM)


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
    a,  # with WHOLE the rows of the first matrix,
    b,  # and those of the second
    a_ptr,
    a_index,
    a_valid,
    b_ptr,
    b_index,
    b_valid,
    width,
    SQUARE: tl.constexpr,
    WHOLE: tl.constexpr,
    ACCUMULATE: tl.constexpr,
    OPERAND: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """<a[i], b[j]> for rows i of one matrix and j of another, and with SQUARE, |b[j]|²."""
    square = tl.zeros((b_index.shape[0],), ACCUMULATE)
    if WHOLE:
        dots = tl.dot(a.to(OPERAND), tl.trans(b.to(OPERAND)), input_precision=PRECISION, out_dtype=ACCUMULATE)
        if SQUARE:
            wide = b.to(ACCUMULATE)
            square += tl.sum(wide * wide, axis=1)
    else:
        dots = tl.zeros((a_index.shape[0], b_index.shape[0]), ACCUMULATE)
        for first in range(0, width, BLOCK):
            x = load_rows(a_ptr, a_index, a_valid, width, first, BLOCK)
            y = load_rows(b_ptr, b_index, b_valid, width, first, BLOCK)
            dots = tl.dot(x.to(OPERAND), tl.trans(y.to(OPERAND)), dots, input_precision=PRECISION, out_dtype=ACCUMULATE)
            if SQUARE:
                wide = y.to(ACCUMULATE)
                square += tl.sum(wide * wide, axis=1)
    return dots, square


@triton.jit
def unit_gradient(rows, inverse, grad, along):
    """The gradient of rows from that of the rows at unit length; `along` is the product of the two latter."""
    # Rows shorter than MIN_NORM are scaled by a constant: nothing is projected out.
    along = tl.where(inverse < 1 / MIN_NORM, along, 0.0) * inverse
    return (grad - rows * along[:, None]) * inverse[:, None]


@triton.jit
def load_temperature(temperature_ptr, scale, ACCUMULATE: tl.constexpr):
    temperature = tl.zeros((), ACCUMULATE) + scale
    if temperature_ptr is not None:
        temperature *= tl.load(temperature_ptr).to(ACCUMULATE)
    return temperature
