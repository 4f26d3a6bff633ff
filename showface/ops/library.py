"""Register the operators of this package as torch operators in the namespace `showface`.

`declare` gives an operator a schema, an implementation that picks a backend, and a fake one for tracing. Its backward
is an operator of its own, which `differentiate` connects. `declare_first`, where used, and `autocast` follow.
torch.compile, torch.export and opcheck handle such operators like torch's own.

On small tensors, a call takes as long as its way through torch's dispatcher. Every step from there into Python costs
time, so the autograd kernels here call the implementation themselves if no other dispatch key comes between.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch._C import DispatchKey, DispatchKeySet

from showface.ops.precision import AUTOCAST_KEYS

LIBRARY = torch.library.Library("showface", "DEF")

# The dispatch keys, as bits, that lead straight to an operator's implementation, and to it past autograd. There are
# others if tensors are fake, traced, batched, or on another device such as "meta".
_RUN = frozenset(DispatchKeySet(key).raw_repr() for key in (DispatchKey.CPU, DispatchKey.CUDA))
_AUTOGRAD_THEN_RUN = frozenset(
    (DispatchKeySet(key) | DispatchKeySet(autograd)).raw_repr()
    for key, autograd in ((DispatchKey.CPU, DispatchKey.AutogradCPU), (DispatchKey.CUDA, DispatchKey.AutogradCUDA))
)

_runs: dict[str, Callable[..., Any]] = {}  # the implementations, by name
_kernels: dict[str, Callable[..., Any]] = {}  # the kernels for the autograd keys, by name


def declare(schema: str, implementation: Callable[..., Any], fake: Callable[..., Any]) -> None:
    """Define the operator `schema` with one implementation for all devices and one for fake tensors.

    The results are made contiguous, because `fake` returns contiguous tensors for arguments of any layout.
    """
    name = schema[: schema.index("(")]

    def run(*args: Any) -> Any:
        result = implementation(*args)
        return result.contiguous() if isinstance(result, Tensor) else tuple([x.contiguous() for x in result])

    LIBRARY.define(schema, tags=(torch.Tag.pt2_compliant_tag,))
    LIBRARY.impl(name, run, "CompositeExplicitAutograd")
    torch.library.register_fake(f"showface::{name}", fake, lib=LIBRARY)
    _runs[name] = run


def declare_first(schema: str, whole: str) -> None:
    """Define the operator `schema` as the first result of the operator `whole`, which has the same arguments.

    Register `autocast` for it too, since it can't see from its dispatch keys whether autocast is on.
    """
    name = schema[: schema.index("(")]
    operator, run, kernel = getattr(torch.ops.showface, whole).default, _runs[whole], _kernels[whole]

    def first(keys: DispatchKeySet, *args: Any) -> Tensor:
        if keys.raw_repr() in _AUTOGRAD_THEN_RUN:
            return kernel(keys, *args)[0]
        return run(*args)[0] if keys.raw_repr() in _RUN else operator(*args)[0]

    LIBRARY.define(schema)
    LIBRARY.impl(name, first, "CompositeImplicitAutograd", with_keyset=True)


def differentiate(
    name: str, backward: Callable[..., Any], save: Callable[..., None], public: str | None = None
) -> None:
    """Register the gradient of an operator. Second derivatives raise an error.

    Args:
        backward: `backward(ctx, *gradients of the results)` returns a gradient or None for each argument.
        save: `save(ctx, arguments, result)` keeps in `ctx` what `backward` needs. As everywhere in torch, trailing
            arguments that equal their default are left out.
        public: the public name of the operator, if it differs from `name`.
    """
    _register_autograd(name, backward, save)

    def once_only(ctx: Any, *grads: Tensor) -> Any:
        raise RuntimeError(f"showface.ops.{public or name} is differentiable once; a second derivative was asked for")

    _register_autograd(f"{name}_backward", once_only, lambda ctx, args, result: None)


def _register_autograd(name: str, backward: Callable[..., Any], save: Callable[..., None]) -> None:
    """Like `torch.library.register_autograd`, but the kernel calls the implementation itself if it comes next."""
    operator, run = getattr(torch.ops.showface, name).default, _runs[name]

    def below_autograd(keys: DispatchKeySet, args: Sequence[Any]) -> Any:
        if keys.raw_repr() in _AUTOGRAD_THEN_RUN:
            return run(*args)
        with torch._C._AutoDispatchBelowAutograd():
            return operator.redispatch(keys & torch._C._after_autograd_keyset, *args)

    # The keys come last, so that ctx.needs_input_grad counts the operator's arguments.
    def forward(ctx: Any, *args_and_keys: Any) -> Any:
        *args, keys = args_and_keys
        result = below_autograd(keys, args)
        save(ctx, args, result)
        return result

    def gradient(ctx: Any, *grads: Tensor | None) -> tuple[Any, ...]:
        if all(grad is None for grad in grads):  # where `save` asked for no zeros in their place
            return (None,) * len(ctx.needs_input_grad)
        return *backward(ctx, *grads), None

    members = {"forward": staticmethod(forward), "backward": staticmethod(gradient)}
    function: Any = type(name, (torch.autograd.Function,), members)

    def kernel(keys: DispatchKeySet, *args: Any) -> Any:
        if torch.is_grad_enabled() and torch._C._any_requires_grad(*args):
            return function.apply(*args, keys)
        return below_autograd(keys, args)

    LIBRARY.impl(name, kernel, "Autograd", with_keyset=True)
    _kernels[name] = kernel


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
            with torch._C._ExcludeDispatchKeyGuard(AUTOCAST_KEYS):
                return operator(*args_cast)

        LIBRARY.impl(name, cast_and_call, f"Autocast{device_type.upper()}")
