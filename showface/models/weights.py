"""Checks of a saved model's weights against its configuration, before a network is built.

They read only the header of the weights, so that a wrong or hostile configuration can't fill the memory.
"""

from collections.abc import Mapping
from dataclasses import fields
from math import prod
from pathlib import Path
from typing import Any, NamedTuple, cast

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from showface.models.config import NetworkConfig

_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I8": torch.int8,
}


class UnreadableWeightsError(ValueError):
    """A file of weights that is no safetensors file, or is broken."""


class Entry(NamedTuple):
    """The shape and the dtype of a tensor in a file; the dtype is None for one that no network has."""

    shape: tuple[int, ...]
    dtype: torch.dtype | None
    dtype_name: str


def weights_header(path: Path) -> dict[str, Entry]:
    """The tensors of a safetensors file by name, from its header.

    Raises:
        UnreadableWeightsError: it is no safetensors file, or a broken one.
    """
    try:
        with safe_open(path, "pt") as file:
            found = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118  (it is no mapping)
            return {
                name: Entry(tuple(x.get_shape()), _DTYPES.get(x.get_dtype()), x.get_dtype())
                for name, x in found.items()
            }
    except (SafetensorError, OSError, ValueError, RuntimeError) as error:
        raise UnreadableWeightsError(f"{path} does not fit its configuration: it can't be read: {error}") from error


def check_sizes(config: NetworkConfig, header: Mapping[str, Entry], file: str) -> None:
    """Check that no number of a configuration is too large for the weights.

    Each block has at least a tensor of its own, and each unit of a width at least a number.

    Raises:
        ValueError: one is; the message names it.
    """
    tensors, numbers = len(header), sum(prod(entry.shape) for entry in header.values())
    for field in fields(cast(Any, config)):
        value = getattr(config, field.name)
        if field.type in (bool, float, str) or field.name == "image_size":
            continue
        most, what = (tensors, "tensors") if field.name.endswith("blocks") else (numbers, "numbers")
        if max(value if isinstance(value, tuple) else (value,)) > max(most, _largest_default(field.default)):
            raise ValueError(f"{field.name} is {value}, and {file} has only {most:,} {what}")


def _largest_default(default: object) -> int:
    values = default if isinstance(default, tuple) else (default,)
    return max((value for value in values if isinstance(value, int)), default=0)


def check_weights(expected: Mapping[str, Tensor], header: Mapping[str, Entry]) -> None:
    """Check that a file has exactly the tensors of a network, with their shapes and kinds of dtypes.

    A floating-point tensor may have another floating-point dtype, and is converted.

    Args:
        expected: the network's state dict, which may be on the meta device.

    Raises:
        ValueError: it has not; the message names up to three tensors.
    """
    problems = [f"{name} is missing" for name in expected if name not in header]
    problems += [f"{name} is unknown" for name in header if name not in expected]
    for name in expected.keys() & header.keys():
        tensor, entry = expected[name], header[name]
        if tuple(tensor.shape) != entry.shape:
            problems.append(f"{name} must have the shape {tuple(tensor.shape)}, not {entry.shape}")
        elif tensor.is_floating_point() and not (entry.dtype and entry.dtype.is_floating_point):
            problems.append(f"{name} must be floating point, not {entry.dtype_name}")
        elif not tensor.is_floating_point() and tensor.dtype != entry.dtype:
            problems.append(f"{name} must be {tensor.dtype}, not {entry.dtype_name}")
    if problems:
        rest = f"; and {len(problems) - 3} more" if len(problems) > 3 else ""
        raise ValueError("; ".join(sorted(problems)[:3]) + rest)
