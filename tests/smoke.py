"""A short list for an installed showface: every backend that runs here gives the reference's result, the demo runs."""

import torch

import showface
from showface import native, ops
from showface.ops import backends

print(f"showface {showface.__version__}, torch {torch.__version__}")
assert native.why_missing() is None, native.why_missing()
print("extension built against torch", native.load().build_info()["torch_headers"])

for device in ["cpu"] + ["cuda"] * torch.cuda.is_available():
    torch.manual_seed(0)
    latent, memory = torch.randn(63, 20, device=device), torch.randn(5, 33, 20, device=device)
    region = torch.randint(-1, 5, (63,), device=device)
    expected = ops.memory_read(latent, memory, region, temperature=8.0, backend="reference")
    for backend in backends.BACKENDS:
        reason = ops.why_not("memory_read", backend, device)
        print(f"{device} {backend}: {reason or 'runs'}")
        if reason is None:
            tensors = [x.clone().requires_grad_() for x in (latent, memory)]
            out = ops.memory_read(*tensors, region, temperature=8.0, backend=backend)
            torch.testing.assert_close(out, expected)
            out.sum().backward()
            assert tensors[0].grad.isfinite().all()
    with torch.no_grad():
        result = showface.MDRNets.from_pretrained().to(device)(
            torch.zeros(1, 3, 50, 70, device=device), torch.ones(1, 1, 50, 70, device=device)
        )
    assert result.image.isfinite().all()
print("passed")
