"""What the frozen network and the discriminator see: shifted and enlarged images."""

import pytest
import torch

from showface.training import Trainer
from showface.training.views import SHIFTS, shift_at, viewed, zoom_at

from support.runs import ADVERSARIAL, small


@pytest.mark.parametrize("half", [False, True])
def test_a_zoomed_view_is_the_half_around_a_pixel_of_the_hole(half):
    image = torch.rand(4, 3, 32, 48)
    hole = torch.zeros(4, 1, 32, 48)
    for number, (y, x) in enumerate([(15, 20), (0, 0), (31, 47), (20, 2)]):
        hole[number, 0, y, x] = 1
    zoom = zoom_at(hole, 1.0)
    with torch.autocast("cpu", torch.bfloat16, enabled=half):
        seen, seen_hole = viewed([image], hole, (0, 0), zoom)
    # In the image's pixels, with borders at whole numbers, the middle of a view is the middle of the hole's pixel, but
    # at least a quarter of the image from its edge.
    for number, (top, left) in enumerate([(7.5, 8.5), (0, 0), (16, 24), (12.5, 0)]):
        torch.testing.assert_close(seen[number], enlarged(image[number], top, left), rtol=0, atol=1e-5)
        assert seen_hole[number].sum() == 4
        assert set(seen_hole[number].unique().tolist()) == {0.0, 1.0}


def enlarged(image: torch.Tensor, top: float, left: float) -> torch.Tensor:
    """The half of an image at this place, enlarged twice: bilinear between the middles of pixels, by hand."""
    height, width = image.shape[1:]
    y = (top + (torch.arange(height) + 0.5) / 2 - 0.5).clamp(0, height - 1)
    x = (left + (torch.arange(width) + 0.5) / 2 - 0.5).clamp(0, width - 1)
    y0, x0 = y.long().clamp(max=height - 2), x.long().clamp(max=width - 2)
    v, u = (y - y0)[:, None], x - x0
    rows = image[:, y0] * (1 - v) + image[:, y0 + 1] * v
    return rows[:, :, x0] * (1 - u) + rows[:, :, x0 + 1] * u


def test_the_share_of_zoomed_views():
    hole = torch.ones(4000, 1, 8, 8)
    torch.manual_seed(0)
    zoom = zoom_at(hole, 0.25)
    zoomed = zoom[:, 0, 0] == 0.5
    assert 0.22 < zoomed.float().mean() < 0.28
    assert torch.equal(zoom[~zoomed][0], torch.eye(2, 3))
    assert (zoom[zoomed][:, :, 2].abs() <= 0.5).all()
    assert zoom[zoomed][:, :, 2].std(0).min() > 0.2  # places all over the hole
    before = torch.random.get_rng_state()
    assert zoom_at(hole, 0.0) is None
    assert torch.equal(torch.random.get_rng_state(), before)


def test_a_whole_view_is_the_image_and_empty_holes_have_views_too():
    image, hole = torch.rand(2, 3, 16, 16), torch.zeros(2, 1, 16, 16)
    seen, seen_hole = viewed([image], hole, (0, 0), torch.eye(2, 3).expand(2, 2, 3))
    torch.testing.assert_close(seen, image, rtol=0, atol=1e-5)
    assert not seen_hole.any()
    assert zoom_at(hole, 1.0).isfinite().all()


def test_gradients_reach_only_what_is_seen():
    image = torch.rand(1, 3, 16, 16, requires_grad=True)
    hole = torch.zeros(1, 1, 16, 16)
    hole[0, 0, 0, 0] = 1
    viewed([image], hole, (3, 5), zoom_at(hole, 1.0))[0].sum().backward()
    assert (image.grad[..., :8, :8] > 0).all()
    assert not image.grad[..., 9:, :].any()


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_all_see_the_same_view(faces, tmp_path, monkeypatch, share):
    """Photo and fill, with the same hole, by the frozen network and the discriminator; the shift changes each step."""
    places = [shift_at(step) for step in range(SHIFTS**2)]
    assert sorted(places) == [(down, right) for down in range(SHIFTS) for right in range(SHIFTS)]
    trainer = Trainer(small(faces, f"zoom={share}", *ADVERSARIAL), tmp_path / "run")
    trainer.step = 2 * SHIFTS + 3
    seen, features = [], trainer.discriminator.features

    def noted(image: torch.Tensor, hole: torch.Tensor, maps: object = None) -> list[list[torch.Tensor]]:
        seen.append((image.detach().clone(), hole.clone()))
        return features(image, hole, maps)

    trainer.discriminator.features = noted
    batch = next(trainer._batches())
    zooms = []

    def chosen(hole: torch.Tensor, share: float) -> torch.Tensor | None:
        zooms.append(zoom_at(hole, share))
        return zooms[-1]

    monkeypatch.setattr("showface.training.trainer.zoom_at", chosen)
    trainer.train_step([batch])
    (zoom,) = zooms
    image, hole = viewed([batch["image"]], batch["hole"], (3, 2), zoom)
    (result, generator_hole), (both, holes) = seen
    torch.testing.assert_close(both[:2], image, rtol=0, atol=1e-6)
    assert torch.equal(both[2:], result)
    for found in (generator_hole, *holes.chunk(2)):
        assert torch.equal(found, hole)
    if not share:
        assert torch.equal(image, batch["image"].roll((3, 2), (2, 3)))
