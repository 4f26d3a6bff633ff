"""`experiments/training_curve.py`: the picture of the recorded points."""

import json

import pytest

pytest.importorskip("matplotlib")

from training_curve import RECORD, draw


def test_every_recorded_point_is_drawn():
    record = json.loads(RECORD.read_text())
    panels = draw(record).axes
    assert [axes.get_title() for axes in panels] == [f"hole {hole}" for hole in record["holes"]]
    for i, axes in enumerate(panels):
        *lines, published = axes.get_lines()
        for line, points in zip(lines, record["models"].values(), strict=True):
            assert list(line.get_xdata()) == [point["images"] / 1000 for point in points]
            assert list(line.get_ydata()) == [point["psnr"][i] for point in points]
        assert set(published.get_ydata()) == {record["published"][i]}
