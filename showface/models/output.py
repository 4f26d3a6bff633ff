"""What the networks return."""

from dataclasses import dataclass

from torch import Tensor


@dataclass
class InpaintingOutput:
    """The result of one forward pass. A network without a coarse stage returns its result twice.

    Attributes:
        image: (B, 3, H, W), the result; known pixels equal the input's, bit for bit.
        coarse: (B, 3, H, W), the coarse image, with the same known pixels.
        raw_image, raw_coarse: (B, 3, H, W), both before known pixels are put back; the losses use these.
    """

    image: Tensor
    coarse: Tensor
    raw_image: Tensor
    raw_coarse: Tensor


@dataclass
class MDRNetsOutput(InpaintingOutput):
    """The result of one forward pass of MDRNets.

    Attributes:
        parsing: (B, K, h, w), the parsing's logits at stride 4.
    """

    parsing: Tensor
