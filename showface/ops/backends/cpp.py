"""The "cpp" backend: the compiled extension on CPU tensors.

It computes in float32 and float64. On processors with products of bfloat16, `masked_correlation` computes in bfloat16
with sums in float32. All other half precision is converted to float32.
"""

import torch
from torch import Tensor

from showface import native
from showface.ops.dispatch import register
from showface.ops.precision import convert, widen

# The extension's schemas end with a tf32 flag, which the CPU kernels ignore. They return the whole gradient of the
# temperature, not parts to add up.
_TF32 = False


def _memory_attend(
    latent: Tensor, memory: Tensor, value: Tensor | None, region: Tensor, temperature: Tensor | None, scale: float
) -> tuple[Tensor, Tensor]:
    z, m = widen(latent, memory)
    v = None if value is None else convert(value, z.dtype)
    out, lse = torch.ops.showface_C.memory_attend(z, m, v, region, temperature, scale, _TF32)
    return convert(out, memory.dtype), lse


def _memory_attend_backward(
    grad: Tensor,
    latent: Tensor,
    memory: Tensor,
    value: Tensor | None,
    region: Tensor,
    out: Tensor,
    lse: Tensor,
    temperature: Tensor | None,
    scale: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    g, z, m, o = widen(grad, latent, memory, out)
    v = None if value is None else convert(value, z.dtype)
    grad_latent, grad_memory, grad_value, grad_tau = torch.ops.showface_C.memory_attend_backward(
        g, z, m, v, region, o, lse, temperature, scale, _TF32
    )
    dtype = latent.dtype
    return convert(grad_latent, dtype), convert(grad_memory, dtype), convert(grad_value, dtype), grad_tau * scale


def _memory_accumulate(
    latent: Tensor, memory: Tensor, region: Tensor, temperature: Tensor | None, scale: float
) -> tuple[Tensor, Tensor]:
    z, m = widen(latent, memory)
    return torch.ops.showface_C.memory_accumulate(z, m, region, temperature, scale, _TF32)


def _memory_write(
    latent: Tensor, memory: Tensor, region: Tensor, temperature: Tensor | None, scale: float, rate: float
) -> tuple[Tensor, Tensor]:
    z, m = widen(latent, memory)
    written, rho = torch.ops.showface_C.memory_write(z, m, region, temperature, scale, rate, _TF32)
    return convert(written, memory.dtype), rho


def _memory_blend(memory: Tensor, rho: Tensor, total: Tensor, rate: float) -> Tensor:
    return convert(torch.ops.showface_C.memory_blend(convert(memory, rho.dtype), rho, total, rate), memory.dtype)


def _keep(*tensors: Tensor) -> tuple[Tensor, ...]:
    """Tensors in bfloat16 as they are, if there are kernels for it. Otherwise in float32."""
    same = all(x.dtype == torch.bfloat16 for x in tensors)
    return tensors if same and native.has_cpu_bfloat16() else widen(*tensors)


def _masked_correlation(
    query: Tensor, key: Tensor, value: Tensor, hole: Tensor, temperature: Tensor | None, scale: float, keys: str
) -> tuple[Tensor, Tensor]:
    q, k, v = (_keep if query.dtype == torch.bfloat16 else widen)(query, key, value)
    out, lse = torch.ops.showface_C.masked_correlation(q, k, v, hole, temperature, scale, keys == "all", _TF32)
    return convert(out, value.dtype), lse


def _masked_correlation_backward(
    grad: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    hole: Tensor,
    out: Tensor,
    lse: Tensor,
    temperature: Tensor | None,
    scale: float,
    keys: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    g, q, k, v, o = (_keep if query.dtype == torch.bfloat16 else widen)(grad, query, key, value, out)
    grad_q, grad_k, grad_v, grad_tau = torch.ops.showface_C.masked_correlation_backward(
        g, q, k, v, hole, o, lse, temperature, scale, keys == "all", _TF32
    )
    return convert(grad_q, query.dtype), convert(grad_k, key.dtype), convert(grad_v, value.dtype), grad_tau * scale


register("memory_read", "cpp", _memory_attend, _memory_attend_backward)
register("memory_accumulate", "cpp", _memory_accumulate)
register("memory_write", "cpp", _memory_write)
register("memory_blend", "cpp", _memory_blend)
register("masked_correlation", "cpp", _masked_correlation, _masked_correlation_backward)
