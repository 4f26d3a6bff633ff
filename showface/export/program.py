"""Networks as programs of `torch.export`: images of any size that is a multiple of the network's stride."""

from collections.abc import Callable
from pathlib import Path
from typing import cast

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from showface.files import write_atomically
from showface.models import InpaintingNetwork
from showface.nn.fill import EXPORTED_LEVELS

LARGEST = 2**EXPORTED_LEVELS  # longest side in pixels of the images that an exported program takes


class ImageAndCoarse(nn.Module):
    """A network that returns a tuple: the result and the coarse image, both (B, 3, H, W) in [-1, 1]."""

    def __init__(self, network: InpaintingNetwork) -> None:
        super().__init__()
        self.network = network

    def forward(self, image: Tensor, hole: Tensor) -> tuple[Tensor, Tensor]:
        output = self.network(image, hole)
        # A network without a coarse stage returns one tensor twice, which a program can't.
        coarse = output.coarse.clone() if output.coarse is output.image else output.coarse
        return output.image, coarse


def stride_of(network: InpaintingNetwork) -> int:
    """The number of which the sides of a program's images are multiples."""
    return int(cast(int, network.stride))


def export_program(network: InpaintingNetwork) -> ExportedProgram:
    """A network as a program with a dynamic batch, height and width. It keeps this package's operators.

    Its inputs are image (B, 3, H, W) in [-1, 1] and hole (B, 1, H, W), 1 = corrupted, both float32 on the network's
    device. H and W are multiples of `stride_of(network)`, up to LARGEST. It returns the result and the coarse image.

    Raises:
        ValueError: the network is in training mode.
    """
    if network.training:
        raise ValueError("the network is in training mode: call .eval() before it is exported")
    stride, device = stride_of(network), next(network.parameters()).device
    # Any batch but 1, and any sizes: torch.export takes 0 and 1 for constants.
    image, hole = (torch.zeros(2, channels, 4 * stride, 5 * stride, device=device) for channels in (3, 1))
    hole[..., stride : 2 * stride, stride : 3 * stride] = 1
    largest = LARGEST // stride
    batch, height, width = Dim("batch", min=1, max=1024), Dim("h", min=2, max=largest), Dim("w", min=2, max=largest)
    sizes = {0: batch, 2: stride * height, 3: stride * width}
    with torch.no_grad():
        return torch.export.export(
            ImageAndCoarse(network).eval(),
            (image, hole),
            dynamic_shapes={"image": sizes, "hole": sizes},
            strict=False,
        )


def write_program(network: InpaintingNetwork, path: str | Path) -> None:
    """Write a network as a file that `load_program` reads, atomically. It keeps this package's operators."""
    facts = {"name": "showface", "system": network.system, "stride": str(stride_of(network))}
    program = export_program(network)
    write_atomically(path, lambda temporary: torch.export.save(program, temporary, extra_files=facts))


def load_program(path: str | Path) -> Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """Read a file of `write_program`: a function of image and hole, see `export_program`.

    `torch.export.load` does the same once `showface` is imported, which registers the operators.
    """
    return torch.export.load(path).module()


def write_compiled(network: InpaintingNetwork, path: str | Path) -> None:
    """Compile a network with AOTInductor for its device, and write it as a package for `load_compiled`, atomically.

    Raises:
        FileNotFoundError: there is no C++ compiler.
    """
    from torch._inductor import aoti_compile_and_package
    from torch._inductor.exc import InvalidCxxCompiler

    program = export_program(network)
    try:
        write_atomically(path, lambda temporary: aoti_compile_and_package(program, package_path=str(temporary)))
    except InvalidCxxCompiler as error:
        raise FileNotFoundError("AOTInductor needs a C++ compiler, such as g++: install one, or set CXX") from error


def load_compiled(path: str | Path) -> Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """Load a package of `write_compiled`: a function of image and hole, see `export_program`."""
    from torch._inductor import aoti_load_package

    compiled = aoti_load_package(str(path))
    return lambda image, hole: tuple(compiled(image, hole))
