"""Fill a folder of photos, a few at a time."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from showface.batch.work import FAILURES, Fill, Shard, fill_together
from showface.data import Photo, find_images, find_masks, read_photo, save_photo
from showface.out_of_memory import memory_errors

FindHole = Callable[[Path, Photo], NDArray[np.bool_]]


@dataclass
class BatchResult:
    """What `fill_folder` did with each photo; paths are relative to the folder of photos.

    Attributes:
        filled: the photos that were filled.
        empty: the photos with an empty hole, which are saved as they are.
        skipped: the photos whose result existed already.
        failed: the photos that could not be read, filled or saved, with the reason.
        faces: the number of faces that were filled.
        without_face: the photos with a hole at which no face was found.
    """

    filled: list[Path] = field(default_factory=list)
    empty: list[Path] = field(default_factory=list)
    skipped: list[Path] = field(default_factory=list)
    failed: dict[Path, str] = field(default_factory=dict)
    faces: int = 0
    without_face: list[Path] = field(default_factory=list)


def fill_folder(
    photos: Path,
    out: Path,
    find_hole: FindHole,
    fill: Fill,
    *,
    batch: int = 1,
    overwrite: bool = False,
    shard: Shard | None = None,
    progress: Callable[[int, int], object] = lambda done, total: None,
    on_failure: Callable[[Path, str], object] = lambda photo, reason: None,
) -> BatchResult:
    """Fill all photos in a folder and below, and save the results under the same names in another folder.

    Only one batch of photos is in memory at a time. Each result is written atomically, so one that exists is finished:
    it is skipped, and a stopped run can be started again. A photo that fails does not stop the others.

    Args:
        photos: the folder of photos.
        out: the folder of results. It is made if needed.
        find_hole: gets the path and the photo, and returns its hole, (H, W) bool. `MaskFolder` is one.
        fill: gets RGB photos with their holes and returns them filled; `Inpainter.restore_many` is one. It gets no
            photo with an empty hole.
        batch: the number of photos that are filled together.
        overwrite: fill photos again whose results exist.
        shard: fill only this share of the photos.
        progress: called with the number of photos done and of all photos.
        on_failure: called with a photo's relative path and the reason, as soon as it fails.

    Raises:
        FileNotFoundError, NotADirectoryError, ValueError: the photos, as for `find_images`.
        ValueError: `out` is a file, or is in the folder of photos, or the other way round.
    """
    found = find_images(photos) if shard is None else shard(find_images(photos))
    if out.exists() and not out.is_dir():
        raise ValueError(f"{photos} is a folder, so the output must be one too, but {out} is a file")
    keep_apart(photos, out)
    result = BatchResult()
    names = [path.relative_to(photos) for path in found]
    result.skipped = [name for name in names if (out / name).exists() and not overwrite]
    finished = set(result.skipped)
    waiting = [name for name in names if name not in finished]

    def failed(name: Path, error: BaseException) -> None:
        result.failed[name] = str(error)
        on_failure(name, str(error))

    for start in range(0, len(waiting), batch):
        progress(len(names) - len(waiting) + start, len(names))
        read: dict[Path, tuple[Photo, NDArray[np.bool_]]] = {}
        for name in waiting[start : start + batch]:
            try:
                with memory_errors():
                    photo = read_photo(photos / name)
                    read[name] = photo, find_hole(photos / name, photo)
            except FAILURES as error:
                failed(name, error)
        filled = fill_together(fill, read)
        for name, (photo, hole) in read.items():
            try:
                done = filled[name]
                if isinstance(done, BaseException):
                    raise done
                image = photo.rgb if done is None else done.image
                (out / name).parent.mkdir(parents=True, exist_ok=True)
                with memory_errors():
                    save_photo(image, out / name, photo, hole=hole, overwrite=overwrite)
            except FAILURES as error:
                failed(name, error)
            else:
                if done is None:
                    result.empty.append(name)
                else:
                    result.filled.append(name)
                    result.faces += done.faces
                    result.without_face += [name] * (not done.faces)
    progress(len(names), len(names))
    return result


class MaskFolder:
    """Finds the mask of each photo: the image in a folder of masks with the photo's relative path, but any suffix.

    Args:
        masks: the folder of masks.
        photos: the folder of photos.

    Raises:
        FileNotFoundError, NotADirectoryError, ValueError: as for `find_masks`.
    """

    def __init__(self, masks: Path, photos: Path) -> None:
        self.masks, self.photos = masks, photos
        self.found: dict[Path, list[Path]] = {}
        for mask in find_masks(masks):
            self.found.setdefault(mask.relative_to(masks).with_suffix(""), []).append(mask)

    def __call__(self, photo: Path) -> Path:
        """The mask of a photo.

        Raises:
            FileNotFoundError: there is none.
            ValueError: there are several.
        """
        stem = photo.relative_to(self.photos).with_suffix("")
        candidates = self.found.get(stem, [])
        if not candidates:
            raise FileNotFoundError(f"there is no mask {stem}.* in {self.masks}")
        if len(candidates) > 1:
            raise ValueError(f"there are several masks {stem}.* in {self.masks}")
        return candidates[0]


def keep_apart(first: Path, second: Path) -> None:
    """Check that neither of two paths is in the other. Otherwise the next run would read results and masks as photos.

    Raises:
        ValueError: one is in the other, or they are the same.
    """
    one, other = first.resolve(), second.resolve()
    if one == other or one in other.parents or other in one.parents:
        raise ValueError(f"photos, masks and results must be in separate folders: {first} and {second} are not")
