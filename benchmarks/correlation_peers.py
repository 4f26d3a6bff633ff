"""Other ways to compute the masked correlation in PyTorch, which ours is compared with.

All take query, key, value (B, N, C) and hole (B, N) bool, True = corrupted. The last ones run only on a GPU.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from measure import DEVICE
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.attention.flex_attention import BlockMask, create_block_mask, flex_attention
from torch.nn.attention.varlen import varlen_attn

from showface.ops.definitions import unit

TEMPERATURE = 16.0
BLOCK = 128  # rows and columns of a block in the masks of FlexAttention
HALF = ("float16", "bfloat16")


def eager(query: Tensor, key: Tensor, value: Tensor, hole: Tensor) -> Tensor:
    """All N x N correlations, masked."""
    score = TEMPERATURE * unit(query) @ unit(key).mT
    weight = torch.softmax(score.masked_fill(hole[:, None, :], -torch.inf), dim=-1)
    return (weight @ value) * hole[..., None]


def sdpa_with_mask(query: Tensor, key: Tensor, value: Tensor, hole: Tensor) -> Tensor:
    q, k, v = (x[:, None] for x in (unit(query), unit(key), value))
    out = F.scaled_dot_product_attention(q, k, v, attn_mask=~hole[:, None, None, :], scale=TEMPERATURE)
    return out[:, 0] * hole[..., None]


def gather_then_sdpa(query: Tensor, key: Tensor, value: Tensor, hole: Tensor) -> Tensor:
    """Attention of only the corrupted queries to only the known keys, image by image."""
    images = []
    for q, k, v, corrupted in zip(unit(query), unit(key), value, hole, strict=True):
        known = ~corrupted
        parts = (x[None, None] for x in (q[corrupted], k[known], v[known]))
        answer = F.scaled_dot_product_attention(*parts, scale=TEMPERATURE)[0, 0]
        images.append(torch.zeros_like(v).index_put((corrupted,), answer))
    return torch.stack(images)


def gather_then(kernel: SDPBackend, query: Tensor, key: Tensor, value: Tensor, hole: Tensor) -> Tensor:
    """`gather_then_sdpa` with one of torch's kernels for it."""
    with sdpa_kernel([kernel]):
        return gather_then_sdpa(query, key, value, hole)


def sorted_rows(first: Tensor) -> tuple[Tensor, Tensor]:
    """Bring the chosen rows to the front, without changing the order of either kind, and without a host look.

    Args:
        first: (..., N) bool, the rows that come first.

    Returns:
        order (..., N): the row at each place; and place (..., N): the place of each row.
    """
    rows = torch.arange(first.shape[-1], device=first.device).expand(first.shape)
    chosen = first.cumsum(-1)
    place = torch.where(first, chosen - 1, chosen[..., -1:] + rows - chosen)
    return torch.empty_like(place).scatter_(-1, place, rows), place


class Pack(torch.autograd.Function):
    """The rows x[order]. The gradient of rows that are not wanted is zero, whatever the kernel left there.

    Autograd would add gradients up with atomics, because it can't know that `order` names each row once.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, order: Tensor, place: Tensor, wanted: Tensor) -> Tensor:
        ctx.save_for_backward(place, wanted)
        return x.index_select(0, order)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:
        place, wanted = ctx.saved_tensors
        return grad.index_select(0, place).masked_fill_(~wanted[:, None], 0), None, None, None


class Unpack(torch.autograd.Function):
    """Undo `Pack`. Rows that are not wanted are zeros."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, order: Tensor, place: Tensor, wanted: Tensor) -> Tensor:
        ctx.save_for_backward(order)
        return x.index_select(0, place).masked_fill_(~wanted[:, None], 0)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:
        (order,) = ctx.saved_tensors
        return grad.index_select(0, order), None, None, None


def starts(counts: Tensor) -> Tensor:
    """(B + 1) int32: where each sequence starts if they are packed one after another, and the end of the last one."""
    return F.pad(counts.cumsum(0), (1, 0)).to(torch.int32)


def gather_then_varlen(
    query: Tensor, key: Tensor, value: Tensor, hole: Tensor, attention: Callable[..., Any] = varlen_attn
) -> Tensor:
    """Pack the corrupted queries of all images, and their known keys, for one call of FlashAttention.

    Nothing waits for the host: all N rows of each image are moved, and rows behind the last sequence are not read.
    """
    batch, tokens, _ = query.shape
    corrupted, known = hole.flatten(), ~hole.flatten()
    places = sorted_rows(corrupted)
    to_keys = sorted_rows(known)
    q = Pack.apply(unit(query).flatten(0, 1), *places, corrupted)
    k, v = (Pack.apply(x.flatten(0, 1), *to_keys, known) for x in (unit(key), value))
    bounds = starts(hole.sum(1)), starts((~hole).sum(1))
    out = attention(q[:, None], k[:, None], v[:, None], *bounds, tokens, tokens, scale=TEMPERATURE)
    return Unpack.apply(out.squeeze(1), *places, corrupted).unflatten(0, (batch, tokens))


def flex_mask(hole: Tensor) -> BlockMask:
    """The mask of tokens where they are. It finds the blocks without a pair of a corrupted and a known token."""
    batch, tokens = hole.shape

    def wanted(b: Tensor, head: Tensor, i: Tensor, j: Tensor) -> Tensor:
        return hole[b, i] & ~hole[b, j]

    return create_block_mask(wanted, batch, None, tokens, tokens, device=hole.device, BLOCK_SIZE=BLOCK)


def flex(query: Tensor, key: Tensor, value: Tensor, hole: Tensor, mask: BlockMask) -> Tensor:
    q, k, v = (x[:, None] for x in (unit(query), unit(key), value))
    return torch.where(hole[..., None], flex_attention(q, k, v, block_mask=mask, scale=TEMPERATURE)[:, 0], 0)


def sorted_mask(hole: Tensor) -> BlockMask:
    """The mask once the corrupted tokens of each image come first, made from their numbers and not from all pairs."""
    tokens, corrupted = hole.shape[1], hole.sum(1)

    def wanted(b: Tensor, head: Tensor, i: Tensor, j: Tensor) -> Tensor:
        return (i < corrupted[b]) & (j >= corrupted[b])

    first, count = torch.arange(0, tokens, BLOCK, device=hole.device), corrupted[:, None]
    last = first + BLOCK
    some = (first < count)[:, None, :, None] & (last.clamp_max(tokens) > count)[:, None, None, :]
    # As in `create_block_mask`, a block that reaches past the last token is not full.
    every = (last <= count)[:, None, :, None] & ((first >= count) & (last <= tokens))[:, None, None, :]
    blocks: list[Tensor] = []
    for kind in (some & ~every, every):
        order = kind.to(torch.int8).argsort(dim=-1, descending=True, stable=True)
        blocks += [kind.sum(-1).to(torch.int32), order.to(torch.int32)]
    return BlockMask.from_kv_blocks(*blocks, BLOCK_SIZE=BLOCK, mask_mod=wanted, seq_lengths=(tokens, tokens))


def sort_then_flex(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    hole: Tensor,
    mask: BlockMask,
    attention: Callable[..., Any] = flex_attention,
) -> Tensor:
    """FlexAttention with the corrupted tokens of each image first, so that nearly all blocks are full or empty."""
    batch, tokens, _ = query.shape
    offset = torch.arange(batch, device=hole.device)[:, None] * tokens
    places = [(x + offset).flatten() for x in sorted_rows(hole)]
    corrupted, known = hole.flatten(), ~hole.flatten()
    rows = ((unit(query), corrupted), (unit(key), known), (value, known))
    q, k, v = (Pack.apply(x.flatten(0, 1), *places, kept).unflatten(0, (batch, 1, tokens)) for x, kept in rows)
    out = attention(q, k, v, block_mask=mask, scale=TEMPERATURE)
    return Unpack.apply(out.flatten(0, 2), *places, corrupted).unflatten(0, (batch, tokens))


def with_mask(make: Callable[[Tensor], BlockMask], attend: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Make the mask, which depends on the hole, in each call. Both functions are compiled, each for itself."""
    compiled_make, compiled_attend = (torch.compile(each, dynamic=False) for each in (make, attend))

    def run(query: Tensor, key: Tensor, value: Tensor, hole: Tensor) -> Tensor:
        return compiled_attend(query, key, value, hole, compiled_make(hole))

    return run


# A compiled function is compiled again for each size, as a user would do for a fixed size. Gathering image by image is
# not compiled: the sizes depend on the hole, so torch.compile would leave it in pieces.
ANYWHERE = {
    "eager": eager,
    "compiled eager": torch.compile(eager, dynamic=False),
    "SDPA with a mask": sdpa_with_mask,
    "gather, then SDPA": gather_then_sdpa,
}
ON_A_GPU = {
    "gather, then varlen": gather_then_varlen,
    "compiled gather, then varlen": torch.compile(gather_then_varlen, dynamic=False),
    # Without torch.compile, FlexAttention would make the matrix of all pairs.
    "FlexAttention": with_mask(flex_mask, flex),
    "sort, then FlexAttention": with_mask(sorted_mask, sort_then_flex),
    "gather, then FlashAttention": partial(gather_then, SDPBackend.FLASH_ATTENTION),
    "gather, then cuDNN": partial(gather_then, SDPBackend.CUDNN_ATTENTION),
    "gather, then memory-efficient": partial(gather_then, SDPBackend.EFFICIENT_ATTENTION),
    "compiled SDPA with a mask": torch.compile(sdpa_with_mask, dynamic=False),
}
PEERS: dict[str, Callable[..., Tensor]] = ANYWHERE | (ON_A_GPU if DEVICE == "cuda" else {})


def why_not(name: str, dtype: str, channels: int) -> str | None:
    """Why a peer can't run in a dtype with so many channels, as far as that is known before it runs."""
    if any(kernel in name for kernel in ("varlen", "FlashAttention", "cuDNN")):
        if dtype not in HALF:
            return "it needs half precision"
        if channels > 256:
            return "it takes at most 256 channels"
    return None
