"""One operator alone: its result and its gradients, compared with its definition.

python examples/one_operator.py --backend cpp
"""

import argparse

import torch

from showface import ops
from showface.ops import definitions

parser = argparse.ArgumentParser(description="Call showface.ops.masked_correlation.")
parser.add_argument("--backend", default="auto", help="auto, reference, cpp, cuda or triton")
parser.add_argument("--device", default="cpu")
parser.add_argument("--tokens", type=int, default=1024)
arguments = parser.parse_args()
device_type = torch.device(arguments.device).type

for name in ("reference", "cpp", "cuda", "triton"):
    reason = ops.why_not("masked_correlation", name, device_type)
    print(f"{name}: {'can run' if reason is None else reason}")
print(f"auto takes {ops.choose('masked_correlation', device_type)} for much work")

# Two images of `tokens` tokens with 64 channels; about a third of the tokens are corrupted.
torch.manual_seed(0)
query, key, value = (torch.randn(2, arguments.tokens, 64, device=arguments.device) for _ in range(3))
hole = torch.rand(2, arguments.tokens, device=arguments.device) < 0.3
temperature = torch.tensor(16.0, device=arguments.device)
inputs = [x.requires_grad_() for x in (query, key, value, temperature)]

out = ops.masked_correlation(query, key, value, hole, temperature=temperature, backend=arguments.backend)
weight = torch.randn_like(out)
gradients = torch.autograd.grad((out * weight).sum(), inputs)

# The definition is plain PyTorch: slow, easy to read, and what every backend is tested against.
exact = [x.detach().double().requires_grad_() for x in inputs]
expected = definitions.masked_correlation(*exact[:3], hole, exact[3])
exact_gradients = torch.autograd.grad((expected * weight.double()).sum(), exact)

print(f"known tokens get zeros: {bool((out[~hole] == 0).all())}")
for name, got, wanted in zip(
    ("out", "grad of query", "grad of key", "grad of value", "grad of temperature"),
    (out, *gradients),
    (expected, *exact_gradients),
    strict=True,
):
    error = (got.double() - wanted).abs().max() / wanted.abs().max()
    print(f"{name}: {tuple(got.shape)}, largest relative error {error.item():.1e}")
