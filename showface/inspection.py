"""Inspect a memory: which slots a face reads, how many are in use, how similar they are, and what they store."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw
from torch import Tensor

from showface import ops
from showface.data import REGIONS, image_to_tensor, read_image, resize_and_crop
from showface.inference import Photo
from showface.models import MDRNets
from showface.nn import DisentangledMemory


@torch.no_grad()
def slots_used(model: MDRNets, image: Tensor, hole: Tensor | None = None) -> Tensor:
    """The weights with which each region of each face reads the slots of its block.

    Args:
        image, hole: (B, 3, H, W) in [-1, 1] and (B, 1, H, W), as for the model; None means whole faces.

    Returns:
        (B, K, S): the address of each region, which sums to 1; 0 for regions that a face does not show.

    Raises:
        ValueError: the model has no memory.
    """
    memory = _memory_of(model)
    latent, region, _ = model.parts(image, hole)
    return _address(memory, latent, region)


def _address(memory: DisentangledMemory, latent: Tensor, region: Tensor) -> Tensor:
    """The addresses (B, K, S) of latents (B, K, C) with regions (B, K)."""
    flat = latent.flatten(0, 1).to(memory.memory.dtype)
    address = ops.memory_address(flat, memory.memory, region.flatten(), temperature=memory.temperature)
    return address.unflatten(0, region.shape)


@dataclass(frozen=True)
class SlotStatistics:
    """The state of a memory's slots.

    Attributes:
        in_use: (K,), the fraction of a block's slots that were written within the last `patience` writes.
        similarity: (K, S, S), the cosines between the slots of a block.
        nearest: (K, S), the cosine between each slot and the most similar other slot of its block. Near 1, the two
            slots are redundant.
    """

    in_use: Tensor
    similarity: Tensor
    nearest: Tensor


@torch.no_grad()
def slot_statistics(memory: DisentangledMemory) -> SlotStatistics:
    """Measure how many slots of each block are in use, and how similar they are."""
    unit = F.normalize(memory.memory, dim=-1)
    similarity = unit @ unit.mT
    others = similarity - 2 * torch.eye(unit.shape[1], device=unit.device, dtype=unit.dtype)
    return SlotStatistics(
        in_use=(memory.idle < memory.patience).float().mean(1), similarity=similarity, nearest=others.amax(-1)
    )


@torch.no_grad()
def nearest_images(model: MDRNets, batches: Iterable[Tensor], count: int = 1) -> tuple[Tensor, Tensor]:
    """Find the images with the most similar latent for each slot.

    Args:
        batches: whole images in batches, (B, 3, H, W) in [-1, 1]. Images are numbered from 0 through all batches.
        count: number of images per slot.

    Returns:
        index (K, S, count) int64 and cosine (K, S, count), best first; -1 and -inf where too few images show a region.

    Raises:
        ValueError: a count below 1, or the model has no memory.
    """
    if count < 1:
        raise ValueError(f"count must be at least 1, got {count}")
    memory = _memory_of(model)
    return _nearest(memory, (model.parts(image.to(memory.memory.device))[:2] for image in batches), count)


def _nearest(memory: DisentangledMemory, parts: Iterable[tuple[Tensor, Tensor]], count: int) -> tuple[Tensor, Tensor]:
    """`nearest_images` for batches of latents (B, K, C) and regions (B, K)."""
    slots = F.normalize(memory.memory, dim=-1)  # (K, S, C)
    cosine = torch.full((*slots.shape[:2], count), -torch.inf, device=slots.device, dtype=slots.dtype)
    index = torch.full(cosine.shape, -1, device=slots.device)
    first = 0
    for latent, region in parts:
        here = torch.einsum("ksc,bkc->ksb", slots, F.normalize(latent.to(slots.dtype), dim=-1))
        here = here.masked_fill(region.T[:, None] < 0, -torch.inf)
        number = torch.arange(first, first + len(latent), device=slots.device).expand_as(here)
        first += len(latent)
        cosine, best = torch.cat([cosine, here], dim=-1).topk(count, dim=-1)
        index = torch.cat([index, number], dim=-1).gather(-1, best)
    return index.masked_fill(cosine == -torch.inf, -1), cosine


def _memory_of(model: MDRNets) -> DisentangledMemory:
    if model.memory is None:
        raise ValueError("the model has no memory to inspect")
    return model.memory


_CELL, _BAR, _GAP, _LABEL = 72, 5, 6, 190


@torch.no_grad()
def memory_picture(model: MDRNets, photos: Sequence[Photo], slots: int = 10) -> Image.Image:
    """Draw the contents of a memory, as the parts of photos that are most similar to its slots.

    Each row is a region of the face. Its text gives the number of slots that are read (the perplexity of the mean
    address; if it equals the number of slots, all are read equally) and their similarity (the mean cosine between a
    slot and the most similar other one). The columns are the slots that these photos read most, from left to right. A
    cell shows the region of the photo most similar to the slot. The bar below it is the slot's weight, relative to that
    of the most read slot.

    Args:
        photos: files or images of whole faces. Each is cropped to a square and resized to the model's size.
        slots: number of columns.

    Raises:
        ValueError: no photos, no columns, or the model has no memory.
    """
    if not photos or slots < 1:
        raise ValueError(f"need at least one photo and one column, got {len(photos)} and {slots}")
    memory = _memory_of(model)
    size, device = model.config.image_size, memory.memory.device

    def load(number: int) -> Image.Image:
        return resize_and_crop(read_image(photos[number]), size)

    def parts_of(number: int) -> tuple[Tensor, Tensor, Tensor]:
        return model.parts(image_to_tensor(load(number))[None].to(device))

    parts = [parts_of(number)[:2] for number in range(len(photos))]
    used = torch.cat([_address(memory, *part) for part in parts])  # (photos, K, S)
    share = used.sum(0) / used.sum((0, 2))[:, None].clamp_min(1e-9)
    index, _ = _nearest(memory, parts, 1)
    statistics = slot_statistics(memory)
    regions, slots = share.shape[0], min(slots, share.shape[1])
    names = REGIONS if regions == len(REGIONS) else tuple(f"part {k}" for k in range(regions))

    row_height = _CELL + _BAR + _GAP
    sheet = Image.new("RGB", (_LABEL + slots * (_CELL + _GAP) + _GAP, regions * row_height + _GAP), "white")
    draw = ImageDraw.Draw(sheet)
    parsings: dict[int, Tensor] = {}
    for k, name in enumerate(names):
        top = _GAP + k * row_height
        alike = statistics.nearest[k].mean().item()
        draw.text((_GAP, top + 14), name, fill="black", font_size=15)
        spread = torch.special.entr(share[k]).sum().exp().item()
        facts = f"reads {spread:.0f} of {share.shape[1]} slots, alike {alike:.2f}"
        draw.text((_GAP, top + 36), facts, fill="dimgray", font_size=12)
        for column, slot in enumerate(share[k].argsort(descending=True)[:slots].tolist()):
            number = int(index[k, slot, 0])
            if number < 0:
                continue
            photo, left = load(number), _LABEL + column * (_CELL + _GAP)
            if number not in parsings:
                parsings[number] = parts_of(number)[2][0]
            part = parsings[number][k]
            cell = photo.crop(_box_around(part > 0.5 * part.max(), size)).resize(
                (_CELL, _CELL), Image.Resampling.BICUBIC
            )
            sheet.paste(cell, (left, top))
            draw.rectangle(
                (left, top + _CELL + 1, left + _CELL * (share[k, slot] / share[k].max()).item(), top + _CELL + _BAR),
                "steelblue",
            )
    return sheet


def _box_around(inside: Tensor, size: int) -> tuple[int, int, int, int]:
    """A square box in an image with side `size`, around the True positions of (h, w), with a margin."""
    stride = 4
    rows, columns = inside.any(1).nonzero().flatten(), inside.any(0).nonzero().flatten()
    if not len(rows):
        return 0, 0, size, size
    top, bottom = stride * int(rows[0]), stride * int(rows[-1] + 1)
    left, right = stride * int(columns[0]), stride * int(columns[-1] + 1)
    side = min(size, max(24, int(1.2 * max(bottom - top, right - left))))
    x = min(max(0, (left + right - side) // 2), size - side)
    y = min(max(0, (top + bottom - side) // 2), size - side)
    return x, y, x + side, y + side
