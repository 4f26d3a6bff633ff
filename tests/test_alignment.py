"""Aligned crops: the similarity, the resampling there and back, the hole and the photo's border."""

import numpy as np
import pytest
import torch

from showface.faces import TEMPLATE, Alignment, Face, crop_faces, set_back, similarity

ROLLS = (0.0, 25.0, 90.0, 180.0)


def alignment(centre: tuple[float, float], side: float, roll: float = 0.0) -> Alignment:
    """The alignment of a square in the photo, given by its centre and side in pixels and its roll in degrees."""
    angle = np.deg2rad(roll)
    axes = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    points = (TEMPLATE - 0.5) @ axes.T * side + np.array(centre)
    return Alignment.of(Face((0.0, 0.0, 1.0, 1.0), points, 1.0))


def smooth(height: int, width: int, period: float = 60.0) -> torch.Tensor:
    """Slow waves, (3, H, W) in [-0.8, 0.8]."""
    y, x = torch.meshgrid(torch.arange(height) / period, torch.arange(width) / period, indexing="ij")
    return 0.8 * torch.stack([torch.sin(x + y), torch.cos(1.3 * x), torch.sin(0.7 * y - x)])


def test_similarity_is_exact_for_a_moved_template():
    angle, scale = np.deg2rad(200.0), 37.0
    linear = scale * np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    matrix = similarity(TEMPLATE, TEMPLATE @ linear.T + [5.0, -9.0])
    np.testing.assert_allclose(matrix, [[*linear[0], 5.0], [*linear[1], -9.0]], atol=1e-9)


def test_similarity_is_the_least_squares_one_and_never_mirrors():
    rng = np.random.default_rng(0)
    points, target = rng.normal(size=(5, 2)), rng.normal(size=(5, 2)) * [-1.0, 1.0]
    matrix = similarity(points, target)
    assert np.linalg.det(matrix[:, :2]) > 0

    # The same from the normal equations of (a, b, shift x, shift y), for x' = ax - by, y' = bx + ay.
    zero, one = np.zeros(5), np.ones(5)
    x, y = points.T
    rows = np.concatenate([np.stack([x, -y, one, zero], 1), np.stack([y, x, zero, one], 1)])
    a, b, right, down = np.linalg.lstsq(rows, np.concatenate([target[:, 0], target[:, 1]]), rcond=None)[0]
    np.testing.assert_allclose(matrix, [[a, -b, right], [b, a, down]], atol=1e-12)


@pytest.mark.parametrize(
    ("points", "target"),
    [
        (np.zeros((5, 2)), TEMPLATE),
        (TEMPLATE, TEMPLATE[:4]),
        (TEMPLATE[:1], TEMPLATE[:1]),
        (TEMPLATE * np.nan, TEMPLATE),
    ],
)
def test_similarity_refuses_what_has_none(points, target):
    with pytest.raises(ValueError):
        similarity(points, target)


def test_an_upright_crop_without_a_change_of_size_is_exact():
    photo = torch.randint(0, 256, (3, 70, 90), dtype=torch.uint8)
    crops = crop_faces(photo, [alignment((45.0, 35.0), 40.0)], 40)
    expected = photo[:, 15:55, 25:65].float() / 127.5 - 1.0
    torch.testing.assert_close(crops.images[0], expected, atol=1e-4, rtol=0)
    assert crops.holes.shape == crops.outside.shape == (1, 1, 40, 40)
    assert not crops.holes.any()
    assert not crops.outside.any()


@pytest.mark.parametrize("factor", [2, 3, 8])
def test_a_reduced_crop_is_the_mean_over_each_pixel(factor):
    torch.manual_seed(0)
    photo = torch.rand(3, 200, 200) * 2 - 1  # noise: what is not averaged shows as a larger deviation
    side = 20 * factor
    crop = crop_faces(photo, [alignment((100.0, 100.0), side)], 20).images[0]
    low = 100 - side // 2
    expected = torch.nn.functional.avg_pool2d(photo[:, low : low + side, low : low + side], factor)
    assert (crop - expected).abs().mean() < 0.6 * expected.abs().mean()
    assert crop.std() < 1.15 * expected.std()


@pytest.mark.parametrize("roll", ROLLS)
@pytest.mark.parametrize("centre", [(150.0, 120.0), (40.0, 20.0), (290.0, 230.0)])  # inside, and cut by the border
def test_there_and_back_at_the_same_resolution(roll, centre):
    photo = smooth(240, 300)
    at = alignment(centre, 128.0, roll)
    crops = crop_faces(photo, [at], 128)
    patch = set_back(crops.images[0], at, (240, 300))
    left, top, right, bottom = patch.box
    assert patch.image.shape == (3, bottom - top, right - left)
    near_edge = torch.nn.functional.max_pool2d((~patch.valid).float()[None], 5, 1, 2)[0] > 0
    error = (patch.image - photo[:, top:bottom, left:right]).abs().amax(0)
    on_border = torch.zeros_like(near_edge)  # a mirrored image has a crease there
    on_border[:3], on_border[-3:], on_border[:, :3], on_border[:, -3:] = (
        top == 0,
        bottom == 240,
        left == 0,
        right == 300,
    )
    assert error[~near_edge & ~on_border].max() < 2 / 255  # of a range of 2
    assert crops.outside.any() == (centre != (150.0, 120.0))


@pytest.mark.parametrize(("side", "size"), [(600.0, 128), (50.0, 256)])
def test_there_and_back_through_another_resolution(side, size):
    photo = smooth(700, 700, period=150.0 if side > 500 else 60.0)
    at = alignment((350.0, 350.0), side, 30.0)
    patch = set_back(crop_faces(photo, [at], size).images[0], at, (700, 700))
    left, top, right, bottom = patch.box
    inner = torch.nn.functional.max_pool2d((~patch.valid).float()[None], 21, 1, 10)[0] == 0
    error = (patch.image - photo[:, top:bottom, left:right]).abs().amax(0)
    assert error[inner].max() < 0.02


@pytest.mark.parametrize("side", [30.0, 64.0, 100.0, 150.0, 700.0])
@pytest.mark.parametrize("roll", [0.0, 33.0])
def test_nothing_leaks_from_the_hole(side, roll):
    height = width = 160
    photo = smooth(height, width)
    hole = torch.zeros(height, width, dtype=torch.bool)
    hole[70:90, 60:85] = True
    hole[30, 40] = True
    at = [alignment((80.0, 80.0), side, roll)]
    white, black = (crop_faces(torch.where(hole, value, photo), at, 64, hole) for value in (1.0, float("nan")))
    torch.testing.assert_close(white.images, black.images, atol=0, rtol=0)
    assert torch.equal(white.holes, black.holes)
    assert white.holes.any()
    assert (white.images[0][:, white.holes[0, 0]] == 0).all()
    known = crop_faces(photo, at, 64)
    clean = ~white.holes[0, 0] & ~white.outside[0, 0]
    assert (white.images - known.images)[0][:, clean].abs().max() < 0.02


def test_a_single_pixel_of_a_hole_makes_a_hole_of_a_small_crop():
    hole = torch.zeros(1000, 1000, dtype=torch.bool)
    hole[500, 507] = True
    crops = crop_faces(torch.zeros(3, 1000, 1000), [alignment((500.0, 500.0), 900.0, 10.0)], 32, hole)
    assert 1 <= crops.holes.sum() <= 9


def test_many_faces_in_one_call_are_the_same_as_one_by_one():
    photo = smooth(120, 150)
    at = [alignment((60.0, 50.0), 50.0, 10.0), alignment((100.0, 90.0), 90.0, -80.0), alignment((149.0, 1.0), 30.0)]
    crops = crop_faces(photo, at, 48)
    assert crops.images.shape == (3, 3, 48, 48)
    for index, one in enumerate(at):
        assert torch.equal(crop_faces(photo, [one], 48).images[0], crops.images[index])
    assert crop_faces(photo, [], 48).images.shape == (0, 3, 48, 48)


def test_a_face_larger_than_the_photo_or_far_outside():
    for centre, side in (((5.0, 5.0), 400.0), ((-500.0, 900.0), 50.0), ((0.5, 0.5), 3.0)):
        at = alignment(centre, side, 20.0)
        crops = crop_faces(smooth(10, 12), [at], 32)
        assert crops.images.isfinite().all()
        assert crops.outside.any()
        patch = set_back(crops.images[0], at, (10, 12))
        assert patch.image.shape[1:] == patch.valid.shape
    assert patch.box[2] <= 12


def test_only_the_part_of_the_photo_that_is_wanted():
    at, crop = alignment((60.0, 60.0), 64.0, 15.0), smooth(64, 64)
    whole, part = set_back(crop, at, (120, 120)), set_back(crop, at, (120, 120), within=(50, 55, 70, 80))
    assert part.box == (50, 55, 70, 80)
    left, top = whole.box[:2]
    rows, columns = slice(55 - top, 80 - top), slice(50 - left, 70 - left)
    torch.testing.assert_close(part.image, whole.image[:, rows, columns], atol=1e-4, rtol=0)
    assert torch.equal(part.valid, whole.valid[rows, columns])
    assert set_back(crop, at, (120, 120), within=(0, 0, 4, 4)).image.shape == (3, 0, 0)


def test_refuses_wrong_shapes():
    at = [alignment((5.0, 5.0), 4.0)]
    with pytest.raises(ValueError, match="photo"):
        crop_faces(torch.zeros(1, 9, 9), at, 8)
    with pytest.raises(ValueError, match="hole"):
        crop_faces(torch.zeros(3, 9, 9), at, 8, torch.zeros(9, 8, dtype=torch.bool))
    with pytest.raises(ValueError, match="size"):
        crop_faces(torch.zeros(3, 9, 9), at, 0)
    with pytest.raises(ValueError, match="crop"):
        set_back(torch.zeros(3, 9, 8), at[0], (9, 9))
