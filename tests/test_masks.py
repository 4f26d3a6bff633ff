"""Random holes."""

from __future__ import annotations

import numpy as np
import pytest

from showface.data import random_hole


@pytest.mark.parametrize("kind", ["strokes", "blocks", "both"])
@pytest.mark.parametrize("ratio", [(0.01, 0.6), (0.01, 0.2), (0.4, 0.6), (0.3, 0.3), (0.0, 0.02), (0.9, 1.0)])
def test_hole_ratio_is_within_bounds(kind: str, ratio: tuple[float, float]) -> None:
    for height, width in [(64, 64), (48, 80), (8, 8), (8, 40), (1, 1), (3, 1)]:
        for seed in range(12):
            hole = random_hole(height, width, np.random.default_rng(seed), ratio=ratio, kind=kind)
            assert hole.dtype == np.bool_
            assert hole.shape == (height, width)
            count, pixel_count = int(hole.sum()), height * width
            assert count >= 1
            exact = np.ceil(ratio[0] * pixel_count) <= np.floor(ratio[1] * pixel_count)
            slack = 0 if exact and ratio[1] * pixel_count >= 1 else 1
            assert ratio[0] * pixel_count - slack <= count <= ratio[1] * pixel_count + slack


def test_hole_ratios_are_uniform() -> None:
    ratios = [random_hole(64, 64, np.random.default_rng(seed)).mean() for seed in range(600)]
    counts = np.histogram(ratios, bins=6, range=(0.01, 0.6))[0]
    assert counts.sum() == 600
    assert counts.min() > 65
    assert counts.max() < 140


def test_holes_depend_on_the_seed_only() -> None:
    first = random_hole(64, 64, np.random.default_rng(1))
    assert (first == random_hole(64, 64, np.random.default_rng(1))).all()
    assert (first != random_hole(64, 64, np.random.default_rng(2))).any()


def test_holes_fall_everywhere() -> None:
    mean = np.mean([random_hole(64, 64, np.random.default_rng(seed)) for seed in range(400)], axis=0)
    assert mean.min() > 0.05
    assert mean[8:-8, 8:-8].std() < 0.06


def test_blocks_are_rectangles() -> None:
    filled = []
    for seed in range(30):
        hole = random_hole(64, 64, np.random.default_rng(seed), ratio=(0.01, 0.01), kind="blocks")
        rows, columns = np.nonzero(hole)
        filled.append(hole.sum() / ((np.ptp(rows) + 1) * (np.ptp(columns) + 1)))
    # Most holes are one block. Its last row or column may be incomplete, to reach the exact area.
    assert np.median(filled) > 0.75


def test_no_hole_and_all_hole() -> None:
    rng = np.random.default_rng(0)
    assert not random_hole(16, 16, rng, ratio=(0.0, 0.0)).any()
    assert random_hole(16, 16, rng, ratio=(1.0, 1.0)).all()


def test_random_hole_refuses_bad_options() -> None:
    rng = np.random.default_rng(0)
    for ratio in [(-0.1, 0.5), (0.5, 0.1), (0.1, 1.1), (float("nan"), 0.5)]:
        with pytest.raises(ValueError, match="ratio"):
            random_hole(16, 16, rng, ratio=ratio)
    with pytest.raises(ValueError, match="kind"):
        random_hole(16, 16, rng, kind="stars")
    with pytest.raises(ValueError, match="height"):
        random_hole(0, 16, rng)
