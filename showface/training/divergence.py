"""What is known of a run that diverged: a loss or a weight that is not finite."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import nn

from showface.training.checkpoint import list_checkpoints


def bad_weight(networks: Mapping[str, nn.Module]) -> str | None:
    """The name of a weight that is not finite, such as `model.coarse.up8.weight`, or None. Waits for the GPU."""
    weights = {f"{kind}.{name}": x for kind, network in networks.items() for name, x in network.named_parameters()}
    finite = torch.stack([x.detach().isfinite().all() for x in weights.values()]).tolist()
    return next((name for name, good in zip(weights, finite, strict=True) if not good), None)


@contextmanager
def divergence(networks: Mapping[str, nn.Module], checkpoints: Path) -> Iterator[None]:
    """Turn an error within a diverged run into a FloatingPointError that names the last good checkpoint.

    With weights that are not finite, some layers raise ValueError, about a value that no user has set.
    """
    try:
        yield
    except (FloatingPointError, ValueError) as error:
        what = str(error)
        if isinstance(error, ValueError):
            bad = bad_weight(networks)
            if bad is None:
                raise
            what = f"the weight {bad} is not finite, after a gradient that was not"
        saved = list_checkpoints(checkpoints)
        good = (
            f"the last good checkpoint is {saved[-1]}: go on with --resume"
            if saved
            else "nothing was saved: start again"
        )
        raise FloatingPointError(f"the run diverged: {what}; {good}, for example with a smaller lr") from error
