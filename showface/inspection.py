"""Looking into a memory: which slots a face uses, how full and how alike the slots are, and whom they remember."""

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
    """How much each part of each face reads of each slot.

    Args:
        image, hole: (B, 3, H, W) in [-1, 1] and (B, 1, H, W), as the model takes them; without a hole, whole faces.

    Returns:
        (B, K, S): the address of each part, which sums to 1; 0 for parts that a face does not show.

    Raises:
        ValueError: the model has no memory.
    """
    memory = _memory_of(model)
    latent, region, _ = model.parts(image, hole)
    return _address(memory, latent, region)


def _address(memory: DisentangledMemory, latent: Tensor, region: Tensor) -> Tensor:
    """What parts (B, K, C) and (B, K) read of the slots: (B, K, S)."""
    flat = latent.flatten(0, 1).to(memory.memory.dtype)
    address = ops.memory_address(flat, memory.memory, region.flatten(), temperature=memory.temperature)
    return address.unflatten(0, region.shape)


@dataclass(frozen=True)
class SlotStatistics:
    """The state of a memory's slots.

    Attributes:
        in_use: (K,), the share of a block's slots that got mass within the last `patience` writes.
        similarity: (K, S, S), the cosines between the slots of a block.
        nearest: (K, S), the cosine of each slot with the one most like it in its block; near 1, both say the same.
    """

    in_use: Tensor
    similarity: Tensor
    nearest: Tensor


@torch.no_grad()
def slot_statistics(memory: DisentangledMemory) -> SlotStatistics:
    """How full the blocks of a memory are and how alike their slots."""
    unit = F.normalize(memory.memory, dim=-1)
    similarity = unit @ unit.mT
    others = similarity - 2 * torch.eye(unit.shape[1], device=unit.device, dtype=unit.dtype)
    return SlotStatistics(
        in_use=(memory.idle < memory.patience).float().mean(1), similarity=similarity, nearest=others.amax(-1)
    )


@torch.no_grad()
def nearest_images(model: MDRNets, batches: Iterable[Tensor], count: int = 1) -> tuple[Tensor, Tensor]:
    """The images whose parts are most like each slot.

    Args:
        batches: whole images in batches, (B, 3, H, W) in [-1, 1]; they are counted from 0 through all batches.
        count: how many for each slot.

    Returns:
        index (K, S, count) int64 and cosine (K, S, count), best first; -1 and -inf where fewer images show the part.

    Raises:
        ValueError: a count below 1.
        ValueError: the model has no memory.
    """
    if count < 1:
        raise ValueError(f"count must be at least 1, got {count}")
    memory = _memory_of(model)
    return _nearest(memory, (model.parts(image.to(memory.memory.device))[:2] for image in batches), count)


def _nearest(memory: DisentangledMemory, parts: Iterable[tuple[Tensor, Tensor]], count: int) -> tuple[Tensor, Tensor]:
    """`nearest_images`, of the latents (B, K, C) and regions (B, K) of batches."""
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
        raise ValueError("the model has no memory to look into")
    return model.memory


_CELL, _BAR, _GAP, _LABEL = 72, 5, 6, 190


@torch.no_grad()
def memory_picture(model: MDRNets, photos: Sequence[Photo], slots: int = 10) -> Image.Image:
    """A picture of what a memory holds, by the photos whose parts are most like its slots.

    Each row is a part of the face. Its text says how many slots reading spreads over (the perplexity of their shares;
    as many as there are means that it picks none) and how alike they are (the mean cosine of a slot and its nearest).
    Its columns are the slots that these photos use most, from the left: a cell shows that part of the photo nearest to
    the slot, and the bar under it the slot's share of the reading, next to that of the most used one.

    Args:
        photos: files or images of whole faces; each is cropped to a square of the model's size.
        slots: columns.

    Raises:
        ValueError: no photos, no columns, or the model has no memory.
    """
    if not photos or slots < 1:
        raise ValueError(f"there must be photos and at least one column, got {len(photos)} and {slots}")
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
    """A square of an image `size` wide around the positions (h, w) that are inside, with some margin."""
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
