"""coordination_loss against the N x N matrix that defines it."""

import pytest
import torch

from showface import ops
from showface.ops import definitions

from support.operator_tests import Case, OperatorTests, on, wide
from support.tolerances import assert_close, gradients


def make(batch: int, tokens: int, channels: int, dtype: torch.dtype = torch.float64) -> Case:
    features, target = (torch.randn(batch, tokens, channels).to(dtype) for _ in range(2))
    return features, target, torch.rand(batch, tokens) < torch.linspace(0.2, 0.8, batch)[:, None]


class TestCoordinationLoss(OperatorTests):
    op = "coordination_loss"
    has_temperature = False

    def make(self, tokens, channels, dtype=torch.float64):
        return make(1 if tokens > 500 else 2, tokens, channels, dtype)

    def call(self, *case, temperature=None, backend="auto"):
        return ops.coordination_loss(*case, backend=backend)

    def define(self, *case, temperature=None):
        return definitions.coordination_loss(*case)

    def schema_arguments(self, case, temperature, backend):
        return *case, backend

    def autocast_dtype(self, dtype):
        return torch.float32

    @pytest.mark.parametrize("share", [0.0, 1.0])
    def test_images_without_pairs(self, device, backend, share):
        """If one image has no pairs of a kind, the other image gives the mean. If neither has any, the loss is 0."""
        features, target, hole = make(2, 9, 5)
        hole[0] = share == 1.0
        for case in ((features, target, hole), (features, target, torch.full_like(hole, share == 1.0))):
            losses = ops.coordination_loss(*on(device, case), backend=backend)
            for loss, expected in zip(losses, definitions.coordination_loss(*case), strict=True):
                assert_close(loss, expected)
            ones = [torch.ones(()), torch.ones(())]
            for grad in gradients(lambda *x: ops.coordination_loss(*x, backend=backend), on(device, case), ones):
                assert grad.isfinite().all()

    @pytest.mark.parametrize("shape", [(0, 9, 5), (2, 0, 5)], ids=str)
    def test_nothing(self, device, backend, shape):
        features, target, hole = on(device, make(*shape))
        losses = ops.coordination_loss(features.requires_grad_(), target, hole, backend=backend)
        assert [loss.item() for loss in losses] == [0.0, 0.0]
        sum(losses).backward()
        assert features.grad.shape == shape

    def test_does_not_cancel_near_the_target(self, device, backend):
        features = torch.randn(2, 100, 32)
        target = features + 1e-4 * torch.randn_like(features)
        case = features, target, make(2, 100, 32)[2]
        losses = ops.coordination_loss(*on(device, case), backend=backend)
        for loss, expected in zip(losses, definitions.coordination_loss(*wide(case)), strict=True):
            # Losses are about 1e-9. Each is the square of differences with a few float32 rounding errors.
            torch.testing.assert_close(loss.cpu().double(), expected, rtol=2e-3, atol=0)

    def test_equal_features_give_zero(self, device, backend, dtype):
        features, _, hole = on(device, make(2, 50, 17, dtype))
        inter, intra = ops.coordination_loss(features.requires_grad_(), features.detach(), hole, backend=backend)
        assert (inter.item(), intra.item()) == (0.0, 0.0)
        (inter + intra).backward()
        assert (features.grad == 0).all()


def test_one_of_two_losses_can_be_left_out_of_the_gradient():
    features, target, hole = make(2, 12, 4)
    inter, _ = ops.coordination_loss(features.requires_grad_(), target, hole)
    (got,) = torch.autograd.grad(inter, features)
    (expected,) = torch.autograd.grad(definitions.coordination_loss(features, target, hole)[0], features)
    assert_close(got, expected, gradient=True)


GOOD = make(2, 4, 5, torch.float32)
ERRORS = {
    "features is no tensor": ({"features": 1}, TypeError, r"features must be .*got int 1"),
    "features shape": ({"features": GOOD[0][0]}, ValueError, r"features must have shape \(B, N, C\), got .*\(4, 5\)"),
    "target dtype": ({"target": GOOD[1].double()}, TypeError, r"target must be torch.float32 .*got torch.float64"),
    "target device": ({"target": GOOD[1].to("meta")}, ValueError, r"target must be on cpu .*on meta"),
    "target batch": ({"target": GOOD[1][:1]}, ValueError, r"target .*the batch of features = 2 .*\(1, 4, 5\)"),
    "target tokens": ({"target": GOOD[1][:, :3]}, ValueError, r"target .*the tokens of features = 4"),
    "target channels": ({"target": GOOD[1][..., :3]}, ValueError, r"target .*the channels of features = 5"),
    "hole dtype": ({"hole": GOOD[2].int()}, TypeError, r"hole must be torch.bool .*got torch.int32"),
    "hole shape": ({"hole": GOOD[2][0]}, ValueError, r"hole must have shape \(B, N\)"),
    "hole tokens": ({"hole": GOOD[2][:, :3]}, ValueError, r"hole .*the tokens of features = 4 .*\(2, 3\)"),
    "backend": ({"backend": "numpy"}, ValueError, r"backend must be 'auto' or one of .*got 'numpy'"),
    "backend absent": ({"backend": "cuda"}, RuntimeError, r"coordination_loss: backend 'cuda' can't run here: "),
}


@pytest.mark.parametrize("case", ERRORS)
def test_errors(case):
    changes, error, message = ERRORS[case]
    with pytest.raises(error, match=message):
        ops.coordination_loss(**{**dict(zip(("features", "target", "hole"), GOOD, strict=True)), **changes})


def test_second_derivative_says_that_there_is_none():
    features, target, hole = make(1, 6, 3)
    inter, _ = ops.coordination_loss(features.requires_grad_(), target, hole)
    (grad,) = torch.autograd.grad(inter, features, create_graph=True)
    with pytest.raises(RuntimeError, match="coordination_loss is differentiable once"):
        grad.sum().backward()
