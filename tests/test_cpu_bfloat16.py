"""`masked_correlation` on CPU tensors in bfloat16: with kernels of its own where the processor has them."""

import pytest
import torch
from torch import Tensor

from showface import native, ops
from showface.ops import definitions

from support.tolerances import assert_close

pytestmark = pytest.mark.skipif(native.load() is None, reason=f"{native.why_missing()}")


def make(tokens: int, channels: int, values: int, scale: float = 1.0) -> list[Tensor]:
    """Two images: query, key, value and hole."""
    q, k, v = (torch.randn(2, tokens, width).mul(scale).bfloat16() for width in (channels, channels, values))
    return [q, k, v, torch.rand(2, tokens) < 0.4]


def gradients(function, case: list[Tensor], grad: Tensor, temperature: Tensor, **options) -> list[Tensor]:
    inputs = [x.detach().requires_grad_() for x in (*case[:3], temperature)]
    out = function(*inputs[:3], case[3], temperature=inputs[3], **options)
    return [out, *torch.autograd.grad((out * grad.to(out.dtype)).sum(), inputs)]


def test_which_kernel_runs():
    case = make(40, 16, 16)
    if not native.has_cpu_bfloat16():
        with pytest.raises(RuntimeError, match="float32 and float64"):
            torch.ops.showface_C.masked_correlation(*case, None, 8.0, False, False)
        return
    out, lse = torch.ops.showface_C.masked_correlation(*case, None, 8.0, False, False)
    assert (out.dtype, lse.dtype) == (torch.bfloat16, torch.float32)
    grads = torch.ops.showface_C.masked_correlation_backward(out, *case, out, lse, None, 8.0, False, False)
    assert [x.dtype for x in grads] == [torch.bfloat16] * 3 + [torch.float32]


@pytest.mark.parametrize("keys", ["valid", "all"])
@pytest.mark.parametrize(("tokens", "channels", "values"), [(700, 40, 33), (1000, 7, 1)])
def test_several_tiles_and_chunks(tokens, channels, values, keys):
    case, grad = make(tokens, channels, values), torch.randn(2, tokens, values).bfloat16()
    temperature = torch.tensor(8.0)
    got = gradients(ops.masked_correlation, case, grad, temperature, keys=keys, backend="cpp")
    wide = [x.double() for x in case[:3]] + [case[3]]
    expected = gradients(definitions.masked_correlation, wide, grad, temperature.double(), keys=keys)
    for index, (x, y) in enumerate(zip(got[:4], expected[:4], strict=True)):
        assert_close(x, y, gradient=index > 0)
    assert got[4].item() == pytest.approx(expected[4].item(), abs=0.5)  # of hundreds of terms with both signs
    again = gradients(ops.masked_correlation, case, grad, temperature, keys=keys, backend="cpp")
    assert all(torch.equal(x, y) for x, y in zip(got, again, strict=True))


@pytest.mark.parametrize("temperature", [16.0, 100.0])
def test_a_later_key_may_be_the_nearest(temperature):
    """The first keys are opposite to the queries, and the last one is equal to them."""
    query = torch.randn(1, 1, 32).bfloat16().expand(1, 600, 32).contiguous()
    key, value = -query, torch.zeros(1, 600, 8).bfloat16()
    key[:, -1], value[:, -1] = query[:, -1], 3
    hole = torch.zeros(1, 600, dtype=torch.bool)
    hole[:, :100] = True
    out = ops.masked_correlation(query, key, value, hole, temperature=temperature, backend="cpp")
    assert_close(out[:, :100], torch.full((1, 100, 8), 3.0, dtype=torch.float64))


@pytest.mark.parametrize("temperature", [1.0, 8.0, 16.0, 40.0, 100.0])
@pytest.mark.parametrize("scale", [1e-5, 1.0, 1e4])
def test_one_key_copies_its_value(scale, temperature):
    """Also if it is opposite to the query, and bit for bit: the weights that the product sees sum to 1."""
    query, _, value, _ = make(64, 16, 24, scale)
    key = -query[:, :1].expand_as(query).contiguous()
    query[:, ::2] = query[:, :1]
    hole = torch.ones(2, 64, dtype=torch.bool)
    hole[:, 5] = False
    out = ops.masked_correlation(query, key, value, hole, temperature=temperature, backend="cpp")
    expected = torch.where(hole[..., None], value[:, 5:6], 0)
    assert torch.equal(out, expected)


def test_a_gradient_in_float32():
    """It is what a network in mixed precision may pass back."""
    from showface.ops.backends import cpp

    case, grad = make(300, 24, 16), torch.randn(2, 300, 16)
    out, lse = cpp._masked_correlation(*case, None, 8.0, "valid")
    got = cpp._masked_correlation_backward(grad, *case, out, lse, None, 8.0, "valid")
    expected = cpp._masked_correlation_backward(grad.bfloat16(), *case, out, lse, None, 8.0, "valid")
    assert [x.dtype for x in got[:3]] == [torch.bfloat16] * 3
    for x, y in zip(got[:3], expected[:3], strict=True):
        assert_close(x, y.double(), gradient=True)


def test_nan_is_not_lost():
    case = make(300, 24, 16)
    case[3][:, 0], case[3][:, 299] = True, False
    case[1][:, 299] = torch.nan
    assert ops.masked_correlation(*case, temperature=8.0, backend="cpp")[:, 0].isnan().all()


def test_opcheck():
    case = make(50, 16, 8)
    inputs = [x.requires_grad_() for x in case[:3]]
    torch.library.opcheck(torch.ops.showface.masked_correlation.default, (*inputs, case[3], None, 8.0, "valid", "cpp"))
