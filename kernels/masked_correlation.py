"""masked_correlation in Triton, forward and backward.

The corrupted and the known tokens of each image are first listed on the device. The work is then |corrupted| x |keys|,
and the host does not wait for a count.
"""

import torch
from torch import Tensor

from showface.kernels import launch
from showface.kernels.tokens import sort_tokens


def _groups(hole: Tensor, all_keys: bool) -> launch.Groups:
    """The corrupted tokens of each image are one group, the known tokens belong to none."""
    order, offset = sort_tokens(hole, 1)
    return launch.Groups(order, offset, 1, not all_keys, hole.shape[1])


def masked_correlation(
    query: Tensor, key: Tensor, value: Tensor, hole: Tensor, temperature: Tensor | None, scale: float, all_keys: bool
) -> tuple[Tensor, Tensor]:
    """Cosine attention of the corrupted tokens, see `showface.ops.definitions`.

    Args:
        query, key: (B, N, C), float16, bfloat16, float32 or float64.
        value: (B, N, V).
        hole: (B, N) bool, True = corrupted.
        temperature: () of any floating-point dtype, or None for 1.
        scale: a factor of the temperature.
        all_keys: all tokens are keys, not only the known ones.

    Returns:
        out (B, N, V) in the dtype of `value`, and lse (B, N), float32 (float64 for float64): the log-sum-exp (base 2)
        of each corrupted token's scores. Sums are accumulated in the dtype of lse.
    """
    n = launch.numbers(query, temperature, scale)
    if hole.numel() == 0:
        return torch.empty_like(value), value.new_empty(hole.shape, dtype=n.wide)
    with launch.on_device_of(query):
        query, key, groups = query.contiguous(), key.contiguous(), _groups(hole, all_keys)
        return launch.attend(query, key, value.contiguous(), groups, launch.norms_of(query, key, n), n)


def masked_correlation_backward(
    grad: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    hole: Tensor,
    out: Tensor,
    lse: Tensor,
    temperature: Tensor | None,
    scale: float,
    all_keys: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The gradients of query, key and value, each in its dtype, and of `scale * temperature`, in the dtype of lse.

    The arguments are the gradient of `out`, and the arguments and results of the forward.
    """
    if hole.numel() == 0:
        return torch.empty_like(query), torch.empty_like(key), torch.empty_like(value), lse.new_zeros(())
    with launch.on_device_of(query):
        n = launch.numbers(query, temperature, scale)
        tensors = [x.contiguous() for x in (grad, query, key, value)]
        groups = _groups(hole, all_keys)
        return launch.attend_backward(*tensors, groups, out.contiguous(), lse.contiguous(), n)
