"""Find the faces in a photo with YuNet: at two scales, and turned by 90, 180 and 270 degrees."""

from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image

from showface.data import read_image
from showface.faces.yunet import YuNet

THRESHOLD = 0.6
SIDES = (640, 1280)  # the longer side of the photo, in pixels, at the two scales
OVERLAP = 0.3  # boxes whose intersection over union exceeds this are the same face, as in OpenCV
CONTAINED = 0.6  # of boxes from two searches, one that lies this far in the other is the same face
SMALL = 120  # pixels; larger boxes at the larger scale are left to the smaller scale, which places points better
ROTATIONS = (Image.Transpose.ROTATE_90, Image.Transpose.ROTATE_180, Image.Transpose.ROTATE_270)
CANDIDATES = 5000  # as in OpenCV, and a bound on the time for a low threshold
MULTIPLE = 32  # the network's coarsest stride

Rows = NDArray[np.float64]  # (N, 15): left, top, right, bottom, five points as x, y pairs, score


@dataclass(frozen=True)
class Face:
    """A face that was found.

    Coordinates are in pixels of the photo and continuous: the top left pixel covers 0 to 1 in both directions, so its
    centre is at (0.5, 0.5). They may lie outside of the photo if the border cuts the face.

    Attributes:
        box: left, top, right, bottom.
        points: (5, 2) float64 x, y: left eye, right eye, nose, left mouth corner, right mouth corner. Left and right
            are as seen in the picture when the face is upright; so the left eye is the person's right eye.
        score: 0 to 1.
    """

    box: tuple[float, float, float, float]
    points: NDArray[np.float64]
    score: float

    @property
    def area(self) -> float:
        """The area of the box in square pixels."""
        left, top, right, bottom = self.box
        return max(0.0, right - left) * max(0.0, bottom - top)


class FaceDetector:
    """Finds faces with the bundled network. Never raises for a photo of any size; a photo without faces gives [].

    Args:
        device: where the network runs.
    """

    def __init__(self, device: str | torch.device = "cpu") -> None:
        self.device = torch.device(device)
        # Channels last is 3 to 10 times faster on a CPU.
        self.network = YuNet.from_file().to(self.device)
        self.network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def find(self, photo: Image.Image, *, threshold: float = THRESHOLD, turned: bool = True) -> list[Face]:
        """Find the faces in a photo.

        The photo is searched with its longer side reduced to 640 pixels, also turned by 90, 180 and 270 degrees; and if
        it is larger, again at 1280 for small faces. Of boxes that overlap, the best score wins. The points of a face
        that was found in a turned photo keep their meaning, so the direction from eyes to mouth gives its roll.

        Args:
            photo: a PIL image; modes other than RGB go through `read_image`.
            threshold: the smallest score of a face, in (0, 1).
            turned: also look for faces that lie on their side or stand on their head.

        Returns:
            The faces, the largest box first.

        Raises:
            ValueError: the threshold is out of range.
        """
        _check_threshold(threshold)
        photo = photo if photo.mode == "RGB" else read_image(photo)
        large = _reduce(photo, SIDES[1])
        small = _reduce(large, SIDES[0])
        found = [self._search(small, photo.size, threshold)]
        if turned:
            # Always, for the network also finds faces upside down, with wrong points and a score only a little lower.
            found += [self._search_turned(small, photo.size, threshold, turn) for turn in (1, 2, 3)]
        if large.size != small.size:
            rows = self._search(large, photo.size, threshold)
            sides = np.max(rows[:, 2:4] - rows[:, :2], axis=1)
            found.append(rows[sides <= SMALL * max(photo.size) / SIDES[1]])
        rows = suppress(np.concatenate(found), contained=CONTAINED)
        faces = [_face(row) for row in rows]
        return sorted(faces, key=lambda face: face.area, reverse=True)

    @torch.inference_mode()
    def detect(self, picture: Image.Image, *, threshold: float = THRESHOLD) -> list[Face]:
        """The faces at this scale and in this direction only, the best score first.

        Agrees with OpenCV's FaceDetectorYN.

        Args:
            picture: an RGB image, whose pixels the network sees as they are.
            threshold: the smallest score of a face, in (0, 1).
        """
        _check_threshold(threshold)
        return [_face(row) for row in suppress(self._rows(picture, threshold))]

    @torch.inference_mode()
    def _rows(self, picture: Image.Image, threshold: float) -> Rows:
        pixels = torch.from_numpy(np.array(picture)).to(self.device).permute(2, 0, 1)[None].float()
        height, width = pixels.shape[-2:]
        pixels = F.pad(pixels, (0, -width % MULTIPLE, 0, -height % MULTIPLE))
        rows = self.network(pixels.contiguous(memory_format=torch.channels_last))[0]
        # A chance score in an extreme box is no face.
        kept = (rows[:, -1] >= threshold) & rows.isfinite().all(1)
        return rows[kept].double().cpu().numpy()

    def _search(self, picture: Image.Image, size: tuple[int, int], threshold: float) -> Rows:
        """Search a reduced photo. Returns rows in pixels of the photo, which has `size`."""
        rows = self._rows(picture, threshold)
        scale = np.array(size) / np.array(picture.size)
        rows[:, :-1] *= np.tile(scale, 7)
        return rows

    def _search_turned(self, picture: Image.Image, size: tuple[int, int], threshold: float, turn: int) -> Rows:
        """Search a reduced photo turned by quarter turns against the clock. Returns rows in pixels of the photo."""
        turned_size = size if turn == 2 else size[::-1]
        rows = self._search(picture.transpose(ROTATIONS[turn - 1]), turned_size, threshold)
        width, height = size
        x, y = rows[:, 0:-1:2], rows[:, 1:-1:2]
        # The photo's point (x, y) goes to (y, width - x) in one quarter turn against the clock. This undoes it.
        x, y = [(width - y, x), (width - x, height - y), (y, height - x)][turn - 1]
        back = rows.copy()
        back[:, 0:-1:2], back[:, 1:-1:2] = x, y
        corners = back[:, :4].reshape(-1, 2, 2)
        back[:, :4] = np.concatenate([corners.min(1), corners.max(1)], axis=1)
        return back


@cache
def default_detector() -> FaceDetector:
    """The detector on the CPU. It is loaded once."""
    return FaceDetector()


def find_faces(
    photo: Image.Image, *, threshold: float = THRESHOLD, turned: bool = True, detector: FaceDetector | None = None
) -> list[Face]:
    """Find the faces in a photo: `FaceDetector.find`, by default with `default_detector()`."""
    return (detector or default_detector()).find(photo, threshold=threshold, turned=turned)


def suppress(rows: Rows, overlap: float = OVERLAP, contained: float = 1.0) -> Rows:
    """Non-maximum suppression: drop the boxes that overlap one with a better score.

    Args:
        rows: (N, 15), box first and score last.
        overlap: boxes whose intersection over union exceeds this are the same face.
        contained: so are boxes of which one has more than this fraction in the other.

    Returns:
        The rows that are kept, the best score first.
    """
    rows = rows[np.argsort(-rows[:, -1], kind="stable")[:CANDIDATES]]
    low, high = rows[:, :2], rows[:, 2:4]
    area = np.prod(np.maximum(high - low, 0.0), axis=1)
    kept: list[int] = []
    left = np.arange(len(rows))
    while len(left):
        best, left = left[0], left[1:]
        kept.append(int(best))
        shared = np.minimum(high[best], high[left]) - np.maximum(low[best], low[left])
        shared = np.prod(np.maximum(shared, 0.0), axis=1)
        union, smaller = area[best] + area[left] - shared, np.minimum(area[best], area[left])
        left = left[(shared <= overlap * union) & (shared <= contained * smaller)]
    return rows[kept]


def _reduce(photo: Image.Image, side: int) -> Image.Image:
    """Reduce the longer side to `side`. A smaller photo is returned as it is."""
    scale = side / max(photo.size)
    if scale >= 1.0:
        return photo
    size = (max(1, round(scale * photo.width)), max(1, round(scale * photo.height)))
    return photo.resize(size, Image.Resampling.BILINEAR, reducing_gap=1.5)


def _check_threshold(threshold: float) -> None:
    if not 0.0 < threshold < 1.0:
        raise ValueError(f"threshold must be in (0, 1), got {threshold}")


def _face(row: Rows) -> Face:
    left, top, right, bottom, *points, score = row.tolist()
    return Face((left, top, right, bottom), np.array(points).reshape(-1, 2), score)
