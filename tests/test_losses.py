"""The losses that all networks share, and the losses of MDRNets."""

import dataclasses
import subprocess
import sys

import pytest
import torch

from showface import ops
from showface.losses import LossWeights, parsing_loss, region_l1, weighted_sum
from showface.models import MDRNetsOutput
from showface.models.losses import inpainting_losses
from showface.nn import to_tokens

ALL = {"hole", "known", "coarse_hole", "coarse_known", "parsing", "coordination"}


def a_case():
    image, raw, coarse = torch.rand(3, 2, 3, 32, 32)
    hole = torch.zeros(2, 1, 32, 32)
    hole[:, :, 8:20, 4:16] = 1
    output = MDRNetsOutput(image=raw, coarse=coarse, raw_image=raw, raw_coarse=coarse, parsing=torch.randn(2, 19, 8, 8))
    features = torch.randn(2, 6, 8, 8), torch.randn(2, 6, 8, 8)
    return output, image, hole, torch.randint(-1, 19, (2, 32, 32)), features


def test_region_l1_by_hand():
    target = torch.zeros(1, 3, 2, 2)
    result = torch.tensor([[1.0, 2.0], [3.0, 4.0]]).expand(1, 3, 2, 2).clone()
    result[0, 1] *= -1
    region = torch.tensor([[[[1.0, 0.0], [0.0, 1.0]]]])
    assert region_l1(result, target, region).item() == 2.5
    assert region_l1(result, target, torch.ones_like(region)).item() == 2.5
    assert region_l1(result, target, 1 - region).item() == 2.5
    assert region_l1(2 * result, target, region).item() == 5.0
    assert region_l1(result, target, torch.zeros_like(region)).item() == 0.0
    region[..., 0, 0] = 0
    assert region_l1(result, target, region).item() == 4.0


def test_region_l1_weighs_images_alike():
    result, target = torch.tensor([1.0, 3.0, 9.0]).view(3, 1, 1, 1).expand(3, 3, 4, 4), torch.zeros(3, 3, 4, 4)
    region = torch.ones(3, 1, 4, 4)
    region[0, :, 1:] = 0  # 4 pixels of the first image, 16 of the second, none of the third
    region[2] = 0
    assert region_l1(result, target, region).item() == 2.0


def test_parsing_loss_takes_labelled_pixels_only():
    logits = torch.randn(2, 5, 4, 4, requires_grad=True)
    labels = torch.full((2, 16, 16), -1)
    assert parsing_loss(logits, labels).item() == 0.0
    labels[0, 6, 10] = 3  # the middle of cell (1, 2)
    loss = parsing_loss(logits, labels)
    torch.testing.assert_close(loss, -logits[0, :, 1, 2].log_softmax(0)[3])
    loss.backward()
    assert logits.grad.nonzero()[:, [0, 2, 3]].unique(dim=0).tolist() == [[0, 1, 2]]


def test_parsing_loss_without_labels_can_still_be_differentiated():
    logits = torch.randn(1, 5, 4, 4, requires_grad=True)
    parsing_loss(logits, torch.full((1, 16, 16), -1)).backward()
    assert (logits.grad == 0).all()


def test_losses_are_unweighted():
    output, image, hole, labels, features = a_case()
    weights = LossWeights(hole=2.0, known=3.0, coarse=5.0, parsing=7.0, coordination=11.0)
    losses = inpainting_losses(output, image, hole, labels, weights, features)
    assert set(losses) == ALL
    corrupted = hole.expand_as(image) > 0
    for prefix, result in (("", output.raw_image), ("coarse_", output.raw_coarse)):
        torch.testing.assert_close(losses[f"{prefix}hole"], (result - image).abs()[corrupted].mean())
        torch.testing.assert_close(losses[f"{prefix}known"], (result - image).abs()[~corrupted].mean())
    torch.testing.assert_close(losses["parsing"], parsing_loss(output.parsing, labels))


def test_the_weighted_sum_by_hand():
    weights = LossWeights(hole=2.0, known=3.0, coarse=5.0, parsing=7.0, coordination=11.0, perceptual=13.0)
    names = ("hole", "known", "coarse_hole", "coarse_known", "parsing", "coordination", "perceptual")
    losses = {name: torch.tensor(float(number)) for number, name in enumerate(names, start=1)}
    expected = 2 * 1 + 3 * 2 + 5 * (2 * 3 + 3 * 4) + 7 * 5 + 11 * 6 + 13 * 7
    assert weighted_sum(losses, weights.by_name()).item() == expected
    with pytest.raises(KeyError, match="structure"):
        weighted_sum({"structure": torch.zeros(())}, weights.by_name())


def test_every_weight_is_used():
    weights = {field.name: 2.0 for field in dataclasses.fields(LossWeights)}
    assert set(LossWeights(**weights).by_name().values()) == {2.0, 4.0}
    for name in weights:
        assert LossWeights(**{**weights, name: 3.0}).by_name() != LossWeights(**weights).by_name()


def test_losses_do_not_import_the_models():
    code = "import sys, showface.losses; sys.exit(any(x.startswith('showface.models') for x in sys.modules))"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_coordination_compares_corrupted_tokens():
    output, image, hole, labels, features = a_case()
    losses = inpainting_losses(output, image, hole, labels, LossWeights(), features)
    corrupted = torch.zeros(2, 8, 8, dtype=torch.bool)
    corrupted[:, 2:5, 1:4] = True
    expected = ops.coordination_loss(*(to_tokens(x) for x in features), corrupted.flatten(1))
    torch.testing.assert_close(losses["coordination"], sum(expected))


@pytest.mark.parametrize("name", [name for name, weight in dataclasses.asdict(LossWeights()).items() if weight])
def test_a_weight_of_zero_takes_its_loss_out(name):
    output, image, hole, labels, features = a_case()
    weights = dataclasses.replace(LossWeights(), **{name: 0.0})
    losses = inpainting_losses(output, image, hole, labels, weights, features)
    if name in ("parsing", "coordination"):
        assert name not in losses
    whole = inpainting_losses(output, image, hole, labels, LossWeights(), features)
    assert weighted_sum(losses, weights.by_name()) < weighted_sum(whole, LossWeights().by_name())


def test_no_features_leave_coordination_out():
    output, image, hole, labels, _ = a_case()
    assert set(inpainting_losses(output, image, hole, labels, LossWeights())) == ALL - {"coordination"}


def test_full_and_empty_holes_are_finite():
    output, image, hole, labels, features = a_case()
    for value in (0.0, 1.0):
        losses = inpainting_losses(output, image, torch.full_like(hole, value), labels, LossWeights(), features)
        assert all(loss.isfinite() for loss in losses.values())
