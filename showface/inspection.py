"""Inspect a memory: which slots faces read, how similar the slots are, and what they store."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw
from torch import Tensor

from showface import ops
from showface.data import REGIONS, image_to_tensor, read_image, resize_and_crop
from showface.data.images import Source
from showface.models import MDRNets

_CELL, _BAR, _GAP, _LABEL = 72, 5, 6, 190


@torch.no_grad()
def memory_picture(model: MDRNets, photos: Sequence[Source], slots: int = 10) -> Image.Image:
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
    memory = model.memory
    if memory is None:
        raise ValueError("the model has no memory to inspect")
    size, device = model.config.image_size, memory.memory.device

    def load(number: int) -> Image.Image:
        return resize_and_crop(read_image(photos[number]), size)

    def parts_of(number: int) -> tuple[Tensor, Tensor, Tensor]:
        return model.parts(image_to_tensor(load(number))[None].to(device))

    parts = [parts_of(number)[:2] for number in range(len(photos))]
    latent, region = (torch.cat(values) for values in zip(*parts, strict=True))  # (photos, K, C) and (photos, K)
    latent = latent.to(memory.memory.dtype)
    address = ops.memory_address(
        latent.flatten(0, 1), memory.memory, region.flatten(), temperature=memory.temperature
    ).unflatten(0, region.shape)
    share = address.sum(0) / address.sum((0, 2))[:, None].clamp_min(1e-9)
    unit = F.normalize(memory.memory, dim=-1)  # (K, S, C)
    cosine = torch.einsum("ksc,pkc->ksp", unit, F.normalize(latent, dim=-1))
    nearest = cosine.masked_fill(region.T[:, None] < 0, -torch.inf).argmax(-1)  # (K, S), numbers of photos
    # A slot is not compared with itself.
    similarity = (unit @ unit.mT - 2 * torch.eye(unit.shape[1], device=device, dtype=unit.dtype)).amax(-1).mean(-1)
    regions, slots = share.shape[0], min(slots, share.shape[1])
    names = REGIONS if regions == len(REGIONS) else tuple(f"part {k}" for k in range(regions))

    row_height = _CELL + _BAR + _GAP
    sheet = Image.new("RGB", (_LABEL + slots * (_CELL + _GAP) + _GAP, regions * row_height + _GAP), "white")
    draw = ImageDraw.Draw(sheet)
    parsings: dict[int, Tensor] = {}
    for k, name in enumerate(names):
        top = _GAP + k * row_height
        draw.text((_GAP, top + 14), name, fill="black", font_size=15)
        spread = torch.special.entr(share[k]).sum().exp().item()
        facts = f"reads {spread:.0f} of {share.shape[1]} slots, alike {similarity[k]:.2f}"
        draw.text((_GAP, top + 36), facts, fill="dimgray", font_size=12)
        for column, slot in enumerate(share[k].argsort(descending=True)[:slots].tolist()):
            number = int(nearest[k, slot])
            if region[number, k] < 0:  # no photo shows this part
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
