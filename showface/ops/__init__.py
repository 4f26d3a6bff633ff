"""The operators of MDRNets, as torch operators in the namespace `showface` with a choice of backends.

| operator | what it does |
|---|---|
| `memory_read`, `memory_write` | read and write memory blocks by cosine attention (DMM) |
| `memory_accumulate`, `memory_blend` | the two halves of a write; processes add their sums in between |
| `memory_address` | the attention weights of each token over its slots, for inspection |
| `masked_correlation` | corrupted tokens attend to known tokens (MREM) |
| `coordination_loss` | InCo² loss in time linear in the number of tokens |

`showface.ops.definitions` defines each operator in plain PyTorch.
"""

from showface.ops import backends  # noqa: F401  (registers every backend)
from showface.ops.coordination_loss import coordination_loss
from showface.ops.dispatch import choose, why_not
from showface.ops.masked_correlation import masked_correlation
from showface.ops.memory import memory_accumulate, memory_address, memory_blend, memory_read, memory_write

__all__ = [
    "choose",
    "coordination_loss",
    "masked_correlation",
    "memory_accumulate",
    "memory_address",
    "memory_blend",
    "memory_read",
    "memory_write",
    "why_not",
]
