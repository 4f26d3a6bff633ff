"""The operators of MDRNets, as torch operators in the namespace `showface` with a choice of backends.

| operator | what it does |
|---|---|
| `memory_read`, `memory_write` | address memory blocks by cosine (DMM) |
| `memory_accumulate`, `memory_blend` | the two halves of a write, to sum over processes in between |
| `memory_address` | which slots a token reads, to look into the above |
| `masked_correlation` | known tokens answer for corrupted ones (MREM) |
| `correlation_rows` | what chosen corrupted tokens look at, to look into the above |
| `coordination_loss` | InCo² loss in linear cost |

`showface.ops.definitions` holds the plain PyTorch meaning of each.
"""

from showface.ops import backends  # noqa: F401  (registers every backend)
from showface.ops.coordination_loss import coordination_loss
from showface.ops.dispatch import choose, why_not
from showface.ops.masked_correlation import correlation_rows, masked_correlation
from showface.ops.memory import memory_accumulate, memory_address, memory_blend, memory_read, memory_write

__all__ = [
    "choose",
    "coordination_loss",
    "correlation_rows",
    "masked_correlation",
    "memory_accumulate",
    "memory_address",
    "memory_blend",
    "memory_read",
    "memory_write",
    "why_not",
]
