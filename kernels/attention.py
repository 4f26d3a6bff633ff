"""Cosine attention within groups, forward and backward: the kernels of masked_correlation and of the memory.

Each image has groups of queries (see `showface.kernels.tokens`). Each group has its own keys and values:

    a[i,j] = softmax over the keys j of tau * <unit(query[i]), unit(key[j])>,   out[i] = sum over j of a[i,j] * value[j]

A program works on one item of the list of work (see `showface.kernels.work`): it has a tile of rows, and loops over
tiles of columns. Scores stay in registers. The backward recomputes them from one number per query, its log-sum-exp
(base 2): a[i,j] = 2 ** (tau * log2(e) * cosine - lse[i]). Rows wider than BLOCK_C columns are read in pieces, and each
program computes BLOCK_P columns of the result.
"""

import triton
import triton.language as tl

from showface.kernels.rows import (
    add_unit_rows,
    load_rows,
    load_temperature,
    pair_dots,
    row_dots,
    unit_gradient,
)
from showface.kernels.work import item_of_program, list_rows, load_item, store_rows_or_piece

LOG2_E = tl.constexpr(1.4426950408889634)


@triton.jit
def attention_fwd_kernel(
    query_ptr,  # (B, N, C)
    key_ptr,  # (B * groups, key_rows, C), or with LISTED_KEYS (B, N, C)
    value_ptr,  # the same with V, or None if only lse is wanted
    query_inverse_ptr,  # (B, N): the inverse norms of the queries
    key_inverse_ptr,  # the inverse norms of the keys, in the layout of key_ptr without C
    order_ptr,  # (B, N) int32: tokens sorted by group
    item_ptr,  # (items, 8) int32, see `list_work`
    temperature_ptr,  # () or None
    out_ptr,  # (B, N, V), or None if only lse is wanted
    lse_ptr,  # (B, N)
    partial_ptr,  # (most pieces, BLOCK_M, V): the results of pieces, each normalised; with CUT, and if out is wanted
    partial_lse_ptr,  # (most pieces, BLOCK_M); with CUT
    scale,
    tokens,
    groups,
    key_rows,
    channels,
    values,
    HIGH_TEMPERATURE: tl.constexpr,
    LISTED_KEYS: tl.constexpr,  # keys are listed tokens (those of no group); else all rows of the group's matrix
    CUT: tl.constexpr,  # tiles of queries may be cut
    WHOLE: tl.constexpr,  # rows have at most BLOCK_C columns
    ACCUMULATE: tl.constexpr,
    OPERAND: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_P: tl.constexpr,
):
    part = tl.program_id(1)
    temperature = load_temperature(temperature_ptr, scale, ACCUMULATE) * LOG2_E
    # Cosines are at most 1, so subtracting the temperature prevents overflow. At a high temperature all
    # exponentials of a row could underflow, so then the running maximum of the row is subtracted.
    high = temperature > HIGH_TEMPERATURE * LOG2_E
    image, group, row, rows, column, columns, _, pieces = load_item(item_ptr, item_of_program())
    block = image * groups + tl.minimum(group, groups - 1)
    order = order_ptr + image * tokens
    token, exists = list_rows(order, row, rows, 0, True, BLOCK_M)
    queries_ptr = query_ptr + image * tokens * channels
    keys_ptr = key_ptr + block * key_rows * channels

    row_sum = tl.zeros((BLOCK_M,), ACCUMULATE)
    row_max = tl.where(high, -float("inf"), tl.zeros((BLOCK_M,), ACCUMULATE) + temperature)
    acc = tl.zeros((BLOCK_M, BLOCK_P), ACCUMULATE)
    # Not 0, which times -inf (the score past the last key) would be NaN.
    inverse = tl.load(query_inverse_ptr + image * tokens + token, mask=exists, other=0.0) * temperature
    inverse = tl.maximum(inverse, 1e-37)
    query = load_rows(queries_ptr, token, exists, channels, 0, BLOCK_C)
    # Tokens of no group have no keys; their results are zeros.
    for start in range(0, columns, BLOCK_N):
        index, valid = list_rows(order, column, columns, start, LISTED_KEYS, BLOCK_N)
        key = load_rows(keys_ptr, index, valid, channels, 0, BLOCK_C)
        score = pair_dots(
            query, key, queries_ptr, token, exists, keys_ptr, index, valid, channels,
            WHOLE, ACCUMULATE, OPERAND, PRECISION, BLOCK_C,
        )  # fmt: skip
        # With short rows the operations for each pair of query and key limit the speed, so there are only two
        # multiply-adds and an exponential. Past the last key the score is -inf.
        key_inverse = tl.load(key_inverse_ptr + block * key_rows + index, mask=valid, other=0.0)
        score = score * key_inverse[None, :] + tl.where(valid, 0.0, -float("inf"))[None, :]
        if high:
            new_max = tl.maximum(row_max, tl.max(score, axis=1) * inverse)
            # A step without keys changes nothing (-inf - -inf would be NaN).
            keep = tl.where(new_max == row_max, 1.0, tl.exp2(row_max - new_max))
            row_sum *= keep
            acc *= keep[:, None]
            row_max = new_max
        bound = tl.where(row_max == -float("inf"), 0.0, row_max)
        weight = tl.exp2(score * inverse[:, None] - bound[:, None])
        row_sum += tl.sum(weight, axis=1)
        if value_ptr is not None:
            values_ptr = value_ptr + block * key_rows * values
            value = load_rows(values_ptr, index, valid, values, part * BLOCK_P, BLOCK_P).to(OPERAND)
            acc = tl.dot(weight.to(OPERAND), value, acc, input_precision=PRECISION, out_dtype=ACCUMULATE)
    has_keys = exists & (row_sum != 0)  # true for NaN
    row_sum = tl.where(has_keys, row_sum, 1.0)
    lse = row_max + tl.log2(row_sum)
    if value_ptr is not None:
        acc = tl.where(has_keys[:, None], acc / row_sum[:, None], 0.0)
        store_rows_or_piece(
            out_ptr + image * tokens * values, partial_ptr, token, exists, values, part * BLOCK_P,
            acc, pieces, CUT, BLOCK_M, BLOCK_P,
        )  # fmt: skip
    if part == 0:
        if pieces == 1:
            tl.store(lse_ptr + image * tokens + token, tl.where(has_keys, lse, 0.0), mask=exists)
        elif CUT:
            slot = item_of_program().to(tl.int64) * BLOCK_M + tl.arange(0, BLOCK_M)
            tl.store(partial_lse_ptr + slot, tl.where(has_keys, lse, -float("inf")))


@triton.jit
def attention_bwd_query_kernel(
    grad_ptr,  # (B, N, V)
    query_ptr,
    key_ptr,
    value_ptr,
    query_inverse_ptr,
    key_inverse_ptr,
    order_ptr,
    item_ptr,
    out_ptr,  # (B, N, V)
    lse_ptr,  # (B, N)
    temperature_ptr,
    grad_query_ptr,  # (B, N, C)
    partial_ptr,  # (most pieces, BLOCK_M, C): the results of pieces; with CUT
    delta_ptr,  # (B, N), written: <grad, out>, which the key kernel reads
    grad_temperature_ptr,  # (items,): partial sums
    scale,
    tokens,
    groups,
    key_rows,
    channels,
    values,
    LISTED_KEYS: tl.constexpr,
    CUT: tl.constexpr,
    WHOLE: tl.constexpr,
    ACCUMULATE: tl.constexpr,
    OPERAND: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_P: tl.constexpr,
):
    part = tl.program_id(1)
    temperature = load_temperature(temperature_ptr, scale, ACCUMULATE)
    image, group, row, rows, column, columns, piece, pieces = load_item(item_ptr, item_of_program())
    block = image * groups + tl.minimum(group, groups - 1)
    order = order_ptr + image * tokens
    token, exists = list_rows(order, row, rows, 0, True, BLOCK_M)
    queries_ptr = query_ptr + image * tokens * channels
    grads_ptr = grad_ptr + image * tokens * values
    keys_ptr = key_ptr + block * key_rows * channels
    values_ptr = value_ptr + block * key_rows * values

    # Without keys, the gradient is 0 whatever the query is.
    attends = exists & (tl.zeros_like(token) + columns > 0)
    inverse = tl.load(query_inverse_ptr + image * tokens + token, mask=attends, other=0.0)
    delta = row_dots(grads_ptr, out_ptr + image * tokens * values, token, attends, values, ACCUMULATE, BLOCK_C)
    if (part == 0) & (piece == 0):
        tl.store(delta_ptr + image * tokens + token, delta, mask=exists)
    lse = tl.load(lse_ptr + image * tokens + token, mask=attends, other=float("inf"))
    query = load_rows(queries_ptr, token, attends, channels, 0, BLOCK_C)
    grad = load_rows(grads_ptr, token, attends, values, 0, BLOCK_C)
    grad_unit = tl.zeros((BLOCK_M, BLOCK_P), ACCUMULATE)
    projection = tl.zeros((BLOCK_M,), ACCUMULATE)  # <gradient of the unit query, unit query>, without tau
    for start in range(0, columns, BLOCK_N):
        index, valid = list_rows(order, column, columns, start, LISTED_KEYS, BLOCK_N)
        key = load_rows(keys_ptr, index, valid, channels, 0, BLOCK_C)
        cosine = pair_dots(
            query, key, queries_ptr, token, attends, keys_ptr, index, valid, channels,
            WHOLE, ACCUMULATE, OPERAND, PRECISION, BLOCK_C,
        )  # fmt: skip
        key_inverse = tl.load(key_inverse_ptr + block * key_rows + index, mask=valid, other=0.0)
        cosine *= inverse[:, None] * key_inverse[None, :]
        weight = tl.exp2(cosine * (temperature * LOG2_E) - lse[:, None])
        weight = tl.where(valid[None, :], weight, 0.0)
        value = load_rows(values_ptr, index, valid, values, 0, BLOCK_C)
        grad_weight = pair_dots(
            grad, value, grads_ptr, token, attends, values_ptr, index, valid, values,
            WHOLE, ACCUMULATE, OPERAND, PRECISION, BLOCK_C,
        )  # fmt: skip
        grad_score = weight * (grad_weight - delta[:, None])
        projection += tl.sum(grad_score * cosine, axis=1)
        if not WHOLE:
            key = load_rows(keys_ptr, index, valid, channels, part * BLOCK_P, BLOCK_P)
        grad_unit = add_unit_rows(grad_unit, grad_score, key, key_inverse, ACCUMULATE, OPERAND, PRECISION)
    query_rows = load_rows(queries_ptr, token, attends, channels, part * BLOCK_P, BLOCK_P).to(ACCUMULATE)
    grad_query = unit_gradient(query_rows, inverse, grad_unit, projection) * temperature
    store_rows_or_piece(
        grad_query_ptr + image * tokens * channels, partial_ptr, token, exists, channels, part * BLOCK_P,
        grad_query, pieces, CUT, BLOCK_M, BLOCK_P,
    )  # fmt: skip
    if part == 0:
        tl.store(grad_temperature_ptr + tl.program_id(0), tl.sum(projection, axis=0))


@triton.jit
def attention_bwd_key_kernel(
    grad_ptr,  # (B, N, V)
    query_ptr,
    key_ptr,
    value_ptr,
    query_inverse_ptr,
    key_inverse_ptr,
    order_ptr,
    item_ptr,
    lse_ptr,  # (B, N)
    delta_ptr,  # (B, N), or None if the gradients of the keys are not wanted
    temperature_ptr,
    grad_key_ptr,  # in the layout of key_ptr, or None
    grad_value_ptr,  # the same with V; or None if keys and values are one tensor: grad_key gets both gradients
    mass_ptr,  # the same without V: the sum of a[i,j] over the queries; or None
    partial_key_ptr,  # (most pieces, BLOCK_N, ...): the results of pieces, with CUT, where the whole results are wanted
    partial_value_ptr,
    partial_mass_ptr,
    scale,
    tokens,
    groups,
    key_rows,
    channels,
    values,
    LISTED_KEYS: tl.constexpr,
    CUT: tl.constexpr,
    WHOLE: tl.constexpr,
    ACCUMULATE: tl.constexpr,
    OPERAND: tl.constexpr,
    VALUE_OPERAND: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_P: tl.constexpr,
):
    part = tl.program_id(1)
    temperature = load_temperature(temperature_ptr, scale, ACCUMULATE)
    image, group, row, rows, column, columns, _, pieces = load_item(item_ptr, item_of_program())
    block = image * groups + tl.minimum(group, groups - 1)
    order = order_ptr + image * tokens
    key_row, exists = list_rows(order, row, rows, 0, LISTED_KEYS, BLOCK_N)
    queries_ptr = query_ptr + image * tokens * channels
    grads_ptr = grad_ptr + image * tokens * values
    keys_ptr = key_ptr + block * key_rows * channels

    # Without queries, the gradient is 0 whatever the key is.
    attended = exists & (tl.zeros_like(key_row) + columns > 0)
    inverse = tl.load(key_inverse_ptr + block * key_rows + key_row, mask=attended, other=0.0)
    key = load_rows(keys_ptr, key_row, attended, channels, 0, BLOCK_C)
    grad_value = tl.zeros((BLOCK_N, BLOCK_P), ACCUMULATE)
    mass = tl.zeros((BLOCK_N,), ACCUMULATE)
    if grad_key_ptr is not None:
        values_ptr = value_ptr + block * key_rows * values
        value = load_rows(values_ptr, key_row, attended, values, 0, BLOCK_C)
        grad_unit = tl.zeros((BLOCK_N, BLOCK_P), ACCUMULATE)
        projection = tl.zeros((BLOCK_N,), ACCUMULATE)  # <gradient of the unit key, unit key>, without tau
    for start in range(0, columns, BLOCK_M):
        index, valid = list_rows(order, column, columns, start, True, BLOCK_M)
        query = load_rows(queries_ptr, index, valid, channels, 0, BLOCK_C)
        cosine = pair_dots(
            key, query, keys_ptr, key_row, attended, queries_ptr, index, valid, channels,
            WHOLE, ACCUMULATE, OPERAND, PRECISION, BLOCK_C,
        )  # fmt: skip
        query_inverse = tl.load(query_inverse_ptr + image * tokens + index, mask=valid, other=0.0)
        cosine *= inverse[:, None] * query_inverse[None, :]
        lse = tl.load(lse_ptr + image * tokens + index, mask=valid, other=float("inf"))
        weight = tl.exp2(cosine * (temperature * LOG2_E) - lse[None, :])
        weight = tl.where(valid[None, :], weight, 0.0)
        grad = load_rows(grads_ptr, index, valid, values, part * BLOCK_P, BLOCK_P)
        grad_value = tl.dot(
            weight.to(VALUE_OPERAND),
            grad.to(VALUE_OPERAND),
            grad_value,
            input_precision=PRECISION,
            out_dtype=ACCUMULATE,
        )
        if mass_ptr is not None:
            mass += tl.sum(weight, axis=1)
        if grad_key_ptr is not None:
            delta = tl.load(delta_ptr + image * tokens + index, mask=valid, other=0.0)
            grad_weight = pair_dots(
                value, grad, values_ptr, key_row, attended, grads_ptr, index, valid, values,
                WHOLE, ACCUMULATE, OPERAND, PRECISION, BLOCK_C,
            )  # fmt: skip
            grad_score = weight * (grad_weight - delta[None, :])
            projection += tl.sum(grad_score * cosine, axis=1)
            if not WHOLE:
                query = load_rows(queries_ptr, index, valid, channels, part * BLOCK_P, BLOCK_P)
            grad_unit = add_unit_rows(grad_unit, grad_score, query, query_inverse, ACCUMULATE, OPERAND, PRECISION)
    grad_value = tl.where(attended[:, None], grad_value, 0.0)
    if mass_ptr is not None:  # noqa: SIM102, the outer condition is known at compile time, the inner one is not
        if part == 0:
            store_rows_or_piece(
                mass_ptr + block * key_rows, partial_mass_ptr, key_row, exists, 1, 0,
                mass[:, None], pieces, CUT, BLOCK_N, 1,
            )  # fmt: skip
    if grad_key_ptr is not None:
        key_values = load_rows(keys_ptr, key_row, attended, channels, part * BLOCK_P, BLOCK_P).to(ACCUMULATE)
        grad_key = unit_gradient(key_values, inverse, grad_unit, projection) * temperature
        if grad_value_ptr is None:
            grad_key += grad_value
        store_rows_or_piece(
            grad_key_ptr + block * key_rows * channels, partial_key_ptr, key_row, exists, channels, part * BLOCK_P,
            grad_key, pieces, CUT, BLOCK_N, BLOCK_P,
        )  # fmt: skip
    if grad_value_ptr is not None:
        store_rows_or_piece(
            grad_value_ptr + block * key_rows * values, partial_value_ptr, key_row, exists, values, part * BLOCK_P,
            grad_value, pieces, CUT, BLOCK_N, BLOCK_P,
        )  # fmt: skip
