"""Holes that hide a whole component of the face, in evaluation and in training."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from showface.data import ALIGNED_POINTS, COMPONENTS, NO_LABEL, REGIONS, Augmentation, component_hole
from showface.data.augmentation import GROWTH


def test_a_component_is_hidden_and_its_surroundings_are_not() -> None:
    regions = np.full((64, 64), REGIONS.index("skin"))
    regions[:, :8] = REGIONS.index("hair")
    regions[20:24, 15:20] = REGIONS.index("right eye")
    regions[20:24, 40:45] = REGIONS.index("left eye")
    regions[48:50, 25:40] = REGIONS.index("lower lip")
    eyes = component_hole("eyes", 64, regions)
    expected = np.zeros((64, 64), bool)
    expected[19:25, 14:21] = expected[19:25, 39:46] = True  # one pixel more on each side
    assert np.array_equal(eyes, expected)
    left_eye = component_hole("left eye", 64, regions)  # in the image; the labels' left is the person's
    assert np.array_equal(left_eye[:, :32], expected[:, :32])
    assert not left_eye[:, 32:].any()
    assert np.array_equal(component_hole("right eye", 64, regions), expected & ~left_eye)
    mouth = component_hole("mouth", 64, regions)
    assert mouth.sum() == 4 * 17
    left, right, lower = (component_hole(f"{part} half", 64, regions) for part in ("left", "right", "lower"))
    assert left[:, 7:33].all()
    assert not left[:, :7].any()  # hair
    assert not left[:, 33:].any()
    assert not right[:, :31].any()
    assert right[:, 31:].all()
    assert lower[38:, 7:].all()
    assert not lower[:37].any()
    # The labels have no nose, so it is drawn at its usual place.
    assert np.array_equal(component_hole("nose", 64, regions), component_hole("nose", 64))


def test_components_without_labels_are_at_the_points_of_aligned_faces() -> None:
    holes = {name: component_hole(name, 256) for name in COMPONENTS}
    places = [(round(y * 256), round(x * 256)) for x, y in ALIGNED_POINTS]
    hidden = {name: [bool(hole[place]) for place in places] for name, hole in holes.items()}
    assert hidden == {
        "left eye": [True, False, False, False, False],
        "right eye": [False, True, False, False, False],
        "eyes": [True, True, False, False, False],
        "nose": [False, False, True, False, False],
        "mouth": [False, False, False, True, True],
        "left half": [True, False, hidden["left half"][2], True, False],
        "right half": [False, True, hidden["right half"][2], False, True],
        "lower half": [False, False, True, True, True],
    }
    single_eyes = {"left eye", "right eye"}
    assert all((0.005 if name in single_eyes else 0.01) < hole.mean() < 0.25 for name, hole in holes.items())
    with pytest.raises(ValueError, match="component must be one of left eye, right eye, eyes, nose"):
        component_hole("chin", 256)
    with pytest.raises(ValueError, match=r"regions must be of shape \(256, 256\), got \(64, 64\)"):
        component_hole("nose", 256, np.zeros((64, 64), int))


@pytest.mark.parametrize("component", COMPONENTS)
def test_training_hides_the_components_of_the_labels(component: str) -> None:
    """Mirroring and crops move photo, labels and hole alike. The hole reaches 1/64 to 1/16 beyond the component."""
    labels = np.ones((64, 64), np.uint8)
    labels[20:28, 14:24], labels[20:28, 40:50] = REGIONS.index("right eye"), REGIONS.index("left eye")
    labels[30:40, 28:36], labels[48:54, 24:40] = REGIONS.index("nose"), REGIONS.index("upper lip")
    smallest, largest = (component_hole(component, 64, labels, growth) for growth in GROWTH)
    photo = Image.fromarray(np.stack([smallest, largest, smallest], axis=-1).astype(np.uint8) * 255)
    augmentation, rng = Augmentation(64, crop=(0.8, 1.0), components=1.0), np.random.default_rng(0)
    found = 0
    for _ in range(100):
        sample = augmentation(photo, Image.fromarray(labels), rng)
        hole, (inner, outer, _) = sample["hole"][0] > 0, sample["image"]
        found += not ((inner > 0.98) & ~hole).any() and not (hole & (outer < -0.98)).any()
    assert found >= 5  # of 12 or 13


def test_training_hides_the_usual_places_of_unlabelled_faces_in_crops_too() -> None:
    portrait = np.zeros((96, 96, 3), np.uint8)
    portrait[component_hole("mouth", 96, growth=0)] = 255
    augmentation, rng = Augmentation(96, crop=(0.7, 1.0), components=1.0), np.random.default_rng(0)
    mouths = 0
    for _ in range(100):
        sample = augmentation(Image.fromarray(portrait), None, rng)
        mouth, hole = sample["image"][0] > 0, sample["hole"][0] > 0
        assert (sample["parsing"] == NO_LABEL).all()
        mouths += bool((hole & mouth).sum() > 0.99 * mouth.sum() and hole.float().mean() < 0.12)
    assert mouths > 5


def test_a_share_of_the_holes_hides_components() -> None:
    image, labels = Image.new("RGB", (64, 64)), Image.new("L", (64, 64), 1)

    def samples(share: float, labels: Image.Image | None) -> list[torch.Tensor]:
        augmentation, rng = Augmentation(64, components=share, ratio=(0.9, 0.9)), np.random.default_rng(0)
        return [augmentation(image, labels, rng)["hole"] for _ in range(200)]

    free_form = [hole.mean() > 0.8 for hole in samples(0.25, labels)]
    assert 0.65 < np.mean(free_form) < 0.85
    # Labels do not change what is drawn.
    assert free_form == [hole.mean() > 0.8 for hole in samples(0.25, None)]
    assert all(hole.mean() > 0.8 for hole in samples(0, labels))
