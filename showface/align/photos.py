"""Cut the faces out of photos as training wants them: upright squares, with eyes, nose and mouth in their places."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from showface.batch import keep_apart
from showface.batch.work import FAILURES
from showface.crops import Crop, resample
from showface.data import find_images, read_image, save_photo
from showface.data.images import Source
from showface.data.photo import check_inputs
from showface.faces import find_faces
from showface.hole_filling import crops_of
from showface.out_of_memory import memory_errors

SIZE = 512
MIN_SIDE = 128
MAX_BESIDE = 0.1
"""The largest part of a face's square that may lie beside the photo. There the photo's border is continued, and a
network would learn these streaks."""
_GRID = np.stack(np.meshgrid(*[(np.arange(64) + 0.5) / 64] * 2), axis=-1)  # points of the unit square


class _Aligned(NamedTuple):
    """The aligned faces of a photo, and how many were left out: the small ones, and those that the border cuts."""

    faces: list[Image.Image]
    small: int
    cut: int


@dataclass
class AlignResult:
    """What `align_photos` did with each photo; paths are as given, or in the given folders.

    Attributes:
        aligned: the photos of which faces were saved.
        faces: the number of these faces.
        skipped: the photos whose first face existed already.
        without_face: the photos in which no face was found.
        small: the photo of each face that was left out because it is small.
        cut: the photo of each face that was left out because the photo's border cuts it.
        failed: the photos that could not be read or saved, with the reason.
    """

    aligned: list[Path] = field(default_factory=list)
    faces: int = 0
    skipped: list[Path] = field(default_factory=list)
    without_face: list[Path] = field(default_factory=list)
    small: list[Path] = field(default_factory=list)
    cut: list[Path] = field(default_factory=list)
    failed: dict[Path, str] = field(default_factory=dict)


def align_faces(photo: Source, *, size: int = SIZE, min_side: int = MIN_SIDE) -> list[Image.Image]:
    """The faces of a photo as training wants them: the squares that `showface.inpaint` gives to the model.

    Faces may be turned, small or several. In each square, the face's points lie as near as possible to
    `showface.data.ALIGNED_POINTS`. A square photo that is such a face already, or nearly, is taken as it is.

    Args:
        photo: a path, a file open for reading bytes, a PIL image of any mode, or a uint8 array (H, W, 3) or (H, W).
        size: the largest side of a face in pixels. A smaller face keeps its side: enlarged, it would be a blurred one.
        min_side: faces whose square has a smaller side in the photo are left out. So are faces of whose square more
            than a tenth lies beside the photo.

    Returns:
        RGB images, the largest face first. There may be none.

    Raises:
        ValueError: `size` or `min_side` is below 1.
        TypeError, FileNotFoundError, UnreadableImageError: as for `showface.data.read_image`.
    """
    _check_sides(size, min_side)
    return _align(read_image(photo), size, min_side).faces


def align_photos(
    photos: Sequence[Path],
    out: Path,
    *,
    size: int = SIZE,
    min_side: int = MIN_SIDE,
    overwrite: bool = False,
    progress: Callable[[int, int], object] = lambda done, total: None,
    on_failure: Callable[[Path, str], object] = lambda photo, reason: None,
) -> AlignResult:
    """Save the faces of photos, as `align_faces` gives them, as PNG files in one folder.

    A photo `more/a.jpg` of a folder gives `more/a.png`, `more/a-2.png` and so on, the largest face first. The first is
    written last, and each atomically. So a photo whose first face exists is finished: it is skipped, and a stopped run
    can be started again. Of two photos with the same result, such as a.heic and a.jpg, the second fails. A photo that
    fails does not stop the others.

    Args:
        photos: photos, and folders, which are searched as by `find_images`.
        out: the folder of faces. It is made if needed.
        size, min_side: as for `align_faces`.
        overwrite: align photos again whose first face exists. Files of faces that are no longer found stay.
        progress: called with the number of photos done and of all photos.
        on_failure: called with a photo and the reason, as soon as it fails.

    Raises:
        FileNotFoundError, ValueError: a photo or folder does not exist, or a folder holds no image.
        ValueError: `size` or `min_side` is below 1; or `out` is a file, or is in a folder of photos, or holds photos.
    """
    _check_sides(size, min_side)
    if out.exists() and not out.is_dir():
        raise ValueError(f"the faces need a folder, but {out} is a file")
    names = _names(photos, out)
    result = AlignResult()

    def failed(photo: Path, reason: str) -> None:
        result.failed[photo] = reason
        on_failure(photo, reason)

    owners = {name: photo for photo, name in reversed(names.items())}  # of photos with one name the first
    for done, (photo, name) in enumerate(names.items()):
        progress(done, len(names))
        if owners[name] != photo:
            failed(photo, f"{owners[name]} gives {name} too: align one of them into another folder")
            continue
        if name.exists() and not overwrite:
            result.skipped.append(photo)
            continue
        try:
            with memory_errors():
                found = _align(read_image(photo), size, min_side)
                _save(found.faces, name, owners, overwrite)
        except FAILURES as error:
            failed(photo, str(error))
            continue
        result.faces += len(found.faces)
        result.small += [photo] * found.small
        result.cut += [photo] * found.cut
        if found.faces:
            result.aligned.append(photo)
        elif not found.small + found.cut:
            result.without_face.append(photo)
    progress(len(names), len(names))
    return result


def _check_sides(size: int, min_side: int) -> None:
    if size < 1 or min_side < 1:
        raise ValueError(f"size and min_side must be at least 1 pixel, got {size} and {min_side}")


def _names(photos: Sequence[Path], out: Path) -> dict[Path, Path]:
    """Each photo once, with the file of its first face."""
    names: dict[Path, Path] = {}
    for path in photos:
        check_inputs(path, None, "photo or folder")
        keep_apart(path, out)
        root, found = (path, find_images(path)) if path.is_dir() else (path.parent, [path])
        for photo in found:
            names.setdefault(photo, out / photo.relative_to(root).with_suffix(".png"))
    return names


def _align(photo: Image.Image, size: int, min_side: int) -> _Aligned:
    """Align the faces of an RGB photo, the largest first."""
    crops = crops_of([face.points for face in find_faces(photo)], photo.size)
    large = [crop for crop in crops if round(crop.side) >= min_side]
    kept = [crop for crop in large if _beside(crop, photo.width, photo.height) <= MAX_BESIDE]
    pixels = np.asarray(photo)
    return _Aligned(
        [_cut_out(crop, pixels, min(size, round(crop.side))) for crop in kept],
        len(crops) - len(large),
        len(large) - len(kept),
    )


def _beside(crop: Crop, width: int, height: int) -> float:
    """The part of a crop that lies beside a photo of this size."""
    points = crop.to_photo(_GRID)
    return float(((points < 0) | (points > (width, height))).any(axis=-1).mean())


def _cut_out(crop: Crop, pixels: NDArray[np.uint8], side: int) -> Image.Image:
    """A crop of a photo (H, W, 3) as an image of side x side."""
    image = resample(crop, pixels, side).round().byte()
    return Image.fromarray(image.permute(1, 2, 0).contiguous().numpy())


def _save(faces: Sequence[Image.Image], first: Path, taken: Collection[Path], overwrite: bool) -> None:
    """Save the faces of a photo. Names that are taken by the first faces of other photos, or exist, are left out."""
    paths, number = [first], 2
    while len(paths) < len(faces):
        path = first.with_stem(f"{first.stem}-{number}")
        if path not in taken and (overwrite or not path.exists()):
            paths.append(path)
        number += 1
    # The first face last: where it exists, all of them do.
    for face, path in reversed(list(zip(faces, paths, strict=False))):
        path.parent.mkdir(parents=True, exist_ok=True)
        save_photo(face, path, overwrite=overwrite)
