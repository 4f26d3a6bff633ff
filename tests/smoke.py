"""Quick checks of an installed showface: every backend that runs here agrees with the reference, and the model runs.

With `--operators` the model is left out.
"""

import sys

import torch

import showface
from showface import native, ops
from showface.ops import dispatch

print(f"showface {showface.__version__}, torch {torch.__version__}")
assert native.why_missing() is None, native.why_missing()
print("extension built against torch", native.load().build_info()["torch_headers"])


def check(device: str) -> None:
    torch.manual_seed(0)
    latent, memory = torch.randn(63, 20, device=device), torch.randn(5, 33, 20, device=device)
    region = torch.randint(-1, 5, (63,), device=device)
    image, hole = torch.randn(2, 63, 20, device=device), torch.rand(2, 63, device=device) < 0.4
    calls = {
        "memory_read": (lambda x, y, **to: ops.memory_read(x, y, region, temperature=8.0, **to), (latent, memory)),
        "memory_write": (
            lambda x, y, **to: ops.memory_write(x, y, region, temperature=8.0, rate=0.1, **to)[0],
            (latent, memory),
        ),
        "masked_correlation": (
            lambda x, y, **to: ops.masked_correlation(x, y, x, hole, temperature=8.0, **to),
            (image, image.flip(2)),
        ),
    }
    for op, (call, tensors) in calls.items():
        expected = call(*tensors, backend="reference")
        for backend in dispatch.BACKENDS:
            reason = ops.why_not(op, backend, device)
            print(f"{op} on {device}, {backend}: {reason or 'runs'}")
            if reason is None:
                inputs = [x.clone().requires_grad_() for x in tensors]
                out = call(*inputs, backend=backend)
                torch.testing.assert_close(out, expected, rtol=1e-4, atol=1e-5)
                out.sum().backward()
                assert all(x.grad.isfinite().all() for x in inputs)
    if "--operators" in sys.argv:
        return
    with torch.no_grad():
        result = showface.MDRNets.from_pretrained().to(device)(
            torch.zeros(1, 3, 50, 70, device=device), torch.ones(1, 1, 50, 70, device=device)
        )
    assert result.image.isfinite().all()


for device in ["cpu"] + ["cuda"] * torch.cuda.is_available():
    check(device)
print("passed")
