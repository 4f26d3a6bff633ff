"""The order of the training samples: an endless stream that can be resumed, and shared by processes."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from torch.utils.data import Sampler

# Separates the random numbers of the shuffling from those of the samples: NumPy takes seeds (a, b) and (a, b, 0) as
# the same seed.
_SHUFFLE_KEY = 1


class EpochSampler(Sampler[int]):
    """An endless shuffled stream of indices for a `FaceDataset`, or one process's part of it.

    Sample `n` of the stream is `epoch * length + shuffled index` with `epoch = n // length`. Each epoch holds every
    index once, in a new order. A run that stopped after `n` samples continues with `start=n`.

    Several processes can share the stream. Each batch of `batch` samples is split into `world` equal parts of
    consecutive samples, and process `rank` gets part number `rank`. `start` and `stop` count samples of the whole
    stream, so a run keeps its batches when it continues with another number of processes.

    Raises:
        ValueError: `length` below 1, a negative seed or start, `stop` below `start`, `world` that doesn't divide
            `batch`, `start` or `stop` within a batch, or `rank` outside 0..world - 1.
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
            length: number of faces in the dataset.
            seed: an integer >= 0.
            start: the first sample of the stream.
            stop: the end of the stream, exclusive; None for no end.
            batch: samples per step, over all processes.
            rank, world: index of this process, and number of processes.
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
        """Number of this process's samples from `start` to `stop`. Raises TypeError for an endless stream."""
        if self.stop is None:
            raise TypeError("an endless EpochSampler has no length")
        return (self.stop - self.start) // self.world
