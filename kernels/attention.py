"""Cosine attention within groups, forward and backward: the kernels of masked_correlation and of the memory.

Each image has groups of queries (see `showface.kernels.tokens`). Each group has its own keys and values:

    a[i,j] = softmax over the keys j of tau * <unit(query[i]), unit(key[j])>,   out[i] = sum over j of a[i,j] * value[j]

A program works on one tile of rows and loops over tiles of columns. Scores stay in registers. The backward recomputes
them from one number per query, its log-sum-exp (base 2): a[i,j] = 2 ** (tau * log2(e) * cosine - lse[i]). Rows wider
than BLOCK_C columns are read in pieces, and each program computes BLOCK_P columns of the result.
"""

import triton
import triton.language as tl

from showface.kernels.rows import (
    add_unit_rows,
    load_rows,
    load_temperature,
    pair_dots,
    row_dots,
    store_rows,
    unit_gradient,
)
from showface.kernels.tokens import find_query_tile, list_keys, query_tile

LOG2_E = tl.constexpr(1.4426950408889634)


@triton.jit
def attention_fwd_kernel(
    query_ptr,  # (B, N, C)
    key_ptr,  # (B * groups, key_rows, C), or with LISTED_KEYS (B, N, C)
    value_ptr,  # the same with V, or None if only lse is wanted
    query_inverse_ptr,  # (B, N): the inverse norms of the queries
    key_inverse_ptr,  # the inverse norms of the keys, in the layout of key_ptr without C
    order_ptr,  # (B, N) int32: tokens sorted by group; or without offset_ptr, (N,) int64: the group of each token
    offset_ptr,  # (B, groups + 2) int32: start of each group in the order; or None if the tokens are not sorted
    temperature_ptr,  # () or None
    out_ptr,  # (B, N, V), or with several splits partial results (splits, B, N, V), each normalised; or None
    lse_ptr,  # (B, N), or with several splits (splits, B, N)
    scale,
    tokens,
    groups,
    key_rows,
    channels,
    values,
    splits,
    parts,
    HIGH_TEMPERATURE: tl.constexpr,
    LISTED_KEYS: tl.constexpr,  # keys are listed tokens (those of no group); else all rows of the group's matrix
    WHOLE: tl.constexpr,  # rows have at most BLOCK_C columns
    ACCUMULATE: tl.constexpr,
    OPERAND: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_G: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_P: tl.constexpr,
):
    batch = tl.program_id(1).to(tl.int64)
    part = tl.program_id(2) % parts
    split = tl.program_id(2) // parts
    query_ptr += batch * tokens * channels
    partial_index = split * tl.num_programs(1) + batch
    lse_ptr += partial_index * tokens
    if offset_ptr is None:
        group, token, exists = find_query_tile(order_ptr, tokens, groups, tl.program_id(0), BLOCK_T, BLOCK_G, BLOCK_M)
        corrupted = 0
    else:
        order_ptr += batch * tokens
        offset_ptr += batch * (groups + 2)
        group, token, exists = query_tile(order_ptr, offset_ptr, tokens, groups, tl.program_id(0), BLOCK_G, BLOCK_M)
        corrupted = tl.load(offset_ptr + 1)
    keys = tokens - corrupted if LISTED_KEYS else key_rows
    block = batch * groups + tl.minimum(group, groups - 1)
    key_ptr += block * key_rows * channels
    key_inverse_ptr += block * key_rows

    row_sum = tl.zeros((BLOCK_M,), ACCUMULATE)
    row_max = tl.zeros((BLOCK_M,), ACCUMULATE)
    acc = tl.zeros((BLOCK_M, BLOCK_P), ACCUMULATE)
    # Tokens of no group are no queries; their results are zeros.
    if group < groups:
        temperature = load_temperature(temperature_ptr, scale, ACCUMULATE) * LOG2_E
        # Cosines are at most 1, so subtracting the temperature prevents overflow. At a high temperature all
        # exponentials of a row could underflow, so then the running maximum of the row is subtracted.
        high = temperature > HIGH_TEMPERATURE * LOG2_E
        row_max = tl.where(high, -float("inf"), row_max + temperature)
        # Not 0, which times -inf (the score past the last key) would be NaN.
        inverse = tl.load(query_inverse_ptr + batch * tokens + token, mask=exists, other=0.0) * temperature
        inverse = tl.maximum(inverse, 1e-37)
        query = load_rows(query_ptr, token, exists, channels, 0, BLOCK_C)
        steps = tl.cdiv(tl.cdiv(keys, BLOCK_N), splits)
        for step in range(split * steps, (split + 1) * steps):
            index, valid = list_keys(order_ptr, corrupted, keys, step * BLOCK_N, LISTED_KEYS, BLOCK_N)
            key = load_rows(key_ptr, index, valid, channels, 0, BLOCK_C)
            score = pair_dots(
                query, key, query_ptr, token, exists, key_ptr, index, valid, channels,
                WHOLE, ACCUMULATE, OPERAND, PRECISION, BLOCK_C,
            )  # fmt: skip
            # With short rows the operations for each pair of query and key limit the speed, so there are only two
            # multiply-adds and an exponential. Past the last key the score is -inf.
            key_inverse = tl.load(key_inverse_ptr + index, mask=valid, other=0.0)
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
    lse = tl.where(has_keys, row_max + tl.log2(row_sum), -float("inf") if splits > 1 else 0.0)
    if part == 0:
        tl.store(lse_ptr + token, lse, mask=exists)
    if value_ptr is not None:
        acc = tl.where(has_keys[:, None], acc / row_sum[:, None], 0.0)
        store_rows(out_ptr + partial_index * tokens * values, token, exists, values, part * BLOCK_P, acc, BLOCK_P)


@triton.jit
def attention_combine_kernel(
    partial_ptr,  # (splits, B * N, V) in the accumulator's dtype, or None if only lse is wanted
    partial_lse_ptr,  # (splits, B * N)
    out_ptr,  # (B * N, V), or None if only lse is wanted
    lse_ptr,  # (B * N,)
    rows,
    values,
    splits,
    BLOCK_M: tl.constexpr,
    BLOCK_P: tl.constexpr,
):
    first = tl.program_id(0).to(tl.int64) * BLOCK_M
    column = tl.program_id(1) * BLOCK_P
    row = tl.arange(0, BLOCK_M)
    exists = first + row < rows
    partial_lse = partial_lse_ptr + first + row
    row_max = tl.full((BLOCK_M,), -float("inf"), partial_lse_ptr.dtype.element_ty)
    for split in range(splits):
        row_max = tl.maximum(row_max, tl.load(partial_lse + split * rows, mask=exists, other=-float("inf")))
    row_max = tl.where(row_max > -float("inf"), row_max, 0.0)
    row_sum = tl.zeros_like(row_max)
    acc = tl.zeros((BLOCK_M, BLOCK_P), partial_lse_ptr.dtype.element_ty)
    for split in range(splits):
        weight = tl.exp2(tl.load(partial_lse + split * rows, mask=exists, other=-float("inf")) - row_max)
        row_sum += weight
        if partial_ptr is not None:
            partials = partial_ptr + (split * rows + first) * values
            acc += weight[:, None] * load_rows(partials, row, exists, values, column, BLOCK_P)
    has_keys = row_sum != 0  # true for NaN
    row_sum = tl.where(has_keys, row_sum, 1.0)
    lse = tl.where(has_keys, row_max + tl.log2(row_sum), 0.0)
    if tl.program_id(1) == 0:
        tl.store(lse_ptr + first + row, lse, mask=exists)
    if partial_ptr is not None:
        store_rows(out_ptr + first * values, row, exists, values, column, acc / row_sum[:, None], BLOCK_P)


@triton.jit
def attention_bwd_query_kernel(
    grad_ptr,  # (B, N, V)
    query_ptr,
    key_ptr,
    value_ptr,
    query_inverse_ptr,
    key_inverse_ptr,
    order_ptr,
    offset_ptr,
    out_ptr,  # (B, N, V)
    lse_ptr,  # (B, N)
    temperature_ptr,
    grad_query_ptr,  # (B, N, C)
    delta_ptr,  # (B, N), written: <grad, out>, which the key kernel reads
    grad_temperature_ptr,  # (B, tiles): partial sums
    scale,
    tokens,
    groups,
    key_rows,
    channels,
    values,
    LISTED_KEYS: tl.constexpr,
    WHOLE: tl.constexpr,
    ACCUMULATE: tl.constexpr,
    OPERAND: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_G: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_P: tl.constexpr,
):
    tile = tl.program_id(0)
    batch = tl.program_id(1).to(tl.int64)
    part = tl.program_id(2)
    grad_ptr += batch * tokens * values
    query_ptr += batch * tokens * channels
    order_ptr += batch * tokens
    offset_ptr += batch * (groups + 2)
    out_ptr += batch * tokens * values
    lse_ptr += batch * tokens
    grad_query_ptr += batch * tokens * channels
    delta_ptr += batch * tokens
    group, token, exists = query_tile(order_ptr, offset_ptr, tokens, groups, tile, BLOCK_G, BLOCK_M)
    corrupted = tl.load(offset_ptr + 1)
    keys = tokens - corrupted if LISTED_KEYS else key_rows
    block = batch * groups + tl.minimum(group, groups - 1)
    key_ptr += block * key_rows * channels
    key_inverse_ptr += block * key_rows
    value_ptr += block * key_rows * values

    grad_unit = tl.zeros((BLOCK_M, BLOCK_P), ACCUMULATE)
    grad_temperature = tl.zeros((), ACCUMULATE)
    if group < groups:
        temperature = load_temperature(temperature_ptr, scale, ACCUMULATE)
        inverse = tl.load(query_inverse_ptr + batch * tokens + token, mask=exists, other=0.0)
        delta = row_dots(grad_ptr, out_ptr, token, exists, values, ACCUMULATE, BLOCK_C)
        if part == 0:
            tl.store(delta_ptr + token, delta, mask=exists)
        lse = tl.load(lse_ptr + token, mask=exists, other=float("inf"))
        query = load_rows(query_ptr, token, exists, channels, 0, BLOCK_C)
        grad = load_rows(grad_ptr, token, exists, values, 0, BLOCK_C)
        projection = tl.zeros((BLOCK_M,), ACCUMULATE)  # <gradient of the unit query, unit query>, without tau
        for first in range(0, keys, BLOCK_N):
            index, valid = list_keys(order_ptr, corrupted, keys, first, LISTED_KEYS, BLOCK_N)
            key = load_rows(key_ptr, index, valid, channels, 0, BLOCK_C)
            cosine = pair_dots(
                query, key, query_ptr, token, exists, key_ptr, index, valid, channels,
                WHOLE, ACCUMULATE, OPERAND, PRECISION, BLOCK_C,
            )  # fmt: skip
            key_inverse = tl.load(key_inverse_ptr + index, mask=valid, other=0.0)
            cosine *= inverse[:, None] * key_inverse[None, :]
            weight = tl.exp2(cosine * (temperature * LOG2_E) - lse[:, None])
            weight = tl.where(valid[None, :], weight, 0.0)
            value = load_rows(value_ptr, index, valid, values, 0, BLOCK_C)
            grad_weight = pair_dots(
                grad, value, grad_ptr, token, exists, value_ptr, index, valid, values,
                WHOLE, ACCUMULATE, OPERAND, PRECISION, BLOCK_C,
            )  # fmt: skip
            grad_score = weight * (grad_weight - delta[:, None])
            projection += tl.sum(grad_score * cosine, axis=1)
            if not WHOLE:
                key = load_rows(key_ptr, index, valid, channels, part * BLOCK_P, BLOCK_P)
            grad_unit = add_unit_rows(grad_unit, grad_score, key, key_inverse, ACCUMULATE, OPERAND, PRECISION)
        grad_temperature = tl.sum(projection, axis=0)
        rows = load_rows(query_ptr, token, exists, channels, part * BLOCK_P, BLOCK_P).to(ACCUMULATE)
        grad_unit = unit_gradient(rows, inverse, grad_unit, projection) * temperature
    if part == 0:
        tl.store(grad_temperature_ptr + batch * tl.num_programs(0) + tile, grad_temperature)
    store_rows(grad_query_ptr, token, exists, channels, part * BLOCK_P, grad_unit, BLOCK_P)


@triton.jit
def attention_bwd_key_kernel(
    grad_ptr,  # (B, N, V)
    query_ptr,
    key_ptr,
    value_ptr,
    query_inverse_ptr,
    key_inverse_ptr,
    order_ptr,
    offset_ptr,
    lse_ptr,  # (B, N)
    delta_ptr,  # (B, N), or None if the gradients of the keys are not wanted
    temperature_ptr,
    grad_key_ptr,  # (splits, B * groups, key_rows, C), or with LISTED_KEYS (splits, B, N, C); or None
    grad_value_ptr,  # the same with V; or None if keys and values are one tensor: grad_key gets both gradients
    mass_ptr,  # (splits, B * groups, key_rows): the sum of a[i,j] over the queries, or None
    scale,
    tokens,
    groups,
    key_rows,
    channels,
    values,
    splits,
    parts,
    LISTED_KEYS: tl.constexpr,
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
    batch = (tl.program_id(1) // groups).to(tl.int64)
    group = tl.program_id(1) % groups
    part = tl.program_id(2) % parts
    split = tl.program_id(2) // parts
    block = tl.program_id(1).to(tl.int64)
    partial_index = split * tl.num_programs(1) + block
    grad_ptr += batch * tokens * values
    query_ptr += batch * tokens * channels
    key_ptr += block * key_rows * channels
    order_ptr += batch * tokens
    offset_ptr += batch * (groups + 2)
    lse_ptr += batch * tokens
    query_inverse_ptr += batch * tokens
    begin = tl.load(offset_ptr + group)
    end = tl.load(offset_ptr + group + 1)

    j = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    exists = j < key_rows
    steps = tl.cdiv(tl.cdiv(end - begin, BLOCK_M), splits)
    if LISTED_KEYS:
        # Read the list from its end: known tokens (the keys) come first, corrupted tokens after them.
        row = tl.load(order_ptr + tokens - 1 - j, mask=exists, other=0)
        key_valid = j < tokens - end
        steps = tl.where(tl.program_id(0) * BLOCK_N < tokens - end, steps, 0)
    else:
        row = j
        key_valid = exists
    temperature = load_temperature(temperature_ptr, scale, ACCUMULATE)
    inverse = tl.load(key_inverse_ptr + block * key_rows + row, mask=key_valid, other=0.0)
    key = load_rows(key_ptr, row, key_valid, channels, 0, BLOCK_C)
    grad_value = tl.zeros((BLOCK_N, BLOCK_P), ACCUMULATE)
    mass = tl.zeros((BLOCK_N,), ACCUMULATE)
    if grad_key_ptr is not None:
        value_ptr += block * key_rows * values
        delta_ptr += batch * tokens
        value = load_rows(value_ptr, row, key_valid, values, 0, BLOCK_C)
        grad_unit = tl.zeros((BLOCK_N, BLOCK_P), ACCUMULATE)
        projection = tl.zeros((BLOCK_N,), ACCUMULATE)  # <gradient of the unit key, unit key>, without tau
    for step in range(split * steps, (split + 1) * steps):
        i = begin + step * BLOCK_M + tl.arange(0, BLOCK_M)
        query_valid = i < end
        index = tl.load(order_ptr + i, mask=query_valid, other=0)
        query = load_rows(query_ptr, index, query_valid, channels, 0, BLOCK_C)
        cosine = pair_dots(
            key, query, key_ptr, row, key_valid, query_ptr, index, query_valid, channels,
            WHOLE, ACCUMULATE, OPERAND, PRECISION, BLOCK_C,
        )  # fmt: skip
        query_inverse = tl.load(query_inverse_ptr + index, mask=query_valid, other=0.0)
        cosine *= inverse[:, None] * query_inverse[None, :]
        lse = tl.load(lse_ptr + index, mask=query_valid, other=float("inf"))
        weight = tl.exp2(cosine * (temperature * LOG2_E) - lse[None, :])
        weight = tl.where(query_valid[None, :], weight, 0.0)
        grad = load_rows(grad_ptr, index, query_valid, values, part * BLOCK_P, BLOCK_P)
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
            delta = tl.load(delta_ptr + index, mask=query_valid, other=0.0)
            grad_weight = pair_dots(
                value, grad, value_ptr, row, key_valid, grad_ptr, index, query_valid, values,
                WHOLE, ACCUMULATE, OPERAND, PRECISION, BLOCK_C,
            )  # fmt: skip
            grad_score = weight * (grad_weight - delta[None, :])
            projection += tl.sum(grad_score * cosine, axis=1)
            if not WHOLE:
                query = load_rows(query_ptr, index, query_valid, channels, part * BLOCK_P, BLOCK_P)
            grad_unit = add_unit_rows(grad_unit, grad_score, query, query_inverse, ACCUMULATE, OPERAND, PRECISION)
    column = part * BLOCK_P
    if mass_ptr is not None:  # noqa: SIM102, the outer condition is known at compile time, the inner one is not
        if part == 0:
            tl.store(mass_ptr + partial_index * key_rows + row, mass, mask=exists)
    if grad_key_ptr is not None:
        rows = load_rows(key_ptr, row, key_valid, channels, column, BLOCK_P).to(ACCUMULATE)
        grad_key = unit_gradient(rows, inverse, grad_unit, projection) * temperature
        if grad_value_ptr is None:
            grad_key += grad_value
        grad_key = tl.where(key_valid[:, None], grad_key, 0.0)
        store_rows(grad_key_ptr + partial_index * key_rows * channels, row, exists, channels, column, grad_key, BLOCK_P)
    if grad_value_ptr is not None:
        grad_value = tl.where(key_valid[:, None], grad_value, 0.0)
        store_rows(grad_value_ptr + partial_index * key_rows * values, row, exists, values, column, grad_value, BLOCK_P)
