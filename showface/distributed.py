"""Information about the processes of distributed training."""

from torch import distributed


def world_size() -> int:
    """The number of processes in the default group of `torch.distributed`; 1 where there is no group."""
    return distributed.get_world_size() if distributed.is_available() and distributed.is_initialized() else 1
