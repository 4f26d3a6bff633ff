"""Sort the tokens of each image by group on the device, without a synchronisation.

A group is a region of the face, or the corrupted tokens of an image. Tokens of no group come last.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor


@triton.jit
def load_groups(group_ptr, i, tokens, groups, HOLE: tl.constexpr):
    """The groups of tokens i: `groups` for tokens of no group, -1 past the last token.

    With HOLE the corrupted tokens are group 0.
    """
    group = tl.load(group_ptr + i, mask=i < tokens, other=0)
    if HOLE:
        group = 1 - group.to(tl.int32)
    # Compare before the cast, which would make a group of 2**32.
    group = tl.where((group >= 0) & (group < groups), group, groups).to(tl.int32)
    return tl.where(i < tokens, group, -1)


@triton.jit
def count_tokens_kernel(
    group_ptr,  # (B, N)
    count_ptr,  # (B, spans, BLOCK_G) int32: number of tokens per group in each span
    tokens,
    groups,
    HOLE: tl.constexpr,
    SPAN: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_G: tl.constexpr,
):
    span = tl.program_id(0)
    batch = tl.program_id(1).to(tl.int64)
    g = tl.arange(0, BLOCK_G)
    count = tl.zeros((BLOCK_G,), tl.int32)
    for first in range(span * SPAN, tl.minimum((span + 1) * SPAN, tokens), BLOCK_T):
        i = first + tl.arange(0, BLOCK_T)
        group = load_groups(group_ptr + batch * tokens, i, tokens, groups, HOLE)
        count += tl.sum((group[:, None] == g[None, :]).to(tl.int32), axis=0)
    tl.store(count_ptr + (batch * tl.num_programs(0) + span) * BLOCK_G + g, count)


@triton.jit
def place_tokens_kernel(
    group_ptr,  # (B, N)
    count_ptr,  # (B, spans, BLOCK_G), or None if there is one span, which then counts itself
    order_ptr,  # (B, N) int32: the tokens of each image, sorted by group
    offset_ptr,  # (B, groups + 2) int32: start of each group, start of the tokens of no group, end
    tokens,
    groups,
    HOLE: tl.constexpr,
    SPAN: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_G: tl.constexpr,
):
    span = tl.program_id(0)
    spans = tl.num_programs(0)
    batch = tl.program_id(1).to(tl.int64)
    group_ptr += batch * tokens
    order_ptr += batch * tokens
    g = tl.arange(0, BLOCK_G)
    count = tl.zeros((BLOCK_G,), tl.int32)
    before = tl.zeros((BLOCK_G,), tl.int32)
    if count_ptr is None:
        for first in range(0, tokens, BLOCK_T):
            i = first + tl.arange(0, BLOCK_T)
            group = load_groups(group_ptr, i, tokens, groups, HOLE)
            count += tl.sum((group[:, None] == g[None, :]).to(tl.int32), axis=0)
    else:
        for first in range(0, spans, BLOCK_T):
            s = first + tl.arange(0, BLOCK_T)
            at = count_ptr + batch * spans * BLOCK_G + s[:, None] * BLOCK_G + g[None, :]
            counts = tl.load(at, mask=(s < spans)[:, None], other=0)
            count += tl.sum(counts, axis=0)
            before += tl.sum(tl.where((s < span)[:, None], counts, 0), axis=0)
    start = tl.cumsum(count, axis=0) - count
    if span == 0:
        offset_ptr += batch * (groups + 2)
        tl.store(offset_ptr + g, start, mask=g <= groups)
        tl.store(offset_ptr + groups + 1, tokens)
    after = start + before  # position of the next token of each group
    for first in range(span * SPAN, tl.minimum((span + 1) * SPAN, tokens), BLOCK_T):
        i = first + tl.arange(0, BLOCK_T)
        group = load_groups(group_ptr, i, tokens, groups, HOLE)
        member = (group[:, None] == g[None, :]).to(tl.int32)
        rank = tl.cumsum(member, axis=0) - member
        place = tl.sum(member * (after[None, :] + rank), axis=1)
        tl.store(order_ptr + place, i, mask=i < tokens)
        after += tl.sum(member, axis=0)


def group_blocks(groups: int) -> dict[str, int]:
    """Block sizes of the sort: tokens per step, and groups padded to a power of 2."""
    block_g = triton.next_power_of_2(groups + 1)
    return {"BLOCK_T": max(16, min(1024, 4096 // block_g)), "BLOCK_G": block_g}


def sort_tokens(group: Tensor, groups: int) -> tuple[Tensor, Tensor]:
    """Sort the tokens of each image by group. The sort is stable and deterministic.

    Args:
        group: (B, N) int64, -1 = no group; or bool, True = group 0.
        groups: the number of groups.

    Returns:
        order (B, N) int32: the tokens by group, tokens of no group last; and offset (B, groups + 2) int32: the tokens
        of group g are order[offset[g]:offset[g + 1]], those of no group order[offset[groups]:].
    """
    batch, tokens = group.shape
    order = torch.empty((batch, tokens), dtype=torch.int32, device=group.device)
    offset = torch.empty((batch, groups + 2), dtype=torch.int32, device=group.device)
    options = {"HOLE": group.dtype == torch.bool, **group_blocks(groups)}
    options["SPAN"] = 8 * options["BLOCK_T"]
    spans = triton.cdiv(tokens, options["SPAN"])
    group, count = group.contiguous(), None
    if spans > 1:
        count = torch.empty((batch, spans, options["BLOCK_G"]), dtype=torch.int32, device=group.device)
        count_tokens_kernel[(spans, batch)](group, count, tokens, groups, **options)
    place_tokens_kernel[(spans, batch)](group, count, order, offset, tokens, groups, **options)
    return order, offset
