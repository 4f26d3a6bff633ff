"""masked_correlation in Triton, forward and backward.

The corrupted and the known tokens of each image are listed on the device first, so that the work is
|corrupted| x |keys| without the host waiting for a count.
"""

import torch
from torch import Tensor

from showface.kernels import launch
from showface.kernels.tokens import sort_tokens


def _groups(hole: Tensor, all_keys: bool) -> launch.Groups:
    """The corrupted tokens of each image are a group; its known ones are of none."""
    order, offset = sort_tokens(hole, 1)
    return launch.Groups(order, offset, 1, not all_keys, hole.shape[1])


def masked_correlation(
    query: Tensor, key: Tensor, value: Tensor, hole: Tensor, temperature: Tensor | None, scale: float, all_keys: bool
) -> tuple[Tensor, Tensor]:
    """Answer the corrupted tokens, see `showface.ops.definitions`.

    Args:
        query, key: (B, N, C), float16, bfloat16, float32 or float64.
        value: (B, N, V).
        hole: (B, N) bool, True = corrupted.
        temperature: a 0-d tensor of any floating-point dtype, or None for 1.
        scale: a factor on the temperature.
        all_keys: every token answers, not only the known ones.

    Returns:
        out (B, N, V) in the dtype of `value`, and log_sum (B, N), float32 (float64 for float64): the logarithm to
        base 2 of the sum under each corrupted token's softmax. Sums are accumulated in the dtype of log_sum.
    """
    n = launch.numbers(query, temperature, scale)
    if hole.numel() == 0:
        return torch.empty_like(value), value.new_empty(hole.shape, dtype=n.wide)
    with launch.on_device_of(query):
        groups = _groups(hole, all_keys)
        return launch.attend(query.contiguous(), key.contiguous(), value.contiguous(), groups, n)


def masked_correlation_backward(
    grad: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    hole: Tensor,
    out: Tensor,
    log_sum: Tensor,
    temperature: Tensor | None,
    scale: float,
    all_keys: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The gradients of query, key, value, each in its dtype, and of `scale * temperature`, in that of log_sum.

    Args are those of the forward, its results, and the gradient of `out`.
    """
    if hole.numel() == 0:
        return torch.empty_like(query), torch.empty_like(key), torch.empty_like(value), log_sum.new_zeros(())
    with launch.on_device_of(query):
        n = launch.numbers(query, temperature, scale)
        tensors = [x.contiguous() for x in (grad, query, key, value)]
        groups = _groups(hole, all_keys)
        return launch.attend_backward(*tensors, groups, out.contiguous(), log_sum.contiguous(), n)
