"""Training in stages: a network can train its parts one after the other, in one run."""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import nn


@dataclass(frozen=True)
class Stage:
    """A part of a training run.

    Attributes:
        name: passed to `training_losses`.
        share: its share of the run's steps, relative to the other stages.
        trains: names of the network's submodules that are trained. All other parameters are frozen. An empty tuple
            trains nothing by gradients, for stages that only fill buffers. None trains the whole network.
        paints: `training_losses` returns an inpainted image. Only then does the trainer apply its losses on images
            (of features, texture, adversarial) and log sample images.
    """

    name: str
    share: float = 1.0
    trains: tuple[str, ...] | None = None
    paints: bool = False

    def parameters(self, network: nn.Module) -> list[nn.Parameter]:
        """The parameters of a network that this stage trains, in the network's order."""
        if self.trains is None:
            return list(network.parameters())
        prefixes = tuple(f"{name}." for name in self.trains)
        return [x for name, x in network.named_parameters() if f"{name}.".startswith(prefixes)]


WHOLE = Stage("", paints=True)


class StageSchedule:
    """Which stage each step of a run belongs to.

    A run with at least as many steps as stages gives each stage at least one step; a shorter run drops the last ones.

    Args:
        stages: the stages in order; none means one stage that trains the whole network.
        steps: the number of steps of the run.
    """

    def __init__(self, stages: Sequence[Stage], steps: int) -> None:
        self.stages = tuple(stages) or (WHOLE,)
        count, total = len(self.stages), sum(stage.share for stage in self.stages)
        self.ends: list[int] = []
        passed, before = 0.0, 0
        for left, stage in zip(range(count - 1, -1, -1), self.stages, strict=True):
            passed += stage.share
            end = max(before + 1, min(round(steps * passed / total), steps - left))
            before = min(end, steps)
            self.ends.append(before)
        self.ends[-1] = steps

    def at(self, step: int) -> Stage:
        """The stage of the step after `step` steps; after the last step, the stage of the last step."""
        return self.stages[self._index(step)]

    def span(self, step: int) -> tuple[int, int]:
        """The first step of the stage of `step`, and the first step after it."""
        index = self._index(step)
        return (self.ends[index - 1] if index else 0), self.ends[index]

    def is_border(self, step: int) -> bool:
        """Whether a stage ends, and another one starts, after `step` steps."""
        return 0 < step < self.ends[-1] and step in self.ends

    def _index(self, step: int) -> int:
        step = min(step, self.ends[-1] - 1)
        return next(index for index, end in enumerate(self.ends) if step < end)
