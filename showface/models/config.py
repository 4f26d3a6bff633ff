"""The configuration of MDRNets: one dataclass, saved as JSON beside the weights."""

import math
from dataclasses import asdict, dataclass, fields
from typing import Any, TypeVar, cast

Config = TypeVar("Config", bound="NetworkConfig")

MAX_IMAGE_SIZE = 4096
"""The largest `image_size` of a saved model. The weights don't bound it, and filling a crop takes memory with it."""


class NetworkConfig:
    """The base class of all network configurations: a dataclass with an `image_size` that can be saved as JSON."""

    image_size: int

    def to_dict(self) -> dict[str, Any]:
        """All values as plain Python types, for JSON."""
        return asdict(cast(Any, self))

    @classmethod
    def from_dict(cls: type[Config], values: dict[str, Any]) -> Config:
        """The configuration with these values.

        Raises:
            ValueError: an unknown name, a value of another type (true is no number), or a value out of range.
        """
        unknown = set(values) - {field.name for field in fields(cast(Any, cls))}
        if unknown:
            name = cls.__name__.removesuffix("Config")
            raise ValueError(f"unknown configuration of {name}: {', '.join(sorted(unknown))}")
        for field in fields(cast(Any, cls)):
            if field.name in values:
                check_type(field.name, values[field.name], field.type)
        if values.get("image_size", 0) > MAX_IMAGE_SIZE:
            raise ValueError(f"image_size must be at most {MAX_IMAGE_SIZE}, got {values['image_size']}")
        return cls(**values)


def check_type(name: str, value: object, wanted: object) -> None:
    """Raise ValueError if a value of a configuration, as JSON has it, is not of the field's type."""
    if wanted is bool:
        fits, meaning = isinstance(value, bool), "true or false"
    elif wanted is int:
        fits, meaning = _is_integer(value), "an integer"
    elif wanted is float:
        fits, meaning = _is_integer(value) or (isinstance(value, float) and math.isfinite(value)), "a number"
    elif wanted is str:
        fits, meaning = isinstance(value, str), "a text"
    else:
        fits, meaning = isinstance(value, list | tuple) and all(map(_is_integer, value)), "a list of integers"
    if not fits:
        shown = repr(value)
        raise ValueError(f"{name} must be {meaning}, got {shown if len(shown) < 60 else shown[:60] + '...'}")


def _is_integer(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


@dataclass(frozen=True)
class MDRNetsConfig(NetworkConfig):
    """Sizes and switches of MDRNets.

    Attributes:
        regions: semantic parts of the face, the 19 classes of CelebAMask-HQ.
        coarse_channels: width of the coarse network at stride 4; twice and three times that at strides 8 and 16.
        coarse_blocks: gated blocks at stride 16 of the coarse network.
        channels: width of the features at stride 4, the input of the DMM and the MREM.
        encoder_blocks: residual blocks of the encoder.
        slots: slots in each memory block.
        memory_rate: EMA rate of a slot for one unit of written mass, in (0, 1).
        refinement_channels: width of the refinement network at stride 4; twice and four times that at 8 and 16.
        refinement_blocks: modulated residual blocks at strides 4, 8 and 16; those at 4 and 8 come twice, down and up.
        use_memory: build the DMM.
        use_enhancement: build the MREM.
        use_refinement: build the encoder and all later parts; without them the coarse image is the result.
        image_size: side in pixels of the training images; `showface.inpaint` resizes to it. The trainer sets it to
            `data.size`.
    """

    regions: int = 19
    coarse_channels: int = 48
    coarse_blocks: int = 4
    channels: int = 64
    encoder_blocks: int = 2
    slots: int = 64
    memory_rate: float = 0.05
    refinement_channels: int = 64
    refinement_blocks: tuple[int, int, int] = (1, 1, 4)
    use_memory: bool = True
    use_enhancement: bool = True
    use_refinement: bool = True
    image_size: int = 256

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if field.type is int and not (_is_integer(value) and value > 0):
                raise ValueError(f"{field.name} must be a positive integer, got {value!r}")
            check_type(field.name, value, field.type)
        if not 0 < self.memory_rate < 1:
            raise ValueError(f"memory_rate must lie in (0, 1), got {self.memory_rate}")
        if len(self.refinement_blocks) != 3 or min(self.refinement_blocks) < 0:
            raise ValueError(f"refinement_blocks must be three numbers from 0 upwards, got {self.refinement_blocks}")
        object.__setattr__(self, "refinement_blocks", tuple(self.refinement_blocks))
