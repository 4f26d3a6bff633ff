"""The order of training: an endless stream that can be resumed and shared."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from torch.utils.data import Sampler

# Keeps the shuffling's random stream apart from the items': seeds (a, b) and (a, b, 0) give the same stream.
_SHUFFLE_KEY = 1


class EpochSampler(Sampler[int]):
    """The endless shuffled stream of indices for `FaceFolder`, from any sample onwards.

    Sample `n` of the stream is `epoch * length + shuffled index` with `epoch = n // length`; each epoch holds
    every index once, in an order of its own. A run that stopped after `n` samples goes on with `start=n`.

    Raises:
        ValueError: `length` below 1, a negative seed or start, or `stop` below `start`.
    """

    def __init__(self, length: int, seed: int = 0, start: int = 0, stop: int | None = None) -> None:
        """
        Args:
            length: number of items of the dataset.
            seed: any integer from 0 upwards.
            start: the first sample of the stream that is given.
            stop: the sample to stop before; None never stops.
        """
        if length < 1 or seed < 0 or start < 0 or (stop is not None and stop < start):
            raise ValueError(
                f"need length >= 1, seed >= 0 and 0 <= start <= stop; got {length}, {seed}, {start}, {stop}"
            )
        self.length, self.seed, self.start, self.stop = length, seed, start, stop

    def __iter__(self) -> Iterator[int]:
        sample = self.start
        while self.stop is None or sample < self.stop:
            epoch, first = divmod(sample, self.length)
            order = np.random.default_rng((self.seed, epoch, 0, _SHUFFLE_KEY)).permutation(self.length)
            last = self.length if self.stop is None else min(self.length, first + self.stop - sample)
            for index in order[first:last]:
                yield epoch * self.length + int(index)
            sample += last - first

    def __len__(self) -> int:
        """Number of samples from `start` to `stop`; an endless stream has none (TypeError)."""
        if self.stop is None:
            raise TypeError("an endless EpochSampler has no length")
        return self.stop - self.start
