"""The configuration of MDRNets: one dataclass, saved as JSON beside the weights."""

from dataclasses import asdict, dataclass, fields
from typing import Any, TypeVar, cast

Config = TypeVar("Config", bound="NetworkConfig")


class NetworkConfig:
    """The base class of all network configurations: a dataclass with an `image_size` that can be saved as JSON."""

    image_size: int

    def to_dict(self) -> dict[str, Any]:
        """All values as plain Python types, for JSON."""
        return asdict(cast(Any, self))

    @classmethod
    def from_dict(cls: type[Config], values: dict[str, Any]) -> Config:
        """The configuration with these values. Raises ValueError for an unknown name."""
        unknown = set(values) - {field.name for field in fields(cast(Any, cls))}
        if unknown:
            name = cls.__name__.removesuffix("Config")
            raise ValueError(f"unknown configuration of {name}: {', '.join(sorted(unknown))}")
        return cls(**values)


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
        image_size: side in pixels of the training images; `showface.inpaint` resizes to it.
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
            if field.type is int and not (isinstance(value, int) and value > 0):
                raise ValueError(f"{field.name} must be a positive integer, got {value!r}")
        if not 0 < self.memory_rate < 1:
            raise ValueError(f"memory_rate must lie in (0, 1), got {self.memory_rate}")
        if len(self.refinement_blocks) != 3:
            raise ValueError(f"refinement_blocks must be three numbers, got {self.refinement_blocks}")
        object.__setattr__(self, "refinement_blocks", tuple(self.refinement_blocks))
