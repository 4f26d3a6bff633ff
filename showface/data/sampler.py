"""The order of training: an endless stream that can be resumed and shared."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from torch.utils.data import Sampler

# Keeps the shuffling's random stream apart from the items': seeds (a, b) and (a, b, 0) give the same stream.
_SHUFFLE_KEY = 1


class EpochSampler(Sampler[int]):
    """The endless shuffled stream of indices for a `FaceDataset`, from any sample onwards, or a process's part of it.

    Sample `n` of the stream is `epoch * length + shuffled index` with `epoch = n // length`; each epoch holds
    every index once, in an order of its own. A run that stopped after `n` samples goes on with `start=n`.

    Several processes train on the stream together: of each `batch` samples of it, process `rank` of `world` gets the
    `rank`-th of `world` equal parts, `batch // world` samples in a row. `start` and `stop` count samples of the whole
    stream, so the batches of a run stay the same when it goes on with another number of processes.

    Raises:
        ValueError: `length` below 1, a negative seed or start, `stop` below `start`, a `batch` that `world` doesn't
            divide, a `start` or `stop` within a batch, or a `rank` that isn't in 0..world - 1.
    """

    def __init__(
        self,
        length: int,
        seed: int = 0,
        start: int = 0,
        stop: int | None = None,
        *,
        batch: int = 1,
        rank: int = 0,
        world: int = 1,
    ) -> None:
        """
        Args:
            length: number of items of the dataset.
            seed: any integer from 0 upwards.
            start: the first sample of the stream that is given.
            stop: the sample to stop before; None never stops.
            batch: samples of all processes together in one step.
            rank, world: which process this is, of how many.
        """
        if length < 1 or seed < 0 or start < 0 or (stop is not None and stop < start):
            raise ValueError(
                f"need length >= 1, seed >= 0 and 0 <= start <= stop; got {length}, {seed}, {start}, {stop}"
            )
        if world < 1 or not 0 <= rank < world or batch < 1 or batch % world:
            raise ValueError(f"need 0 <= rank < world and a batch that world divides; got {rank}, {world}, {batch}")
        if start % batch or (stop is not None and stop % batch):
            raise ValueError(f"start and stop must be multiples of the batch of {batch}, got {start} and {stop}")
        self.length, self.seed, self.start, self.stop = length, seed, start, stop
        self.batch, self.rank, self.world = batch, rank, world

    def __iter__(self) -> Iterator[int]:
        sample = self.start
        while self.stop is None or sample < self.stop:
            epoch, first = divmod(sample, self.length)
            order = np.random.default_rng((self.seed, epoch, 0, _SHUFFLE_KEY)).permutation(self.length)
            last = self.length if self.stop is None else min(self.length, first + self.stop - sample)
            within_batch = np.arange(sample, sample + last - first) % self.batch
            mine = within_batch // (self.batch // self.world) == self.rank
            for index in order[first:last][mine]:
                yield epoch * self.length + int(index)
            sample += last - first

    def __len__(self) -> int:
        """Number of samples of this process from `start` to `stop`; an endless stream has none (TypeError)."""
        if self.stop is None:
            raise TypeError("an endless EpochSampler has no length")
        return (self.stop - self.start) // self.world
