"""The operators under `torch.func`, forward-mode differentiation and activation checkpointing."""

import warnings
from functools import partial

import pytest
import torch
from torch.autograd import forward_ad
from torch.autograd.functional import jacobian
from torch.utils.checkpoint import checkpoint

from showface import ops
from showface.nn import DisentangledMemory, MaskRegionEnhancement

REGION = torch.tensor([0, 1, -1, 0, 1])
HOLE = torch.tensor([[True, False, True, False, False], [True] * 5])
TAU = torch.tensor(3.0, dtype=torch.float64)


def normal(*shape):
    return torch.randn(*shape, dtype=torch.float64)


def read(latent, memory, tau, **options):
    return ops.memory_read(latent, memory, REGION, temperature=tau, **options)


def accumulate(latent, memory, tau, **options):
    return ops.memory_accumulate(latent, memory, REGION, temperature=tau, **options)


def write(latent, memory, tau, **options):
    return ops.memory_write(latent, memory, REGION, temperature=tau, rate=0.1, **options)


def blend(memory, rho, total, **options):
    return ops.memory_blend(memory, rho, total, rate=0.1, **options)


def correlate(query, key, value, tau, keys="valid", **options):
    return ops.masked_correlation(query, key, value, HOLE, temperature=tau, keys=keys, **options)


def lose(features, target, **options):
    return ops.coordination_loss(features, target, HOLE, **options)


CASES = {
    "memory_read": (read, lambda: (normal(5, 4), normal(2, 3, 4), TAU)),
    "memory_accumulate": (accumulate, lambda: (normal(5, 4), normal(2, 3, 4), TAU)),
    "memory_write": (write, lambda: (normal(5, 4), normal(2, 3, 4), TAU)),
    "memory_blend": (blend, lambda: (normal(2, 3, 4), normal(2, 3).abs(), normal(2, 3, 4))),
    "masked_correlation": (correlate, lambda: (*normal(3, 2, 5, 4), TAU)),
    "masked_correlation of all keys": (partial(correlate, keys="all"), lambda: (*normal(3, 2, 5, 4), TAU)),
    "coordination_loss": (lose, lambda: (*normal(2, 2, 5, 4),)),
}
each_operator = pytest.mark.parametrize(("function", "make"), CASES.values(), ids=CASES)


def flat(result):
    return list(result) if isinstance(result, tuple) else [result]


@each_operator
def test_forward_mode_equals_backward(function, make):
    case = make()
    everything = tuple(range(len(case)))
    expected = jacobian(function, case)
    forward = torch.func.jacfwd(function, argnums=everything)(*case)
    torch.testing.assert_close(forward, expected)
    with forward_ad.dual_level():
        moved = tuple(torch.ones_like(x) for x in case)
        out = flat(function(*(forward_ad.make_dual(x, direction) for x, direction in zip(case, moved, strict=True))))
        tangents = [forward_ad.unpack_dual(x).tangent for x in out]
    for tangent, other in zip(tangents, flat(torch.func.jvp(function, case, moved)[1]), strict=True):
        torch.testing.assert_close(tangent, other)
        assert tangent.abs().sum() > 0


@each_operator
def test_reverse_mode_equals_backward_also_twice(function, make):
    case = make()
    everything = tuple(range(len(case)))

    def scalar(*inputs):
        return sum(x.square().sum() for x in flat(function(*inputs)))

    leaves = [x.clone().requires_grad_() for x in case]
    expected = torch.autograd.grad(scalar(*leaves), leaves)
    torch.testing.assert_close(torch.func.grad(scalar, argnums=everything)(*case), expected)
    first, second = (way(torch.func.grad(scalar))(*case) for way in (torch.func.jacfwd, torch.func.jacrev))
    torch.testing.assert_close(first, second)
    assert first.isfinite().all()


@each_operator
def test_vmap_equals_a_loop(function, make):
    cases = [make() for _ in range(3)]
    together = tuple(torch.stack(x) for x in zip(*cases, strict=True))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        got = flat(torch.func.vmap(function)(*together))
    expected = [torch.stack(x) for x in zip(*(flat(function(*case)) for case in cases), strict=True)]
    torch.testing.assert_close(got, expected)


@each_operator
def test_half_precision_keeps_its_dtypes(function, make):
    case = tuple(x.bfloat16() for x in make())
    expected = flat(function(*case))
    got, tangents = torch.func.jvp(function, case, tuple(torch.ones_like(x) for x in case))
    for x, tangent, y in zip(flat(got), flat(tangents), expected, strict=True):
        assert x.dtype == tangent.dtype == y.dtype
        torch.testing.assert_close(x, y, rtol=0.02, atol=0.02)


@each_operator
@pytest.mark.parametrize("named", ["cpp", "cuda", "triton"])
def test_a_named_kernel_is_refused(function, make, named):
    case = make()
    run = partial(function, backend=named)
    name = rf"showface.ops.\w+: backend '{named}' has no forward-mode .*: use backend='auto' or 'reference'"
    for transform in (
        lambda: torch.func.jvp(run, case, case),
        lambda: torch.func.grad(lambda *x: flat(run(*x))[0].sum())(*case),
        lambda: torch.func.vmap(run)(*(x[None] for x in case)),
    ):
        with pytest.raises(RuntimeError, match=name):
            transform()


def test_what_takes_no_part_stays_out():
    """Values of tokens without a region, and of tokens that are neither query nor key, reach no derivative."""
    latent, memory = normal(5, 4), normal(2, 3, 4)
    latent[2] = torch.nan
    for function in (read, accumulate, write):
        out, tangent = torch.func.jvp(lambda z, f=function: f(z, memory, TAU), (latent,), (torch.ones_like(latent),))
        grad = torch.func.grad(lambda z, f=function: flat(f(z, memory, TAU))[0].sum())(latent)
        assert all(x.isfinite().all() for x in (*flat(out), *flat(tangent), grad))
    query, key, value = normal(3, 2, 5, 4)
    query[~HOLE], key[HOLE], value[HOLE] = torch.nan, torch.inf, torch.nan
    case = query, key, value, TAU
    grads = torch.func.grad(lambda *x: correlate(*x).square().sum(), argnums=(0, 1, 2, 3))(*case)
    assert all(x.isfinite().all() for x in (correlate(*case), *grads))


def test_compiled_transforms():
    torch._dynamo.reset()
    case = CASES["memory_read"][1]()

    def derivative(*case):
        return torch.func.jvp(read, case, tuple(torch.ones_like(x) for x in case))[1]

    compiled = torch.compile(derivative, backend="aot_eager")(*case)
    torch.testing.assert_close(compiled, derivative(*case))
    assert compiled.abs().sum() > 0


@pytest.mark.parametrize("reentrant", [False, True])
def test_activation_checkpointing(reentrant):
    memory, enhance = DisentangledMemory(8, 3, 4), MaskRegionEnhancement(8, 8)
    features, hole = torch.randn(2, 8, 6, 6), (torch.rand(2, 1, 6, 6) < 0.4).float()
    parsing = torch.rand(2, 3, 6, 6).softmax(1)
    parameters = [*memory.parameters(), *enhance.parameters()]
    runs = []
    for run in (partial(checkpoint, use_reentrant=reentrant), lambda module, *inputs: module(*inputs)):
        for parameter in parameters:
            parameter.grad = None
        x = features.clone().requires_grad_()
        out = run(enhance, x, hole, run(memory, x, parsing))
        out.square().sum().backward()
        runs.append([out, x.grad, *(parameter.grad for parameter in parameters)])
    torch.testing.assert_close(*runs)
