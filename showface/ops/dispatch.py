"""Choose the backend that runs an operator, and explain why a backend can't run.

An operator has up to four backends. "reference" is plain PyTorch and runs everywhere. "cpp" and "cuda" are the
compiled extension on CPU and CUDA tensors, "triton" the Triton kernels. The modules of `showface.ops.backends`
register their kernels here. "auto" takes the first of `BACKENDS` that can run; "reference" always can. Where a GPU has
little to compute, "cuda" comes before "triton".
"""

import os
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from typing import Any

import torch

from showface import native

BACKENDS = ("triton", "cuda", "cpp", "reference")
# Pairs of a query and a key, times channels. With less, a call on a GPU should take as long as the host needs to launch
# its kernels, and the compiled extension launches fewer, and faster. An estimate, which no GPU has measured.
SMALL = 2**28
OPS = ("memory_read", "memory_write", "memory_accumulate", "memory_blend", "masked_correlation", "coordination_loss")


@dataclass(frozen=True)
class Kernel:
    """One implementation of an operator.

    Attributes:
        forward, backward: its functions. Writes to the memory have no backward here: all backends share the one in
            `memory_gradients`.
        refuses: returns why tensors of some sizes are not supported, see `register`.
    """

    forward: Callable[..., Any]
    backward: Callable[..., Any]
    refuses: Callable[..., str | None]


FLOATS = frozenset({torch.float64, torch.float32, torch.float16, torch.bfloat16})
_kernels: dict[tuple[str, str], Kernel] = {}


def refuses_nothing(*tensors: torch.Tensor) -> str | None:
    return None


def _no_backward(*_: object) -> None:
    raise NotImplementedError("this kernel has no backward of its own")


def register(
    op: str,
    backend: str,
    forward: Callable[..., Any],
    backward: Callable[..., Any] = _no_backward,
    refuses: Callable[..., str | None] = refuses_nothing,
) -> None:
    """Register the implementation of `op` by `backend`. The modules of `showface.ops.backends` call this function.

    `refuses` is called with the tensors passed to `kernel`. It returns why they are not supported, as the end of a
    sentence, or None if they are.
    """
    _kernels[op, backend] = Kernel(forward, backward, refuses)


@cache
def _has_triton() -> bool:
    return find_spec("triton") is not None


def _interpreting() -> bool:
    return os.environ.get("TRITON_INTERPRET") == "1"


def why_not(op: str, backend: str, device_type: str, dtype: torch.dtype = torch.float32) -> str | None:
    """Why `backend` can't run `op` on tensors of this device type and dtype, or None if it can.

    The reason is the end of a sentence. "auto" is no backend of its own: `choose` tells which one it takes.

    Raises ValueError for an unknown operator or backend.
    """
    if op not in OPS:
        raise ValueError(f"op must be one of {', '.join(OPS)}, got {op!r}")
    if backend not in BACKENDS:
        raise ValueError(f"backend must be one of {', '.join(BACKENDS)}, got {backend!r}")
    if (op, backend) not in _kernels:
        return f"{op} has no {backend} kernel in this version"
    if dtype not in FLOATS:
        return f"its kernels do not take {dtype}"
    if backend == "cpp":
        return native.why_missing() or (None if device_type == "cpu" else f"it runs on cpu, not {device_type}")
    if backend == "cuda":
        if device_type not in native.CUDA_LIBRARIES:
            return native.why_no_cuda() or f"it runs on cuda, not {device_type}"
        return native.why_no_cuda() if device_type == "cuda" else None
    if backend == "triton":
        if not _has_triton():
            return "triton is not installed"
        if device_type == "cuda":
            return "its triton kernel takes no float64 on a GPU" if dtype == torch.float64 else None
        if device_type == "cpu" and _interpreting():
            return None
        return f"it runs on cuda (or on cpu under TRITON_INTERPRET=1), not {device_type}"
    return None


def choose(op: str, device_type: str, dtype: torch.dtype = torch.float32) -> str:
    """The backend that "auto" selects for much work on this device type and dtype, before sizes are checked."""
    return next(backend for backend in BACKENDS if why_not(op, backend, device_type, dtype) is None)


@cache
def _warn_if_not_compiled() -> None:
    reason = native.why_missing()
    if reason:
        warnings.warn(f"showface runs without its compiled kernels: {reason}", stacklevel=2)


def _is_small(query: torch.Tensor, key: torch.Tensor | None = None, *_: torch.Tensor) -> bool:
    """Whether these queries (..., C) and keys, or values, (..., N, V) are little work for a GPU. A blend always is."""
    return key is None or query.numel() * key.shape[-2] <= SMALL


@cache
def _able(op: str, device: torch.device, dtype: torch.dtype, small: bool) -> list[Kernel]:
    """The kernels that can run `op` on tensors of this device and dtype, the preferred one first.

    What decides this is read at the first call: what was built and installed, and TRITON_INTERPRET, which Triton too
    reads once.
    """
    _warn_if_not_compiled()
    names = sorted(BACKENDS, key=lambda name: name != "cuda") if small else BACKENDS
    return [_kernels[op, name] for name in names if why_not(op, name, device.type, dtype) is None]


def refusal(op: str, backend: str, *tensors: torch.Tensor) -> str | None:
    """The reason why `backend` can't run `op` on these tensors, as the end of a sentence, or None if it can."""
    return why_not(op, backend, tensors[0].device.type, tensors[0].dtype) or _kernels[op, backend].refuses(*tensors)


def kernel(op: str, backend: str, *tensors: torch.Tensor, called: str = "") -> Kernel:
    """The implementation that runs on these tensors. The first tensor determines device and dtype.

    Raises RuntimeError with the reason if a named backend can't run. The message names `called`, by default
    the operator.
    """
    if backend == "auto":
        first = tensors[0]
        for able in _able(op, first.device, first.dtype, first.is_cuda and _is_small(*tensors)):
            if able.refuses(*tensors) is None:
                return able
    reason = refusal(op, backend, *tensors)
    if reason:
        raise RuntimeError(f"{called or f'showface.ops.{op}'}: backend {backend!r} can't run here: {reason}")
    return _kernels[op, backend]
