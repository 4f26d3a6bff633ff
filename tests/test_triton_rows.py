"""The device functions of the Triton kernels that work on rows."""

from importlib.util import find_spec

import pytest
import torch

if find_spec("triton") is None:
    pytest.skip("triton is not installed", allow_module_level=True)

import triton
import triton.language as tl

from showface.kernels.rows import unit_gradient

ROWS, WIDTH = 4, 16


def gradients(rows_ptr, inverse_ptr, grad_ptr, projection_ptr, out_ptr, ROWS: tl.constexpr, WIDTH: tl.constexpr):
    row = tl.arange(0, ROWS)
    place = row[:, None] * WIDTH + tl.arange(0, WIDTH)[None, :]
    out = unit_gradient(
        tl.load(rows_ptr + place), tl.load(inverse_ptr + row), tl.load(grad_ptr + place), tl.load(projection_ptr + row)
    )
    tl.store(out_ptr + place, out)


def test_nothing_is_projected_out_of_clamped_rows(device, monkeypatch):
    """Also where 1 / MIN_NORM is rounded to the number below or above, as a GPU may do."""
    if device == "cpu" and torch.cuda.is_available():
        pytest.skip("kernels are compiled where there is a GPU")
    monkeypatch.setenv("TRITON_INTERPRET", "1" if device == "cpu" else "0")
    rows, grad = torch.randn(2, ROWS, WIDTH, device=device)
    largest = torch.tensor(1e6, device=device)
    inverse = torch.stack([largest, largest.nextafter(0 * largest), largest.nextafter(2 * largest), largest / 2])
    projection = torch.ones(ROWS, device=device)
    out = torch.full_like(rows, torch.nan)
    triton.jit(gradients)[(1,)](rows, inverse, grad, projection, out, ROWS, WIDTH)
    expected = grad * inverse[:, None]
    expected[3] = (grad[3] - rows[3] * inverse[3]) * inverse[3]
    torch.testing.assert_close(out, expected)
