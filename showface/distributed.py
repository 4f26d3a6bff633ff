"""Information about the processes of distributed training, and errors of devices."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import distributed


def world_size() -> int:
    """The number of processes in the default group of `torch.distributed`; 1 where there is no group."""
    return distributed.get_world_size() if distributed.is_available() and distributed.is_initialized() else 1


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
