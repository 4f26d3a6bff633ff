"""Muon: the orthogonalised steps, AdamW beside them, and training runs."""

import copy
import pickle

import pytest
import torch
from torch import nn

from showface import load_model
from showface.training import Trainer
from showface.training.muon import SMALLEST, Muon, orthogonalise
from tests.support.runs import small


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(4, 24, 3), nn.GroupNorm(2, 24), nn.Conv2d(24, 32, 3, bias=False), nn.Conv2d(32, 3, 1)
    )


def train(model: nn.Module, optimiser: torch.optim.Optimizer, steps: int = 3) -> None:
    torch.manual_seed(1)
    for _ in range(steps):
        optimiser.zero_grad()
        model(torch.randn(2, 4, 9, 9)).square().mean().backward()
        optimiser.step()


@pytest.mark.parametrize("shape", [(3, 24, 40), (2, 40, 24), (1, 32, 32)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_singular_values_become_about_1(shape, dtype):
    matrices = torch.randn(shape, generator=torch.Generator().manual_seed(0)) * 1e-3
    found = orthogonalise(matrices, dtype)
    u, _, vh = torch.linalg.svd(matrices, full_matrices=False)
    values = u.mT @ found @ vh.mT
    diagonal = values.diagonal(dim1=1, dim2=2)
    # A square matrix of random numbers has singular values near 0, which five iterations do not bring to 1.
    assert diagonal.max() < 1.25
    assert diagonal.min() > (0.6 if shape[1] != shape[2] else 0)
    # The singular vectors stay.
    assert (values - torch.diag_embed(diagonal)).abs().max() < (1e-4 if dtype == torch.float32 else 0.05)


def test_a_matrix_of_zeros_stays_zero_and_leaves_the_others_alone():
    matrices = torch.stack([torch.zeros(20, 30), torch.eye(20, 30)])
    found = orthogonalise(matrices)
    assert not found[0].any()
    torch.testing.assert_close(found[1], orthogonalise(matrices[1:])[0])


@pytest.mark.parametrize("shape", [(16, 48), (48, 4, 2, 2)])
def test_a_step_is_that_of_the_formula(shape):
    lr, decay, weight_decay = 0.02, 0.9, 0.3
    generator = torch.Generator().manual_seed(0)
    parameter = nn.Parameter(torch.randn(shape, generator=generator))
    expected = parameter.detach().flatten(1).double()
    optimiser = Muon([parameter], lr, (decay, 0.999), weight_decay, dtype=torch.float32)
    mean = torch.zeros_like(expected)
    for _ in range(3):
        parameter.grad = torch.randn(shape, generator=generator)
        gradient = parameter.grad.flatten(1).double()
        mean = decay * mean + (1 - decay) * gradient
        update = orthogonalise((decay * mean + (1 - decay) * gradient)[None], torch.float64)[0]
        expected = expected * (1 - lr * weight_decay) - lr * 0.2 * max(expected.shape) ** 0.5 * update
        optimiser.step()
    torch.testing.assert_close(parameter.detach().flatten(1).double(), expected, atol=1e-5, rtol=1e-4)


def test_a_step_does_not_depend_on_the_memory_format():
    plain, strided = network(), network().to(memory_format=torch.channels_last)
    for model in (plain, strided):
        train(model, Muon(model.parameters(), dtype=torch.float32))
    for a, b in zip(plain.parameters(), strided.parameters(), strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-4)
    assert strided[2].weight.is_contiguous(memory_format=torch.channels_last)


def test_other_parameters_are_trained_as_by_adamw():
    model, settings = network(), {"lr": 1e-3, "betas": (0.9, 0.99), "weight_decay": 0.1}
    others = [p for p in model.parameters() if p.ndim < 2 or len(p) < SMALLEST]
    assert len(others) == 5  # two biases, scale and shift of the norm, and a convolution to 3 channels
    copies = [nn.Parameter(p.detach().clone()) for p in others]
    ours, adamw = Muon(model.parameters(), **settings), torch.optim.AdamW(copies, **settings, fused=True)
    for seed in range(3):
        generator = torch.Generator().manual_seed(seed)
        for p, q in zip(others, copies, strict=True):
            p.grad = torch.randn(p.shape, generator=generator)
            q.grad = p.grad.clone()
        ours.step()
        adamw.step()
    for p, q in zip(others, copies, strict=True):
        assert torch.equal(p, q)


def test_parameters_without_a_gradient_stay():
    model = network()
    before = copy.deepcopy(model)
    optimiser = Muon(model.parameters())
    model[0](torch.randn(1, 4, 5, 5)).sum().backward()
    optimiser.step()
    assert not torch.equal(model[0].weight, before[0].weight)
    assert torch.equal(model[2].weight, before[2].weight)
    assert torch.equal(model[3].weight, before[3].weight)


def test_a_saved_state_goes_on_bit_for_bit():
    whole = network()
    train(whole, Muon(whole.parameters()))
    state = Muon(whole.parameters())
    parts = copy.deepcopy(whole)
    train(whole, state)
    saved, middle = copy.deepcopy(state.state_dict()), copy.deepcopy(whole)
    train(whole, state)
    loaded = Muon(middle.parameters())
    loaded.load_state_dict(saved)
    train(middle, loaded)
    assert not torch.equal(parts[2].weight, whole[2].weight)
    for a, b in zip(whole.parameters(), middle.parameters(), strict=True):
        assert torch.equal(a, b)


def test_a_copy_takes_the_same_steps():
    model = network()
    optimiser = Muon(model.parameters())
    train(model, optimiser)
    copied, its_optimiser = pickle.loads(pickle.dumps((model, optimiser)))
    train(model, optimiser)
    train(copied, its_optimiser)
    for a, b in zip(model.parameters(), copied.parameters(), strict=True):
        assert torch.equal(a, b)


def test_parameters_cannot_be_added_later():
    optimiser = Muon(network().parameters())
    with pytest.raises(ValueError, match="takes all parameters at once"):
        optimiser.add_param_group({"params": [nn.Parameter(torch.zeros(20, 20))]})


class TestRuns:
    def test_bf16_and_a_discriminator_of_its_own(self, faces, tmp_path):
        settings = ["optimiser=muon", "precision=bf16", "loss.adversarial=0.1", "steps=2", "data.size=32"]
        trainer = Trainer(small(faces, *settings), tmp_path / "run")
        assert isinstance(trainer.optimisers["model"], Muon)
        assert isinstance(trainer.optimisers["discriminator"], torch.optim.AdamW)
        before = copy.deepcopy(trainer.discriminator.state_dict())
        load_model(trainer.run())
        assert any(not torch.equal(x, before[name]) for name, x in trainer.discriminator.state_dict().items())

    def test_a_checkpoint_of_adamw_is_refused(self, faces, tmp_path):
        Trainer(small(faces, "steps=1"), tmp_path / "run").run()
        with pytest.raises(ValueError, match=r"changed since: .*optimiser"):
            Trainer(small(faces, "steps=2", "optimiser=muon"), tmp_path / "run", resume=True)
