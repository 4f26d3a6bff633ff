"""Two saved models in one: smooth weights, and the difference that makes them sharp. `detail` chooses between them.

A folder with a file `difference.safetensors` has both. Its weights are `model.safetensors + detail * difference`, with
`detail` in [0, 1]; its `config.json` may give the usual `detail`. Interpolation between weights is from Wang et al.,
*ESRGAN*, 2018; the file is *ours*.

A row is what belongs to one index of a tensor's first axis. Each row of the difference is stored in 8-bit integers and
one float32 scale, a quarter of the size of float32. The error is at most 1/254 of the row's largest difference.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from showface.files import write_atomically
from showface.models.find import DIFFERENCE_FILE, WEIGHTS_FILE
from showface.models.weights import UnreadableWeightsError, weights_header

_SCALE = ".scale"
_LEVELS = 127


class Difference(NamedTuple):
    """What is added to a tensor: `levels`, int8 of the tensor's shape, times `scale`, a float32 for each row."""

    levels: Tensor
    scale: Tensor


def save_difference(folder: str | Path, sharp: nn.Module) -> None:
    """Write `difference.safetensors` into the folder of a saved model, so that `detail=1` gives the weights of `sharp`.

    Both models have one architecture. Integers, such as the memory's counters of steps, stay those of the folder.

    Raises:
        ValueError: another architecture.
    """
    folder = Path(folder)
    smooth, state = load_file(folder / WEIGHTS_FILE), sharp.state_dict()
    shapes = [{name: x.shape for name, x in weights.items()} for weights in (smooth, state)]
    if shapes[0] != shapes[1]:
        raise ValueError(f"the sharp model must have the tensors and shapes of {folder / WEIGHTS_FILE}")
    stored = {}
    for name, weight in smooth.items():
        if not weight.is_floating_point():
            continue
        rows = _rows(state[name].detach().cpu().float() - weight.float())
        scale = (rows.abs().amax(1) / _LEVELS).clamp_min(torch.finfo(torch.float32).tiny)
        stored[name] = (rows / scale[:, None]).round().to(torch.int8).view(weight.shape)
        stored[name + _SCALE] = scale
    write_atomically(folder / DIFFERENCE_FILE, lambda path: save_file(stored, path))


def read_weights(folder: Path, detail: float) -> dict[str, Tensor]:
    """The weights of a saved model: as they are stored, or in float32 if the folder has a difference.

    Args:
        folder: of a saved model.
        detail: 0 = smooth to 1 = sharp. Without a difference it has no effect.

    Raises:
        UnreadableWeightsError: a file is no safetensors file, or the difference does not fit the weights.
    """
    state = load_file(folder / WEIGHTS_FILE)
    if not (folder / DIFFERENCE_FILE).is_file():
        return state
    difference = read_difference(folder, state)
    return add_difference(state, difference, detail) if detail else state


def read_difference(folder: Path, state: Mapping[str, Tensor]) -> dict[str, Difference]:
    """The difference of a saved model that has one, by the names of its floating-point tensors.

    Args:
        folder: of a saved model.
        state: its weights.

    Raises:
        UnreadableWeightsError: the file is no safetensors file, or does not fit the weights.
    """
    path = folder / DIFFERENCE_FILE
    names = [name for name, weight in state.items() if weight.is_floating_point()]
    expected = {name: (tuple(state[name].shape), torch.int8) for name in names}
    expected |= {name + _SCALE: ((len(_rows(state[name])),), torch.float32) for name in names}
    if expected != {name: (entry.shape, entry.dtype) for name, entry in weights_header(path).items()}:
        raise UnreadableWeightsError(f"{path} does not fit {WEIGHTS_FILE}: it has other tensors, shapes or dtypes")
    stored = load_file(path)
    return {name: Difference(stored[name], stored[name + _SCALE]) for name in names}


def add_difference(
    state: Mapping[str, Tensor], difference: Mapping[str, Difference], detail: float
) -> dict[str, Tensor]:
    """The weights `state + detail * difference`, those that change in float32."""
    result = dict(state)
    for name, (levels, scale) in difference.items():
        rows = _rows(levels.float()) * (detail * scale[:, None])
        result[name] = state[name].float() + rows.view(levels.shape)
    return result


def _rows(x: Tensor) -> Tensor:
    """A tensor of any number of axes as a matrix, with a row for each index of its first axis."""
    return x.reshape(x.shape[0] if x.dim() else 1, -1)
