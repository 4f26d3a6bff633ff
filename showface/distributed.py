"""Information about the processes of distributed training, and errors of processes and of devices."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta

import torch
from torch import distributed


def world_size() -> int:
    """The number of processes in the default group of `torch.distributed`; 1 where there is no group."""
    return distributed.get_world_size() if distributed.is_available() and distributed.is_initialized() else 1


@contextmanager
def lost_processes() -> Iterator[None]:
    """Within the context, torch's error about another process that is gone becomes a ConnectionError with its rank.

    All processes that are left must be within the context, since they find out together who is missing.
    """
    try:
        yield
    except RuntimeError as error:
        if world_size() == 1 or not re.search(r"gloo|nccl|peer|connection", str(error), re.IGNORECASE):
            raise
        lost = f"{_who_is_lost()} of the {world_size()} processes is gone, or can't be reached"
        raise ConnectionError(f"{lost}; go on with --resume") from error


def _who_is_lost() -> str:
    """The ranks of lost processes, as this process sees them, or "one" where it can't know."""
    here = distributed.get_rank()
    if world_size() == 2:
        return f"rank {1 - here}"
    if distributed.get_backend() != "gloo":
        return "one"
    try:
        distributed.monitored_barrier(timeout=timedelta(seconds=5), wait_all_ranks=True)
    except RuntimeError as error:
        found = re.search(r"Ranks? ([\d, ]*\d)", str(error).replace(f"[Rank {here}]", ""))
        return f"rank {found[1]}" if found else "one"
    return "one"


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
