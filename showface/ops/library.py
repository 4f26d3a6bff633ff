"""Register the operators of this package as torch operators in the namespace `showface`.

Every operator is declared once with `declare`: a schema for its forward and one for its backward, an implementation
that picks a backend, a fake one for tracing, and autocasting. torch.compile, torch.export and opcheck then
handle it like torch's own operators.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

LIBRARY = torch.library.Library("showface", "DEF")


def declare(schema: str, implementation: Callable[..., Any], fake: Callable[..., Any]) -> None:
    """Define the operator `schema` with one implementation for all devices and one for fake tensors.

    The results are made contiguous, because `fake` returns contiguous tensors for arguments of any layout.
    """
    name = schema[: schema.index("(")]

    def run(*args: Any) -> Any:
        result = implementation(*args)
        return result.contiguous() if isinstance(result, Tensor) else tuple(x.contiguous() for x in result)

    LIBRARY.define(schema, tags=(torch.Tag.pt2_compliant_tag,))
    LIBRARY.impl(name, run, "CompositeExplicitAutograd")
    torch.library.register_fake(f"showface::{name}", fake, lib=LIBRARY)


def differentiate(
    name: str, backward: Callable[..., Any], setup_context: Callable[..., Any], public: str | None = None
) -> None:
    """Register the gradient of an operator. Second derivatives raise an error.

    `public` is the public name of the operator, if it differs from `name`.
    """
    torch.library.register_autograd(f"showface::{name}", backward, setup_context=setup_context, lib=LIBRARY)

    def once_only(ctx: Any, *grads: Tensor) -> Any:
        raise RuntimeError(f"showface.ops.{public or name} is differentiable once; a second derivative was asked for")

    torch.library.register_autograd(f"showface::{name}_backward", once_only, lib=LIBRARY)


def autocast(name: str, cast: Sequence[int], dtype: torch.dtype | None = None) -> None:
    """Under autocast, convert the tensor arguments at the positions `cast` to the autocast dtype (or to `dtype`)."""
    operator = getattr(torch.ops.showface, name)

    for device_type in ("cpu", "cuda"):

        def cast_and_call(*args: Any, device_type: str = device_type) -> Any:
            wanted = dtype or torch.get_autocast_dtype(device_type)
            args_cast = [
                x.to(wanted) if i in cast and isinstance(x, Tensor) and x.dtype != torch.float64 else x
                for i, x in enumerate(args)
            ]
            with torch._C._ExcludeDispatchKeyGuard(_AUTOCAST_KEYS):
                return operator(*args_cast)

        LIBRARY.impl(name, cast_and_call, f"Autocast{device_type.upper()}")


_AUTOCAST_KEYS = torch._C.DispatchKeySet(torch._C.DispatchKey.AutocastCPU) | torch._C.DispatchKeySet(
    torch._C.DispatchKey.AutocastCUDA
)
