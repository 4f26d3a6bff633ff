"""Crops of a photo, and the filling of its hole from them, with stand-ins for the network and the face detector."""

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw
from torch import nn

from showface.crops import TEMPLATE, Crop, blend_fills, read_crop, sample_fill, split_boxes, wide_part
from showface.hole_filling import BATCH, crops_beside, fill_holes, rough_fill, run_model, thin_in_faces, touched
from showface.models import InpaintingOutput


def turned(degrees: float, side: float, centre: tuple[float, float]) -> Crop:
    """A face's crop with this side and centre, turned clockwise."""
    angle = np.deg2rad(degrees)
    dx, dy = side * np.cos(angle), side * np.sin(angle)
    return Crop(centre[0] - (dx - dy) / 2, centre[1] - (dx + dy) / 2, dx, dy, is_face=True)


def waves(width: int, height: int) -> np.ndarray:
    """A smooth picture."""
    y, x = np.mgrid[0:height, 0:width] / 40
    return (128 + 60 * np.stack([np.sin(x + y), np.cos(x - y), np.sin(x) * np.cos(y)], -1)).round().astype(np.uint8)


def a_hole(width: int, height: int) -> np.ndarray:
    hole = np.zeros((height, width), bool)
    hole[height // 3 : height // 2, width // 3 : width // 2] = True
    return hole


def centres(hole: np.ndarray) -> np.ndarray:
    rows, columns = np.nonzero(hole)
    return np.stack([columns + 0.5, rows + 0.5], -1)


class Tinted(nn.Module):
    """Fills holes with the rough fill that it is given, in a wrong tint."""

    def __init__(self, tint: float = 0.2) -> None:
        super().__init__()
        self.tint = nn.Parameter(torch.tensor(tint))
        self.seen = []

    def forward(self, image, hole):
        self.seen.append((image, hole))
        out = image + self.tint
        return InpaintingOutput(image=out, coarse=out, raw_image=out, raw_coarse=out)


@pytest.mark.parametrize("degrees", [0, 30, -90, 180])
def test_photo_and_unit_square(degrees):
    crop = turned(degrees, 80, (120, 90))
    points = np.random.default_rng(0).random((7, 2))
    assert np.allclose(crop.to_unit(crop.to_photo(points)), points)
    assert np.isclose(crop.side, 80)
    assert np.allclose(crop.to_photo(np.array([0.5, 0.5])), (120, 90))
    found = Crop.of_face(crop.to_photo(TEMPLATE))
    assert found.is_face
    assert np.allclose((found.x, found.y, found.dx, found.dy), (crop.x, crop.y, crop.dx, crop.dy))


@pytest.mark.parametrize(("degrees", "side"), [(0, 64), (25, 64), (90, 100), (-150, 150), (10, 30)])
def test_read_and_set_back(degrees, side):
    """A smooth picture survives being read in another size and angle, and read back."""
    photo = waves(260, 240)
    crop = turned(degrees, side, (131, 119))
    nothing = np.zeros(photo.shape[:2], bool)
    image, hole = read_crop(crop, photo, nothing, photo, 64)
    assert not hole.any()
    inside = nothing.copy()
    inside[110:128, 120:140] = True
    colours, weights = sample_fill(crop, (image + 1) * 127.5, centres(inside))
    assert np.abs(colours.T.numpy() - photo[inside]).max() < (2 if side <= 100 else 5)
    assert (weights > 0).all()


def test_an_upright_crop_of_the_right_size_is_exact():
    photo = waves(70, 60)
    image, hole = read_crop(Crop(3, 2, 48, 0), photo, np.zeros((60, 70), bool), photo, 48)
    assert not hole.any()
    assert np.abs(((image + 1) * 127.5).permute(1, 2, 0).numpy() - photo[2:50, 3:51]).max() < 1e-2


def test_any_part_of_the_hole_counts_and_so_does_what_lies_outside():
    photo, hole = waves(100, 100), np.zeros((100, 100), bool)
    hole[50, 50] = True
    _, read = read_crop(Crop(20, 20, 64, 0), photo, hole, photo, 16)
    assert read.sum() >= 1
    assert read[0, 7, 7] == 1
    hole[:] = False
    _, read = read_crop(Crop(-50, 0, 100, 0), photo, hole, photo, 16)
    assert read[0, :, :7].all()
    assert not read[0, :, 9:].any()
    _, read = read_crop(Crop(200, 200, 50, 0), photo, hole, photo, 16)
    assert read.all()


def test_boxes_around_pieces():
    hole = np.zeros((100, 200), bool)
    assert split_boxes(*np.nonzero(hole), 10, 200) == []
    hole[10:20, 10:30] = hole[12:15, 34:40] = hole[80:90, 150:199] = True
    assert split_boxes(*np.nonzero(hole), 10, 200) == [(10, 10, 40, 20), (150, 80, 199, 90)]
    assert split_boxes(*np.nonzero(hole), 3, 200) == [(10, 10, 30, 20), (34, 12, 40, 15), (150, 80, 199, 90)]


def a_scratch(width: int, height: int, thickness: int) -> np.ndarray:
    image = Image.new("1", (width, height))
    ImageDraw.Draw(image).line([(20, 30), (width // 2, height // 3), (width - 30, height - 20)], 1, thickness)
    return np.asarray(image)


def test_thin_pieces_are_cut_into_small_boxes():
    scratch = a_scratch(900, 700, 5)
    boxes = split_boxes(*np.nonzero(scratch), 64, 146)
    assert max(max(right - left, bottom - top) for left, top, right, bottom in boxes) <= 146
    count = np.zeros(scratch.shape, int)
    for left, top, right, bottom in boxes:
        count[top:bottom, left:right] += 1
        assert scratch[top:bottom, left:right].any()
    assert (count[scratch] == 1).all()
    # Most of them stay when the hole ends elsewhere.
    shorter = scratch.copy()
    shorter[:150] = False
    assert len(set(split_boxes(*np.nonzero(shorter), 64, 146)) - set(boxes)) <= 1


def test_wide_pieces_stay_whole():
    hole = np.zeros((700, 900), bool)
    hole[100:500, 200:700] = True
    assert split_boxes(*np.nonzero(hole), 64, 146) == [(200, 100, 700, 500)]
    thick = split_boxes(*np.nonzero(a_scratch(900, 700, 80)), 64, 146)
    assert 1 < len(thick) < 15


def test_wide_part():
    random = np.random.default_rng(0)
    for _ in range(100):
        height, width = random.integers(1, 20, 2)
        side, hole = int(random.integers(1, 22)), random.random((height, width)) < 0.8
        expected = np.zeros_like(hole)
        for y in range(height - side + 1):
            for x in range(width - side + 1):
                if hole[y : y + side, x : x + side].all():
                    near = side // 4
                    expected[max(y - near, 0) : y + side + near, max(x - near, 0) : x + side + near] = True
        assert np.array_equal(wide_part(hole, side), expected & hole)


def test_a_disc_is_wide_up_to_its_rim():
    rows, columns = np.mgrid[:100, :100]
    disc = (rows - 50) ** 2 + (columns - 50) ** 2 < 30**2
    assert np.array_equal(wide_part(disc, 40), disc)


def test_thin_parts_of_the_hole_in_large_faces_are_filled_as_beside_faces():
    face, hole = turned(20, 300, (250, 250)), np.zeros((500, 500), bool)
    hole[150:152, 150:350] = hole[250:300, 200:260] = True
    thin = thin_in_faces([face], hole, 64)
    assert np.array_equal(np.nonzero(thin), np.nonzero(hole & (np.arange(500) < 200)[:, None]))
    assert not thin_in_faces([face], hole, 256).any()
    sides = [crop.side for crop in crops_beside([face], hole, thin, 64)]
    assert len(sides) > 3
    assert set(sides) == {64}


def test_faces_hardly_count_at_local_points():
    crops = [turned(0, 100, (50, 50)), Crop(0, 0, 100, 0)]
    fills = [torch.full((3, 16, 16), value) for value in (50.0, 200.0)]
    colours = blend_fills(crops, fills, np.array([[50.5, 50.5], [50.5, 50.5]]), np.array([False, True]))
    assert torch.allclose(colours[0], torch.tensor([51.5, 200.0]), atol=0.1)
    colours = blend_fills(crops[:1], fills[:1], np.array([[50.5, 50.5]]), np.array([True]))
    assert torch.allclose(colours, torch.tensor(50.0))


def test_only_the_crops_of_one_batch_are_in_memory():
    reads, model = [], Tinted().eval()

    def read():
        assert len(reads) // BATCH == len(model.seen)  # the batch before went through the model
        reads.append(1)
        return torch.zeros(3, 16, 16), torch.ones(1, 16, 16)

    assert len(run_model(model, [read] * (2 * BATCH + 3), "fp32")) == 2 * BATCH + 3


def test_crops_agree_where_one_ends():
    left, right = Crop(0, 0, 60, 0, is_face=True), Crop(30, 0, 90, 0)
    fills = [torch.full((3, 16, 16), value) for value in (50.0, 200.0)]
    line = np.stack([np.arange(1, 119) + 0.5, np.full(118, 30.0)], -1)
    colours = blend_fills([left, right], fills, line)[0]
    assert torch.isclose(colours[0], torch.tensor(50.0))
    assert torch.isclose(colours[-1], torch.tensor(200.0))
    assert colours.diff().abs().max() < 75  # no step from 50 to 200


def test_rough_fill_keeps_known_pixels_and_forgets_the_others():
    photo, hole = waves(1500, 900), a_hole(1500, 900)
    spoilt = photo.copy()
    spoilt[hole] = 255
    assert np.array_equal(rough_fill(photo, hole), rough_fill(spoilt, hole))
    assert np.array_equal(rough_fill(photo, hole)[~hole], photo[~hole])


def test_faces_that_the_hole_touches():
    hole = a_hole(200, 200)
    assert len(touched([turned(10, 80, (60, 60)), turned(10, 80, (160, 160))], hole)) == 1


def test_crops_beside_faces_cover_the_rest():
    hole = a_hole(200, 200)
    hole[150:160, 150:190] = True
    face = turned(20, 90, (83, 83))
    crops = [face, *crops_beside([face], hole, np.zeros_like(hole), 64)]
    assert len(crops) == 2
    weights = [sample_fill(crop, torch.zeros(3, 8, 8), centres(hole))[1] for crop in crops]
    assert (torch.stack(weights).amax(0) > 0).all()


@pytest.mark.parametrize("faces", [[], [turned(20, 90, (83, 83))]], ids=["no faces", "a face"])
def test_colours_match_at_the_border(faces):
    """The stand-in's wrong tint is gone: what it misses beside the hole is added inside."""
    photo, hole = waves(200, 200), a_hole(200, 200)
    model = Tinted().eval()
    fill = fill_holes(model, [(photo, hole)], [lambda _: [face.to_photo(TEMPLATE) for face in faces]], 64)[0]
    assert [crop.is_face for crop in fill.crops].count(True) == len(faces)
    expected = rough_fill(photo, hole)[hole].astype(float)
    assert np.abs(fill.image - expected).max() < 6
    assert len(model.seen) == 1 + len(faces)


def test_faces_are_looked_for_in_the_filled_photo_and_again_after_they_are_filled():
    photo, hole, model = waves(200, 200), a_hole(200, 200), Tinted().eval()
    shown = []

    def find(image):
        shown.append(np.asarray(image))
        return [turned(20 + len(shown), 90, (83, 83)).to_photo(TEMPLATE)]

    (fill,) = fill_holes(model, [(photo, hole)], [find], 64)
    assert len(model.seen) == 3
    assert fill.crops[0].distance(turned(22, 90, (83, 83))) < 1e-6
    assert len(shown) == 2
    assert (shown[1] != shown[0])[hole].any()
    assert all(np.array_equal(image[~hole], photo[~hole]) for image in shown)


def test_several_faces_are_one_batch():
    photo, hole = waves(400, 200), np.zeros((200, 400), bool)
    faces = [turned(angle, 90, (x, 100)) for angle, x in ((0, 60), (20, 180), (-30, 320))]
    for face in faces:
        x, y = face.to_photo(np.array([0.5, 0.5])).astype(int)
        hole[y - 8 : y + 8, x - 8 : x + 8] = True
    model = Tinted().eval()
    fill = fill_holes(model, [(photo, hole)], [lambda _: [face.to_photo(TEMPLATE) for face in faces]], 64)[0]
    assert sum(crop.is_face for crop in fill.crops) == 3
    assert len(model.seen) == 2
    assert len(model.seen[1][0]) == 3


def test_photos_share_batches_and_do_not_mix():
    model, work = Tinted().eval(), [(waves(200, 200), a_hole(200, 200)), (waves(120, 90), np.zeros((90, 120), bool))]
    work[1][1][40:50, 30:60] = True
    ways = [lambda image: [turned(20, 90, (83, 83)).to_photo(TEMPLATE)] if image.width == 200 else []]
    together = fill_holes(model, work, ways, 64)
    assert [len(image) for image, _ in model.seen] == [2, 1]
    for fill, one in zip(together, work, strict=True):
        (alone,) = fill_holes(Tinted().eval(), [one], ways, 64)
        assert alone.crops == fill.crops
        assert np.abs(alone.image.astype(int) - fill.image).max() <= 1


def test_progress_can_end_the_work():
    stages = []

    def progress(stage, fraction):
        stages.append((stage, fraction))
        if len(stages) == 2:
            raise KeyboardInterrupt

    ways = [lambda _: [turned(20, 90, (83, 83)).to_photo(TEMPLATE)]]
    with pytest.raises(KeyboardInterrupt):
        fill_holes(Tinted().eval(), [(waves(200, 200), a_hole(200, 200))], ways, 64, progress)
    assert stages == [("filling", 0.0), ("filling faces", 0.4)]


def test_the_next_way_to_find_faces_is_tried_if_no_face_is_at_the_hole():
    photo, hole = waves(200, 200), a_hole(200, 200)
    elsewhere, here = turned(0, 60, (160, 160)), turned(90, 90, (83, 83))
    ways = [lambda _, face=face: [face.to_photo(TEMPLATE)] for face in (elsewhere, here)]
    fill = fill_holes(Tinted().eval(), [(photo, hole)], ways, 64)[0]
    assert [crop.distance(here) < 1e-6 for crop in fill.crops if crop.is_face] == [True]


@pytest.mark.parametrize("size", [(1, 1), (1, 400), (400, 1), (7, 5)], ids=str)
def test_odd_photos(size):
    photo = waves(*size)
    hole = np.zeros(size[::-1], bool)
    hole.flat[0] = True
    for full in (hole, np.ones_like(hole)):
        assert fill_holes(Tinted().eval(), [(photo, full)], [], 16)[0].image.shape == (full.sum(), 3)
