"""Information about the processes of distributed training, and errors of processes and of devices."""

import re
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import distributed


def world_size() -> int:
    """The number of processes in the default group of `torch.distributed`; 1 where there is no group."""
    return distributed.get_world_size() if distributed.is_available() and distributed.is_initialized() else 1


@contextmanager
def lost_processes() -> Iterator[None]:
    """Within the context, torch's error about another process that is gone becomes a ConnectionError.

    With two processes, the message names the rank that is gone.
    """
    try:
        yield
    except RuntimeError as error:
        if world_size() == 1 or not re.search(r"gloo|nccl|peer|connection", str(error), re.IGNORECASE):
            raise
        # Of more than two, torch does not say which one.
        who = f"rank {1 - distributed.get_rank()}" if world_size() == 2 else "one"
        lost = f"{who} of the {world_size()} processes is gone, or can't be reached"
        raise ConnectionError(f"{lost}; go on with --resume") from error


@contextmanager
def device_errors(device: str | torch.device) -> Iterator[None]:
    """Within the context, torch's errors about a device become a ValueError that names the device."""
    try:
        yield
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"device {device} can't be used: {str(error).splitlines()[0]}") from error


def check_device(device: str | torch.device) -> None:
    """Raise ValueError if there is no such device."""
    with device_errors(device):
        torch.empty(1, device=device)
