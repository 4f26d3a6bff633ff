"""Attention by cosine within groups, forward and backward: the kernels of masked_correlation and of the memory.

Each image has groups of queries (`showface.kernels.tokens` lists them), and each group its keys, with values:

    a[i,j] = softmax over the keys j of tau * <unit(query[i]), unit(key[j])>,   out[i] = sum over j of a[i,j] * value[j]

A program takes a tile of rows through the tiles of what they meet. Correlations live in registers; what is kept for the
backward is one number for each query, log_sum, with a[i,j] = 2 ** (tau * log2(e) * cosine - log_sum[i]). Rows wider
than a tile go through it in pieces, and their answers or gradients are split over programs, a part of the columns each.
"""

import triton
import triton.language as tl

from showface.kernels.rows import (
    inverse_length,
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
    key_ptr,  # (B * groups, key_rows, C), or with listed keys (B, N, C)
    value_ptr,  # the same with V, or None where only log_sum is wanted
    order_ptr,  # (B, N) int32, or where it is not sorted the groups of the tokens
    offset_ptr,  # (B, groups + 2) int32, or None
    temperature_ptr,  # () or None
    out_ptr,  # (B, N, V), or with splits their shares (splits, B, N, V), not yet divided by their sums
    log_sum_ptr,  # (B, N), or (splits, B, N)
    scale,
    tokens,
    groups,
    key_rows,
    channels,
    values,
    splits,
    parts,
    HIGH_TEMPERATURE: tl.constexpr,
    LISTED: tl.constexpr,  # the keys are the tokens of no group, else all rows of the group's matrix
    WHOLE: tl.constexpr,  # rows fit one piece of BLOCK_C columns
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
    share = split * tl.num_programs(1) + batch
    log_sum_ptr += share * tokens
    if offset_ptr is None:
        group, token, exists = find_query_tile(order_ptr, tokens, groups, tl.program_id(0), BLOCK_T, BLOCK_G, BLOCK_M)
        corrupted = 0
    else:
        order_ptr += batch * tokens
        offset_ptr += batch * (groups + 2)
        group, token, exists = query_tile(order_ptr, offset_ptr, tokens, groups, tl.program_id(0), BLOCK_G, BLOCK_M)
        corrupted = tl.load(offset_ptr + 1)
    keys = tokens - corrupted if LISTED else key_rows
    block = batch * groups + tl.minimum(group, groups - 1)
    key_ptr += block * key_rows * channels

    total = tl.zeros((BLOCK_M,), ACCUMULATE)
    peak = tl.zeros((BLOCK_M,), ACCUMULATE)
    mixed = tl.zeros((BLOCK_M, BLOCK_P), ACCUMULATE)
    # Tokens of no group have nothing to ask: theirs are zeros.
    if group < groups:
        temperature = load_temperature(temperature_ptr, scale, ACCUMULATE) * LOG2_E
        # A cosine is at most 1: the temperature is enough to subtract before exponentials, unless it is so high that
        # a row of small cosines would vanish.
        high = temperature > HIGH_TEMPERATURE * LOG2_E
        peak = tl.where(high, -float("inf"), peak + temperature)
        inverse = inverse_length(row_dots(query_ptr, query_ptr, token, exists, channels, ACCUMULATE, BLOCK_C))
        inverse *= temperature
        query = load_rows(query_ptr, token, exists, channels, 0, BLOCK_C)
        steps = tl.cdiv(tl.cdiv(keys, BLOCK_N), splits)
        for step in range(split * steps, (split + 1) * steps):
            index, valid = list_keys(order_ptr, corrupted, keys, step * BLOCK_N, LISTED, BLOCK_N)
            key = load_rows(key_ptr, index, valid, channels, 0, BLOCK_C)
            score, square = pair_dots(
                query, key, query_ptr, token, exists, key_ptr, index, valid, channels,
                True, WHOLE, ACCUMULATE, OPERAND, PRECISION, BLOCK_C,
            )  # fmt: skip
            score *= inverse[:, None] * inverse_length(square)[None, :]
            score = tl.where(valid[None, :], score, -float("inf"))
            if high:
                new_peak = tl.maximum(peak, tl.max(score, axis=1))
                # A step past the last key leaves everything as it is.
                keep = tl.where(new_peak == peak, 1.0, tl.exp2(peak - new_peak))
                total *= keep
                mixed *= keep[:, None]
                peak = new_peak
            weight = tl.where(valid[None, :], tl.exp2(score - peak[:, None]), 0.0)
            total += tl.sum(weight, axis=1)
            if value_ptr is not None:
                values_ptr = value_ptr + block * key_rows * values
                value = load_rows(values_ptr, index, valid, values, part * BLOCK_P, BLOCK_P).to(OPERAND)
                mixed = tl.dot(weight.to(OPERAND), value, mixed, input_precision=PRECISION, out_dtype=ACCUMULATE)
    answered = exists & (total > 0)
    total = tl.where(answered, total, 1.0)
    log_sum = tl.where(answered, peak + tl.log2(total), -float("inf") if splits > 1 else 0.0)
    if part == 0:
        tl.store(log_sum_ptr + token, log_sum, mask=exists)
    if value_ptr is not None:
        mixed = tl.where(answered[:, None], mixed / total[:, None], 0.0)
        store_rows(out_ptr + share * tokens * values, token, exists, values, part * BLOCK_P, mixed, BLOCK_P)


@triton.jit
def attention_merge_kernel(
    share_ptr,  # (splits, B * N, V) float, or None
    share_log_sum_ptr,  # (splits, B * N)
    out_ptr,  # (B * N, V), or None
    log_sum_ptr,  # (B * N,)
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
    log_sums = share_log_sum_ptr + first + row
    peak = tl.full((BLOCK_M,), -float("inf"), share_log_sum_ptr.dtype.element_ty)
    for split in range(splits):
        peak = tl.maximum(peak, tl.load(log_sums + split * rows, mask=exists, other=-float("inf")))
    answered = peak > -float("inf")
    peak = tl.where(answered, peak, 0.0)
    total = tl.zeros_like(peak)
    mixed = tl.zeros((BLOCK_M, BLOCK_P), share_log_sum_ptr.dtype.element_ty)
    for split in range(splits):
        weight = tl.exp2(tl.load(log_sums + split * rows, mask=exists, other=-float("inf")) - peak)
        total += weight
        if share_ptr is not None:
            shares = share_ptr + (split * rows + first) * values
            mixed += weight[:, None] * load_rows(shares, row, exists, values, column, BLOCK_P)
    total = tl.where(answered, total, 1.0)
    log_sum = tl.where(answered, peak + tl.log2(total), 0.0)
    if tl.program_id(1) == 0:
        tl.store(log_sum_ptr + first + row, log_sum, mask=exists)
    if share_ptr is not None:
        store_rows(out_ptr + first * values, row, exists, values, column, mixed / total[:, None], BLOCK_P)


@triton.jit
def attention_bwd_query_kernel(
    grad_ptr,  # (B, N, V)
    query_ptr,
    key_ptr,
    value_ptr,
    order_ptr,
    offset_ptr,
    out_ptr,  # (B, N, V)
    log_sum_ptr,  # (B, N)
    temperature_ptr,
    grad_query_ptr,  # (B, N, C)
    along_ptr,  # (B, N): <grad, out>, for the other kernel
    grad_temperature_ptr,  # (B, tiles): each tile's share
    scale,
    tokens,
    groups,
    key_rows,
    channels,
    values,
    LISTED: tl.constexpr,
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
    log_sum_ptr += batch * tokens
    grad_query_ptr += batch * tokens * channels
    along_ptr += batch * tokens
    group, token, exists = query_tile(order_ptr, offset_ptr, tokens, groups, tile, BLOCK_G, BLOCK_M)
    corrupted = tl.load(offset_ptr + 1)
    keys = tokens - corrupted if LISTED else key_rows
    block = batch * groups + tl.minimum(group, groups - 1)
    key_ptr += block * key_rows * channels
    value_ptr += block * key_rows * values

    grad_unit = tl.zeros((BLOCK_M, BLOCK_P), ACCUMULATE)
    grad_temperature = tl.zeros((), ACCUMULATE)
    if group < groups:
        temperature = load_temperature(temperature_ptr, scale, ACCUMULATE)
        inverse = inverse_length(row_dots(query_ptr, query_ptr, token, exists, channels, ACCUMULATE, BLOCK_C))
        along = row_dots(grad_ptr, out_ptr, token, exists, values, ACCUMULATE, BLOCK_C)
        if part == 0:
            tl.store(along_ptr + token, along, mask=exists)
        log_sum = tl.load(log_sum_ptr + token, mask=exists, other=float("inf"))
        query = load_rows(query_ptr, token, exists, channels, 0, BLOCK_C)
        grad = load_rows(grad_ptr, token, exists, values, 0, BLOCK_C)
        onto = tl.zeros((BLOCK_M,), ACCUMULATE)  # <gradient of the unit query, unit query>
        for first in range(0, keys, BLOCK_N):
            index, valid = list_keys(order_ptr, corrupted, keys, first, LISTED, BLOCK_N)
            key = load_rows(key_ptr, index, valid, channels, 0, BLOCK_C)
            cosine, square = pair_dots(
                query, key, query_ptr, token, exists, key_ptr, index, valid, channels,
                True, WHOLE, ACCUMULATE, OPERAND, PRECISION, BLOCK_C,
            )  # fmt: skip
            key_inverse = inverse_length(square)
            cosine *= inverse[:, None] * key_inverse[None, :]
            weight = tl.exp2(cosine * (temperature * LOG2_E) - log_sum[:, None])
            weight = tl.where(valid[None, :], weight, 0.0)
            value = load_rows(value_ptr, index, valid, values, 0, BLOCK_C)
            grad_weight, _square = pair_dots(
                grad, value, grad_ptr, token, exists, value_ptr, index, valid, values,
                False, WHOLE, ACCUMULATE, OPERAND, PRECISION, BLOCK_C,
            )  # fmt: skip
            grad_score = weight * (grad_weight - along[:, None])
            onto += tl.sum(grad_score * cosine, axis=1)
            if not WHOLE:
                key = load_rows(key_ptr, index, valid, channels, part * BLOCK_P, BLOCK_P)
            unit = (key.to(ACCUMULATE) * key_inverse[:, None]).to(OPERAND)
            grad_unit = tl.dot(grad_score.to(OPERAND), unit, grad_unit, input_precision=PRECISION, out_dtype=ACCUMULATE)
        grad_temperature = tl.sum(onto, axis=0)
        rows = load_rows(query_ptr, token, exists, channels, part * BLOCK_P, BLOCK_P).to(ACCUMULATE)
        grad_unit = unit_gradient(rows, inverse, grad_unit, onto) * temperature
    if part == 0:
        tl.store(grad_temperature_ptr + batch * tl.num_programs(0) + tile, grad_temperature)
    store_rows(grad_query_ptr, token, exists, channels, part * BLOCK_P, grad_unit, BLOCK_P)


@triton.jit
def attention_bwd_key_kernel(
    grad_ptr,  # (B, N, V)
    query_ptr,
    key_ptr,
    value_ptr,
    order_ptr,
    offset_ptr,
    log_sum_ptr,  # (B, N)
    along_ptr,  # (B, N), or None where the gradients of the keys are not wanted
    temperature_ptr,
    grad_key_ptr,  # (splits, B * groups, key_rows, C), or with listed keys (splits, B, N, C), or None
    grad_value_ptr,  # the same with V, or None where the keys are the values, and both gradients go to grad_key
    mass_ptr,  # (splits, B * groups, key_rows): the sum of a[i,j] over the queries, or None
    scale,
    tokens,
    groups,
    key_rows,
    channels,
    values,
    splits,
    parts,
    LISTED: tl.constexpr,
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
    share = split * tl.num_programs(1) + block
    grad_ptr += batch * tokens * values
    query_ptr += batch * tokens * channels
    key_ptr += block * key_rows * channels
    order_ptr += batch * tokens
    offset_ptr += batch * (groups + 2)
    log_sum_ptr += batch * tokens
    begin = tl.load(offset_ptr + group)
    end = tl.load(offset_ptr + group + 1)

    j = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    exists = j < key_rows
    steps = tl.cdiv(tl.cdiv(end - begin, BLOCK_M), splits)
    if LISTED:
        # The tokens from the last to the first of the list: keys come before those that are none.
        row = tl.load(order_ptr + tokens - 1 - j, mask=exists, other=0)
        answers = j < tokens - end
        steps = tl.where(tl.program_id(0) * BLOCK_N < tokens - end, steps, 0)
    else:
        row = j
        answers = exists
    temperature = load_temperature(temperature_ptr, scale, ACCUMULATE)
    inverse = inverse_length(row_dots(key_ptr, key_ptr, row, answers, channels, ACCUMULATE, BLOCK_C))
    key = load_rows(key_ptr, row, answers, channels, 0, BLOCK_C)
    grad_value = tl.zeros((BLOCK_N, BLOCK_P), ACCUMULATE)
    mass = tl.zeros((BLOCK_N,), ACCUMULATE)
    if grad_key_ptr is not None:
        value_ptr += block * key_rows * values
        along_ptr += batch * tokens
        value = load_rows(value_ptr, row, answers, values, 0, BLOCK_C)
        grad_unit = tl.zeros((BLOCK_N, BLOCK_P), ACCUMULATE)
        onto = tl.zeros((BLOCK_N,), ACCUMULATE)  # <gradient of the unit key, unit key>, but for the temperature
    for step in range(split * steps, (split + 1) * steps):
        i = begin + step * BLOCK_M + tl.arange(0, BLOCK_M)
        asks = i < end
        index = tl.load(order_ptr + i, mask=asks, other=0)
        query = load_rows(query_ptr, index, asks, channels, 0, BLOCK_C)
        cosine, square = pair_dots(
            key, query, key_ptr, row, answers, query_ptr, index, asks, channels,
            True, WHOLE, ACCUMULATE, OPERAND, PRECISION, BLOCK_C,
        )  # fmt: skip
        query_inverse = inverse_length(square)
        cosine *= inverse[:, None] * query_inverse[None, :]
        log_sum = tl.load(log_sum_ptr + index, mask=asks, other=float("inf"))
        weight = tl.exp2(cosine * (temperature * LOG2_E) - log_sum[None, :])
        weight = tl.where(asks[None, :], weight, 0.0)
        grad = load_rows(grad_ptr, index, asks, values, part * BLOCK_P, BLOCK_P)
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
            along = tl.load(along_ptr + index, mask=asks, other=0.0)
            grad_weight, _square = pair_dots(
                value, grad, value_ptr, row, answers, grad_ptr, index, asks, values,
                False, WHOLE, ACCUMULATE, OPERAND, PRECISION, BLOCK_C,
            )  # fmt: skip
            grad_score = weight * (grad_weight - along[None, :])
            onto += tl.sum(grad_score * cosine, axis=1)
            if not WHOLE:
                query = load_rows(query_ptr, index, asks, channels, part * BLOCK_P, BLOCK_P)
            unit = (query.to(ACCUMULATE) * query_inverse[:, None]).to(OPERAND)
            grad_unit = tl.dot(grad_score.to(OPERAND), unit, grad_unit, input_precision=PRECISION, out_dtype=ACCUMULATE)
    column = part * BLOCK_P
    if mass_ptr is not None:  # noqa: SIM102, this is known to the compiler and the other is not
        if part == 0:
            tl.store(mass_ptr + share * key_rows + row, mass, mask=exists)
    if grad_key_ptr is not None:
        rows = load_rows(key_ptr, row, answers, channels, column, BLOCK_P).to(ACCUMULATE)
        grad_key = unit_gradient(rows, inverse, grad_unit, onto) * temperature
        if grad_value_ptr is None:
            grad_key += grad_value
        grad_key = tl.where(answers[:, None], grad_key, 0.0)
        store_rows(grad_key_ptr + share * key_rows * channels, row, exists, channels, column, grad_key, BLOCK_P)
    if grad_value_ptr is not None:
        grad_value = tl.where(answers[:, None], grad_value, 0.0)
        store_rows(grad_value_ptr + share * key_rows * values, row, exists, values, column, grad_value, BLOCK_P)
