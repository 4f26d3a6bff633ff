"""Find the faces in a photo with YuNet: at two scales, in several directions, and each again when it is upright."""

from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from showface.crops import Crop, resample
from showface.data import read_image
from showface.faces.yunet import YuNet

THRESHOLD = 0.6
SIDES = (640, 1280)  # the longer side of the photo, in pixels, at the two scales
OVERLAP = 0.3  # boxes whose intersection over union exceeds this are the same face, as in OpenCV
CONTAINED = 0.6  # of boxes from two searches, one that lies this far in the other is the same face
SMALL = 120  # pixels; larger boxes at the larger scale are left to the smaller scale, which places points better
TILTS = (0, -20, 20)  # degrees by which the photo is turned, since the network is best with upright faces
QUARTERS = (90, 180, 270)
LOOKS = 2  # how often a face is found again in a close-up
CLOSE_UP = 224  # side of a close-up in pixels
WIDE = 1.5  # side of a close-up, in sides of the aligned crop
KEPT = 0.5  # least score of a face in its close-up, as a fraction of the threshold
NEAR = 0.25  # how far from a close-up's middle a face may be, as a fraction of its side
BATCH = 16  # close-ups in one call of the network
BESIDE = (127, 127, 127)  # the colour beside a tilted photo
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
        self.network = YuNet.bundled().to(self.device)
        self.network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def find(self, photo: Image.Image, *, threshold: float = THRESHOLD, turned: bool = True) -> list[Face]:
        """Find the faces in a photo.

        The photo is searched with its longer side reduced to 640 pixels, also tilted by 20 degrees to both sides and
        turned by 90, 180 and 270 degrees; and if it is larger, again at 1280 for small faces. Of boxes that overlap,
        the best score wins. Then each face is looked for again in a close-up in which it is upright: this places the
        points better, and drops most of what is no face. The direction from eyes to mouth gives a face's roll.

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
        # Always, for the network also finds faces upside down, with wrong points and a score only a little lower.
        turns = TILTS + QUARTERS if turned else TILTS
        found = [self._search(small, photo.size, threshold, degrees) for degrees in turns]
        if large.size != small.size:
            rows = self._search(large, photo.size, threshold)
            sides = np.max(rows[:, 2:4] - rows[:, :2], axis=1)
            found.append(rows[sides <= SMALL * max(photo.size) / SIDES[1]])
        rows = suppress(np.concatenate(found), contained=CONTAINED)
        for _ in range(LOOKS):
            rows = self._look_closer(rows, photo, large, KEPT * threshold)
        faces = [_face(row) for row in suppress(rows, contained=CONTAINED)]
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
        pixels = torch.from_numpy(np.array(picture)).permute(2, 0, 1)[None].float()
        height, width = pixels.shape[-2:]
        return self._run(F.pad(pixels, (0, -width % MULTIPLE, 0, -height % MULTIPLE)), threshold)[0]

    def _run(self, pixels: Tensor, threshold: float) -> list[Rows]:
        """The rows of each picture in a batch (B, 3, H, W) with at least this score."""
        batch = self.network(pixels.to(self.device).contiguous(memory_format=torch.channels_last))
        # A chance score in an extreme box is no face.
        kept = (batch[..., -1] >= threshold) & batch.isfinite().all(-1)
        return [rows[good].double().cpu().numpy() for rows, good in zip(batch, kept, strict=True)]

    def _search(self, picture: Image.Image, size: tuple[int, int], threshold: float, degrees: int = 0) -> Rows:
        """Search a reduced photo, turned against the clock. Returns rows in pixels of the photo, which has `size`."""
        turned = picture.rotate(degrees, Image.Resampling.BILINEAR, expand=True, fillcolor=BESIDE)
        rows = self._rows(turned, threshold)
        half = (rows[:, 2:4] - rows[:, :2]) / 2
        places = np.concatenate([rows[:, :2] + half, rows[:, 4:-1]], axis=1).reshape(-1, 6, 2)
        # The middle of a picture stays in the middle when it is turned.
        places = _turn(places - np.array(turned.size) / 2, degrees) + np.array(picture.size) / 2
        scale = np.array(size) / np.array(picture.size)
        return _rows_of(places * scale, _half_of_turned(half, degrees) * scale, rows[:, -1])

    @torch.inference_mode()
    def _look_closer(self, rows: Rows, photo: Image.Image, reduced: Image.Image, threshold: float) -> Rows:
        """Find each face again in an upright close-up, and drop those that are not found. Rows are in photo pixels."""
        zoom = reduced.width / photo.width
        small = np.max(rows[:, 2:4] - rows[:, :2], axis=1) * zoom < CLOSE_UP
        found = []
        # Close-ups of small faces need the photo's own pixels. For others the reduced photo has enough, and is faster.
        for picture, scale, chosen in ((photo, 1.0, small), (reduced, zoom, ~small)):
            pixels = np.asarray(picture) if chosen.any() else np.zeros((0, 0, 3), np.uint8)
            for start in range(0, chosen.sum(), BATCH):
                these = rows[chosen][start : start + BATCH]
                crops = [Crop.of_face(row[4:-1].reshape(5, 2)).widened(WIDE) for row in these]
                views = torch.stack([resample(crop.scaled(scale), pixels, CLOSE_UP) for crop in crops])
                for row, crop, here in zip(these, crops, self._run(views, threshold), strict=True):
                    best = _best_in_middle(here, crop)
                    best[:, -1] = row[-1]  # the score of the search
                    found.append(best)
        return np.concatenate(found) if found else rows


@cache
def default_detector() -> FaceDetector:
    """The detector on the CPU. It is loaded once."""
    return FaceDetector()


def find_faces(photo: Image.Image, *, threshold: float = THRESHOLD) -> list[Face]:
    """Find the faces in a photo: `FaceDetector.find` of `default_detector()`."""
    return default_detector().find(photo, threshold=threshold)


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


def _turn(points: NDArray[np.float64], degrees: float) -> NDArray[np.float64]:
    """Turn points (..., 2) about (0, 0) with the clock, as seen in a picture, whose y axis points down."""
    angle = np.deg2rad(degrees)
    cosine, sine = np.cos(angle), np.sin(angle)
    return points @ np.array([[cosine, sine], [-sine, cosine]])


def _half_of_turned(half: NDArray[np.float64], degrees: float) -> NDArray[np.float64]:
    """Half the sides of the box around the ellipse that fills a turned box with half the sides `half` (..., 2)."""
    # The box around the turned box itself would be too large for a face.
    angle = np.deg2rad(degrees)
    cosine, sine = np.cos(angle), np.sin(angle)
    return np.hypot(half * cosine, half[..., ::-1] * sine)


def _rows_of(places: NDArray[np.float64], half: NDArray[np.float64], score: NDArray[np.float64]) -> Rows:
    """Rows of boxes with middles places[:, 0] and points places[:, 1:]."""
    middle, points = places[:, 0], places[:, 1:].reshape(len(places), 10)
    return np.concatenate([middle - half, middle + half, points, score[:, None]], axis=1)


def _best_in_middle(rows: Rows, crop: Crop) -> Rows:
    """The face in the middle of a close-up of this crop, in pixels of the photo: one row or none."""
    half = (rows[:, 2:4] - rows[:, :2]) / 2 / CLOSE_UP
    places = np.concatenate([rows[:, :2] / CLOSE_UP + half, rows[:, 4:-1] / CLOSE_UP], axis=1).reshape(-1, 6, 2)
    near = np.flatnonzero((np.abs(places[:, 0] - 0.5) < NEAR).all(axis=1))
    best = near[rows[near, -1].argsort()[-1:]]
    degrees = np.rad2deg(np.arctan2(crop.dy, crop.dx))
    return _rows_of(crop.to_photo(places[best]), _half_of_turned(half[best], degrees) * crop.side, rows[best, -1])


def _check_threshold(threshold: float) -> None:
    if not 0.0 < threshold < 1.0:
        raise ValueError(f"threshold must be in (0, 1), got {threshold}")


def _face(row: Rows) -> Face:
    left, top, right, bottom, *points, score = row.tolist()
    return Face((left, top, right, bottom), np.array(points).reshape(-1, 2), score)
