"""How many processes train together."""

from torch import distributed


def processes() -> int:
    """The size of `torch.distributed`'s default group; 1 where there is none."""
    return distributed.get_world_size() if distributed.is_available() and distributed.is_initialized() else 1
