"""Other ways to read and write the memory in PyTorch, which ours are compared with.

All take latent (T, C), memory (K, S, C) and region (T,) int64 from 0 to K-1. The last ones run only on a GPU.
"""

from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from correlation_peers import HALF, Pack, Unpack
from measure import DEVICE
from torch import Tensor
from torch.nn.attention.varlen import varlen_attn

from showface.ops.definitions import unit

TEMPERATURE = 16.0


def gather_read(latent: Tensor, memory: Tensor, region: Tensor) -> Tensor:
    """A copy of a token's block for each token, then batched products."""
    return torch.bmm(_gather_address(latent, memory, region)[:, None], memory[region])[:, 0]


def _gather_address(latent: Tensor, memory: Tensor, region: Tensor) -> Tensor:
    cosine = torch.bmm(unit(memory)[region], unit(latent)[..., None])[..., 0]
    return torch.softmax(TEMPERATURE * cosine, dim=-1)


def _blocks(latent: Tensor, memory: Tensor, region: Tensor) -> Iterator[tuple[int, Tensor, Tensor]]:
    """For each block: its index, its tokens and their addresses."""
    for k, block in enumerate(memory):
        rows = (region == k).nonzero().squeeze(1)
        cosine = unit(latent[rows]) @ unit(block).T
        yield k, rows, torch.softmax(TEMPERATURE * cosine, dim=-1)


def batched_read(latent: Tensor, memory: Tensor, region: Tensor) -> Tensor:
    """One batched product. The tokens must be all regions of the first face, then all of the second, and so on."""
    return torch.einsum("bks,ksc->bkc", _batched_address(latent, memory), memory).flatten(0, 1)


def _batched_address(latent: Tensor, memory: Tensor) -> Tensor:
    faces = unit(latent).unflatten(0, (-1, len(memory)))
    return torch.softmax(TEMPERATURE * torch.einsum("bkc,ksc->bks", faces, unit(memory)), dim=-1)


def dense_read(latent: Tensor, memory: Tensor, region: Tensor) -> Tensor:
    """One product with all slots of all blocks, then a mask."""
    return _dense_address(latent, memory, region) @ memory.flatten(0, 1)


def _dense_address(latent: Tensor, memory: Tensor, region: Tensor) -> Tensor:
    cosine = unit(latent) @ unit(memory).flatten(0, 1).T
    block = torch.arange(len(memory), device=latent.device).repeat_interleave(memory.shape[1])
    return torch.softmax((TEMPERATURE * cosine).masked_fill(region[:, None] != block, -torch.inf), dim=-1)


def loop_read(latent: Tensor, memory: Tensor, region: Tensor) -> Tensor:
    """A loop over the blocks, without copies of them."""
    out = torch.zeros_like(latent)
    for k, rows, address in _blocks(latent, memory, region):
        out = out.index_put((rows,), address @ memory[k])
    return out


def _by_region(region: Tensor, regions: int) -> tuple[Tensor, Tensor, Tensor]:
    """Sort the tokens by region without a host look: the order, its inverse, and (K + 1) int32 starts."""
    ordered, order = region.sort(stable=True)
    place = torch.empty_like(order).scatter_(0, order, torch.arange(len(order), device=order.device))
    return order, place, torch.searchsorted(ordered, torch.arange(regions + 1, device=order.device), out_int32=True)


def varlen_read(latent: Tensor, memory: Tensor, region: Tensor, attention: Callable[..., Any] = varlen_attn) -> Tensor:
    """Sort the tokens by region, then one call of FlashAttention: a region is a sequence, its keys are its slots."""
    regions, slots, _ = memory.shape
    order, place, begin = _by_region(region, regions)
    rows = order, place, torch.ones_like(region, dtype=torch.bool)
    q, k, v = (
        x[:, None] for x in (Pack.apply(unit(latent), *rows), *(m.flatten(0, 1) for m in (unit(memory), memory)))
    )
    to_slots = torch.arange(regions + 1, device=region.device, dtype=torch.int32) * slots
    out = attention(q, k, v, begin, to_slots, len(latent), slots, scale=TEMPERATURE)
    return Unpack.apply(out.squeeze(1), *rows)


def grouped_read(latent: Tensor, memory: Tensor, region: Tensor) -> Tensor:
    """Sort the tokens by region, then torch's products of groups of rows with one matrix for each group."""
    rows, _, address, ends = _grouped_address(latent, memory, region)
    return Unpack.apply(F.grouped_mm(address, memory, offs=ends), *rows)


def _grouped_address(latent: Tensor, memory: Tensor, region: Tensor) -> tuple[Any, Tensor, Tensor, Tensor]:
    order, place, begin = _by_region(region, len(memory))
    rows = order, place, torch.ones_like(region, dtype=torch.bool)
    ordered, ends = Pack.apply(latent, *rows), begin[1:].contiguous()
    cosine = F.grouped_mm(unit(ordered), unit(memory).mT, offs=ends)
    return rows, ordered, torch.softmax(TEMPERATURE * cosine, dim=-1), ends


def blend(memory: Tensor, rho: Tensor, total: Tensor, rate: float) -> Tensor:
    """The new memory, in the dtype of the old one. Half precision is blended in float32."""
    old, rho, total = (x.to(torch.promote_types(x.dtype, torch.float32)) for x in (memory, rho, total))
    gain = 1 - (1 - rate) ** rho
    return torch.lerp(old, total / rho.clamp_min(1e-12)[..., None], gain[..., None]).to(memory.dtype)


def one_hot_write(latent: Tensor, memory: Tensor, region: Tensor, rate: float) -> Tensor:
    address = _gather_address(latent, memory, region)
    member = F.one_hot(region, len(memory)).to(latent.dtype)
    rho = torch.einsum("tk,ts->ks", member, address)
    return blend(memory, rho, torch.einsum("tk,ts,tc->ksc", member, address, latent), rate)


def batched_write(latent: Tensor, memory: Tensor, region: Tensor, rate: float) -> Tensor:
    address, faces = _batched_address(latent, memory), latent.unflatten(0, (-1, len(memory)))
    return blend(memory, address.sum(0), torch.einsum("bks,bkc->ksc", address, faces), rate)


def dense_write(latent: Tensor, memory: Tensor, region: Tensor, rate: float) -> Tensor:
    address = _dense_address(latent, memory, region)
    return blend(memory, address.sum(0).view(memory.shape[:2]), (address.T @ latent).view_as(memory), rate)


def loop_write(latent: Tensor, memory: Tensor, region: Tensor, rate: float) -> Tensor:
    parts = [(address.sum(0), address.T @ latent[rows]) for _, rows, address in _blocks(latent, memory, region)]
    return blend(memory, *(torch.stack(sums) for sums in zip(*parts, strict=True)), rate)


def index_add_write(latent: Tensor, memory: Tensor, region: Tensor, rate: float) -> Tensor:
    """Add each token's address and weighted latent to its block. The sums are wide: they have many small terms."""
    address = _gather_address(latent, memory, region)
    wide = torch.promote_types(latent.dtype, torch.float32)
    rho = torch.zeros(memory.shape[:2], dtype=wide, device=memory.device).index_add(0, region, address.to(wide))
    weighted = address[..., None].to(wide) * latent[:, None]
    return blend(memory, rho, torch.zeros_like(memory, dtype=wide).index_add(0, region, weighted), rate)


def scatter_write(latent: Tensor, memory: Tensor, region: Tensor, rate: float) -> Tensor:
    """Scatter the addresses into (T, K * S), then one product with the latents."""
    address, (regions, slots, _) = _gather_address(latent, memory, region), memory.shape
    column = region[:, None] * slots + torch.arange(slots, device=region.device)
    spread = address.new_zeros(len(latent), regions * slots).scatter(1, column, address)
    return blend(memory, spread.sum(0).view(regions, slots), (spread.T @ latent).view_as(memory), rate)


def grouped_write(latent: Tensor, memory: Tensor, region: Tensor, rate: float) -> Tensor:
    """As `grouped_read`: a product for each region, over its tokens."""
    (order, _, _), ordered, address, ends = _grouped_address(latent, memory, region)
    wide = torch.promote_types(latent.dtype, torch.float32)
    rho = torch.zeros(memory.shape[:2], dtype=wide, device=memory.device).index_add(0, region[order], address.to(wide))
    return blend(memory, rho, F.grouped_mm(address.T, ordered, offs=ends), rate)


READS = {"gather": gather_read, "batched": batched_read, "dense": dense_read}
READS_ON_A_GPU = {"sort, then varlen": varlen_read, "sort, then grouped": grouped_read}
WRITES = {
    "gather": one_hot_write,
    "batched": batched_write,
    "dense": dense_write,
    "index_add": index_add_write,
    "scatter": scatter_write,
}
WRITES_ON_A_GPU = {"sort, then grouped": grouped_write}


def peers(write: bool) -> dict[str, Callable[..., Tensor]]:
    """The peers that this device can run, and each with torch.compile, apart from the loop over blocks."""
    anywhere, on_a_gpu = (WRITES, WRITES_ON_A_GPU) if write else (READS, READS_ON_A_GPU)
    compilable: dict[str, Callable[..., Tensor]] = anywhere | (on_a_gpu if DEVICE == "cuda" else {})
    compiled = {f"compiled {name}": torch.compile(run, dynamic=False) for name, run in compilable.items()}
    return compilable | {"loop": loop_write if write else loop_read} | compiled


def why_not(name: str, shape: str, dtype: str) -> str | None:
    """Why a peer can't run, or should not, as far as that is known before it runs."""
    if name.endswith(("gather", "index_add", "scatter")) and shape == "pixels" and DEVICE == "cpu":
        return "it would copy gigabytes"
    if name.endswith("batched") and shape == "pixels":
        return "its tokens are not the regions of one face after another"
    if name.endswith("varlen") and dtype not in HALF:
        return "it needs half precision"
    if name.endswith("grouped") and dtype != "bfloat16":
        return "torch has a kernel for it in bfloat16 only"
    return None
