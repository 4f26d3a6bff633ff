"""Fill the holes of any photos: faces where they are, in aligned crops, and what lies beside them."""

from collections.abc import Callable, Generator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from showface.crops import Crop, blend_fills, read_crop, sample, split_boxes, wide_part
from showface.enlargement import PATCH, enlarge_fill
from showface.models import InpaintingNetwork
from showface.nn.fill import push_pull_fill

CONTEXT = 1.75  # side of a crop around a piece of a hole, in sides of the piece
# In a face this many times as large as the model's images, parts of the hole that are thinner than this fraction of the
# face are filled as beside faces: their crops show more detail, and so little needs no knowledge of the face.
LARGE_FACE = 1.25
THIN_IN_FACE = 0.0625
ROUGH = 640  # longer side in pixels of the rough fill, in which faces are looked for
ALIGNED = 0.2  # a crop whose corners are nearer to the photo's than this, as a fraction of its side, is the photo
MAX_SCALE = 4  # the detail of larger faces is enlarged
MEMBRANE = 768  # longer side in pixels at which colours are matched
STAGES = ("filling", 0.0), ("filling faces", 0.4), ("filling faces again", 0.7)  # of `progress`
LOOKS = len(STAGES) - 1  # how often faces are looked for
BATCH = 16  # crops in one call of the model
CHUNK = 1 << 20  # pixels of the hole that are read from the fills at once, so that memory does not grow with the hole

FindFaces = Callable[[Image.Image], Sequence[NDArray[np.float64]]]
Progress = Callable[[str, float], object]
ReadCrop = Callable[[], tuple[Tensor, Tensor]]  # image and hole, as of `read_crop`


@dataclass(frozen=True)
class Fill:
    """The fill of a photo's hole.

    Attributes:
        image: (N, 3) uint8, the colours of the hole's pixels, row by row.
        crops: what was filled, faces first.
    """

    image: NDArray[np.uint8]
    crops: list[Crop]


def fill_holes(
    model: InpaintingNetwork,
    photos: Sequence[tuple[NDArray[np.uint8], NDArray[np.bool_]]],
    finders: Sequence[FindFaces],
    size: int,
    progress: Progress = lambda stage, fraction: None,
    precision: str = "fp32",
) -> list[Fill]:
    """Fill the holes of several photos. In each step, the model fills the crops of all photos in common batches.

    Args:
        model: in eval mode.
        photos: (H, W, 3) and hole (H, W) each; no hole is empty.
        finders: ways to find faces, each of which returns the five points (5, 2) of each face in an RGB image. The
            next one is tried if the ones before found no face that the hole touches.
        size: side in pixels of the crops that the model fills.
        progress: called with a stage and the fraction of the work that is done. What it raises ends the work.
        precision: of the model's products, "fp32" or "bf16".
    """
    steps = [fill_in_steps(photo, hole, finders, size) for photo, hole in photos]
    fills: list[Fill | None] = [None] * len(steps)
    waiting = {index: next(step) for index, step in enumerate(steps)}
    for stage, fraction in STAGES:
        if not waiting:
            break
        progress(stage, fraction)
        outputs = run_model(model, [crop for crops in waiting.values() for crop in crops], precision)
        after = {}
        for index, crops in waiting.items():
            own, outputs = outputs[: len(crops)], outputs[len(crops) :]
            try:
                after[index] = steps[index].send(own)
            except StopIteration as end:
                fills[index] = end.value
        waiting = after
    progress("done", 1.0)
    return [fill for fill in fills if fill is not None]


def fill_in_steps(
    photo: NDArray[np.uint8], hole: NDArray[np.bool_], finders: Sequence[FindFaces], size: int
) -> Generator[list[ReadCrop], list[Tensor], Fill]:
    """Fill the hole of a photo. Yields readers of crops, gets the model's fills of them, returns the result.

    Points under the hole are guesses. So faces are looked for in a fill that knows no faces; and again, once they are
    filled as faces.
    """
    rows, columns = np.nonzero(hole)
    points = np.stack([columns + 0.5, rows + 0.5], axis=-1)
    filled = rough_fill(photo, hole)
    faces: list[Crop] = []
    known: dict[Crop, Tensor] = {}
    for look in range(LOOKS + 1):
        local = thin_in_faces(faces, hole, size)
        crops = [*faces, *crops_beside(faces, hole, local, size)]
        new = [crop for crop in crops if crop not in known]
        read: list[ReadCrop] = [partial(read_crop, crop, photo, hole, filled, size) for crop in new]
        known.update(zip(new, (yield read), strict=True))
        images = [known[crop] for crop in crops]
        found = faces
        if finders and look < LOOKS:
            filled = photo.copy()
            filled[rows, columns] = match_colours(crops, images, photo, hole, points, local)
            found = faces_at(filled, hole, finders) or faces
        if found == faces:
            break
        faces = found
    sharp = [at_photo_size(crop, image, photo, hole, filled) for crop, image in zip(crops, images, strict=True)]
    return Fill(match_colours(crops, sharp, photo, hole, points, local), crops)


def rough_fill(photo: NDArray[np.uint8], hole: NDArray[np.bool_]) -> NDArray[np.uint8]:
    """The photo with a smooth fill, made at a small size."""
    factor = -(-max(hole.shape) // ROUGH)
    small, cover = Image.fromarray(photo), Image.fromarray(hole.astype(np.uint8) * 255)
    if factor > 1:
        small, cover = small.reduce(factor), cover.reduce(factor)
    image = torch.from_numpy(np.array(small)).permute(2, 0, 1)[None].float()
    covered = torch.from_numpy(np.array(cover))[None, None] > 0
    rough = push_pull_fill(torch.where(covered, 0.0, image), covered.float())[0]
    filled = photo.copy()
    rows, columns = np.nonzero(hole)
    for start in range(0, len(rows), CHUNK):
        here = rows[start : start + CHUNK], columns[start : start + CHUNK]
        points = np.stack([here[1] + 0.5, here[0] + 0.5], axis=-1)
        filled[here] = sample(rough, points / factor).round().clamp(0, 255).byte().T.numpy()
    return filled


def faces_at(photo: NDArray[np.uint8], hole: NDArray[np.bool_], finders: Sequence[FindFaces]) -> list[Crop]:
    """The crops of the faces that the hole touches, found in one of these ways."""
    image = Image.fromarray(photo)
    for find in finders:
        if found := touched(crops_of(find(image), image.size), hole):
            return found
    return []


def crops_of(faces: Sequence[NDArray[np.float64]], size: tuple[int, int]) -> list[Crop]:
    """The crops of faces in a photo of this size. A photo that is such a crop already, or nearly, is taken as it is."""
    width, height = size
    whole = Crop(0.0, 0.0, float(width), 0.0, is_face=True)
    crops = [Crop.of_face(points) for points in faces]
    crops = [whole if width == height and crop.distance(whole) < ALIGNED else crop for crop in crops]
    # What looks like a face in the middle of a larger one is none.
    middles = [crop.to_photo(np.array([0.5, 0.55])) for crop in crops]
    return [
        crop
        for crop, middle in zip(crops, middles, strict=True)
        if not any(
            other.side > crop.side and np.abs(other.to_unit(middle) - (0.5, 0.55)).max() < 0.25 for other in crops
        )
    ]


def touched(crops: list[Crop], hole: NDArray[np.bool_]) -> list[Crop]:
    """The crops in which the hole has a pixel."""
    return [crop for crop in crops if len(hole_in(crop, hole)[0])]


def hole_in(crop: Crop, hole: NDArray[np.bool_], border: float = 0.0) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The rows and columns of the hole's pixels in a crop without its border, whose width is a fraction of the side."""
    left, top, right, bottom = crop.bounds(hole.shape[1], hole.shape[0], margin=0)
    rows, columns = np.nonzero(hole[top:bottom, left:right])
    rows, columns = rows + top, columns + left
    unit = crop.to_unit(np.stack([columns + 0.5, rows + 0.5], axis=-1))
    inside = ((unit > border) & (unit < 1 - border)).all(axis=-1)
    return rows[inside], columns[inside]


def thin_in_faces(faces: list[Crop], hole: NDArray[np.bool_], size: int) -> NDArray[np.bool_]:
    """The pixels (H, W) of the hole in large faces where it is thin."""
    thin = np.zeros_like(hole)
    for face in faces:
        if face.side > LARGE_FACE * size:
            width = round(THIN_IN_FACE * face.side)
            left, top, right, bottom = face.bounds(hole.shape[1], hole.shape[0], margin=width)
            part = hole[top:bottom, left:right]
            thin[top:bottom, left:right] |= part & ~wide_part(part, width)
    return thin


def crops_beside(faces: list[Crop], hole: NDArray[np.bool_], local: NDArray[np.bool_], size: int) -> list[Crop]:
    """Crops around the pieces of the hole that no face covers well, or that are `local` (H, W) in a face."""
    rest = hole.copy()
    for face in faces:
        # Near its border a crop has little weight, unless the photo ends there too.
        rest[hole_in(face, hole, 0.0 if face.covers(hole.shape[1], hole.shape[0]) else 0.06)] = False
    rest |= local
    crops = []
    rows, columns = np.nonzero(rest)
    for left, top, right, bottom in split_boxes(rows, columns, gap=max(16, size // 4), thin_side=int(size / CONTEXT)):
        piece, whole = max(right - left, bottom - top), min(hole.shape)
        side = max(piece, min(CONTEXT * piece, whole), min(size, whole))
        crop = Crop.around(left, top, right, bottom, side)
        # Shift it into the photo where it fits, since beside the photo nothing is known.
        x = min(max(crop.x, 0), max(hole.shape[1] - side, 0)) if side <= hole.shape[1] else crop.x
        y = min(max(crop.y, 0), max(hole.shape[0] - side, 0)) if side <= hole.shape[0] else crop.y
        crops.append(Crop(float(x), float(y), float(side), 0.0))
    return list(dict.fromkeys(crops))


@torch.inference_mode()
def at_photo_size(
    crop: Crop, fill: Tensor, photo: NDArray[np.uint8], hole: NDArray[np.bool_], filled: NDArray[np.uint8]
) -> Tensor:
    """The fill of a crop in the photo's resolution, up to MAX_SCALE times its size, with detail."""
    scale = min(MAX_SCALE, round(crop.side / fill.shape[-1]))
    if scale < 2 or fill.shape[-1] % PATCH:
        return fill
    sharp, sharp_hole = read_crop(crop, photo, hole, filled, scale * fill.shape[-1])
    return enlarge_fill(fill, (sharp + 1) * 127.5, sharp_hole)


@torch.inference_mode()
def run_model(model: InpaintingNetwork, inputs: Sequence[ReadCrop], precision: str) -> list[Tensor]:
    """Fill crops in batches: (3, size, size) in [0, 255] each. Only the crops of one batch are in memory."""
    device = next(model.parameters()).device
    fills: list[Tensor] = []
    for start in range(0, len(inputs), BATCH):
        crops = [read() for read in inputs[start : start + BATCH]]
        images, holes = (torch.stack(part).to(device) for part in zip(*crops, strict=True))
        with torch.autocast(device.type, torch.bfloat16) if precision == "bf16" else nullcontext():
            output = model(images.contiguous(memory_format=torch.channels_last), holes)
        fills += (output.image.float().cpu() + 1) * 127.5
    return fills


def match_colours(
    crops: list[Crop],
    fills: list[Tensor],
    photo: NDArray[np.uint8],
    hole: NDArray[np.bool_],
    points: NDArray[np.float64],
    local: NDArray[np.bool_],
) -> NDArray[np.uint8]:
    """The blended fills at the hole's pixels (N, 3), without a seam.

    What the fills miss at the known pixels beside the hole is spread smoothly into the hole and added.
    """
    left, top = np.maximum(points.min(axis=0).astype(int) - 2, 0)
    right, bottom = np.minimum(points.max(axis=0).astype(int) + 3, (hole.shape[1], hole.shape[0]))
    part = hole[top:bottom, left:right]
    ring = _grown(part) & ~part
    rows, columns = np.nonzero(ring)
    around = np.stack([columns + left + 0.5, rows + top + 0.5], axis=-1)
    spread = None
    if len(around):
        known = torch.from_numpy(photo[rows + top, columns + left].T.astype(np.float32))
        missed = known - blend_fills(crops, fills, around, _grown(local)[rows + top, columns + left])
        factor = -(-max(part.shape) // MEMBRANE)
        size = -(-part.shape[0] // factor), -(-part.shape[1] // factor)
        index = torch.from_numpy(rows // factor * size[1] + columns // factor)
        total = torch.zeros(4, size[0] * size[1]).index_add_(1, index, torch.cat([missed, torch.ones_like(missed[:1])]))
        mean = (total[:3] / total[3].clamp_min(1)).view(1, 3, *size)
        spread = push_pull_fill(mean, (total[3] == 0).float().view(1, 1, *size))[0]
    result = np.empty((len(points), 3), np.uint8)
    for start in range(0, len(points), CHUNK):
        here = points[start : start + CHUNK]
        colours = blend_fills(crops, fills, here, local[here[:, 1].astype(int), here[:, 0].astype(int)])
        if spread is not None:
            colours += sample(spread, (here - (left, top)) / factor)
        result[start : start + CHUNK] = colours.round().clamp(0, 255).byte().T.numpy()
    return result


def _grown(hole: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """The hole and the pixels beside it: `grow_hole(hole, 1)`, but a hundred times as fast."""
    grown = hole.copy()
    grown[1:] |= hole[:-1]
    grown[:-1] |= hole[1:]
    grown[:, 1:] |= hole[:, :-1]
    grown[:, :-1] |= hole[:, 1:]
    return grown
