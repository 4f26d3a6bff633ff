"""Networks as ONNX files: images of any size, checked against PyTorch when they are written."""

import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.export import ExportedProgram

from showface.export.decompositions import decompositions
from showface.export.detail import with_detail_input
from showface.export.program import LARGEST, export_program, stride_of
from showface.files import write_atomically
from showface.models import InpaintingNetwork
from showface.models.interpolation import Difference

OPSET = 20
TOLERANCE = 1e-4
SIZES = ((256, 256), (128, 192), (200, 120), (97, 161), (320, 64))  # height and width of the images of a check
RATIOS = (0.0, 0.2, 0.5, 1.0)  # their holes, as fractions of the image
HALF_FROM = 64  # numbers; smaller constants stay float32, since they take no room


@dataclass(frozen=True)
class Parity:
    """How far an ONNX file is from PyTorch: the largest difference of the result and of the coarse image."""

    height: int
    width: int
    hole_ratio: float
    image: float
    coarse: float

    @property
    def worst(self) -> float:
        return max(self.image, self.coarse)


def onnx_model(program: ExportedProgram, inputs: Sequence[str], outputs: Sequence[str], *, fold: bool = True) -> Any:
    """An exported program as an `onnx.ModelProto` that runs everywhere: without operators of this package.

    Args:
        program, inputs, outputs: the program, and the names of its inputs and outputs.
        fold: compute now what depends on weights alone. Without it, every weight that is used is a constant of the
            file, by its name in the program.

    Raises:
        ModuleNotFoundError: a package of the extra `export` is missing.
    """
    import onnxscript  # noqa: F401  # torch.onnx needs it; without it, its error names no extra

    with _quiet():
        dense = program.run_decompositions(decompositions())
        result = torch.onnx.export(
            dense,
            dynamo=True,
            opset_version=OPSET,
            input_names=list(inputs),
            output_names=list(outputs),
            external_data=False,
            verbose=False,
            optimize=fold,
        )
    assert result is not None
    model = result.model_proto
    remove_traces(model)
    return model


def write_onnx(
    network: InpaintingNetwork,
    path: str | Path,
    *,
    half: bool = False,
    difference: Mapping[str, Difference] | None = None,
    licence: str = "not stated",
    name: str = "showface",
) -> None:
    """Write a network as an ONNX file, atomically.

    Inputs: `image` (B, 3, H, W) float32 in [-1, 1], and `hole` (B, 1, H, W) float32, 1 = corrupted, at any height and
    width of at most LARGEST pixels. Outputs: `filled` and `coarse`, both (B, 3, H, W) float32 in [-1, 1], with the
    known pixels of `image`.

    Args:
        network: in eval mode, on the CPU.
        half: store weights as float16. They are converted to float32 when they are used.
        difference: of the network's weights to sharp ones. The file then has a third input `detail`, see
            `showface.export.detail`.
        licence, name: written into the file's metadata; the licence is that of the weights.

    Raises:
        ModuleNotFoundError: a package of the extra `export` is missing.
        ValueError: the network is in training mode.
    """
    import onnx

    stride = stride_of(network)
    model = onnx_model(export_program(network), ("image", "hole"), ("filled", "coarse"), fold=difference is None)
    pad_inside(model, stride)
    if half:
        store_half(model)
    if difference is not None:
        model = with_detail_input(model, difference)
        remove_traces(model)
    describe(
        model,
        name=name,
        licence=licence,
        system=network.system,
        weights="float16" if half else "float32",
        image_size=network.config.image_size,
        image="(batch, 3, height, width) float32, RGB, -1 to 1; pixels under the hole are ignored",
        hole="(batch, 1, height, width) float32, 1 = fill this pixel, 0 = known",
        filled="(batch, 3, height, width) float32, RGB, -1 to 1; known pixels are those of image",
        coarse="like filled, from the coarse stage",
        **({} if difference is None else {"detail": "() float32, 0 = smooth to 1 = sharp"}),
        largest_side=LARGEST,
    )
    onnx.checker.check_model(model, full_check=False)
    write_atomically(path, lambda temporary: onnx.save(model, temporary))


def remove_traces(model: Any) -> None:
    """Remove from an `onnx.ModelProto` the names and traces of Python code, and the shapes of values inside."""
    for node in model.graph.node:
        del node.metadata_props[:]
        node.doc_string = ""
    del model.graph.value_info[:]


def describe(model: Any, *, name: str, **values: object) -> None:
    """Set the producer and the metadata of an `onnx.ModelProto`."""
    import onnx

    model.producer_name, model.producer_version = "showface", version("showface")
    model.graph.name, model.domain, model.doc_string = name, "showface", ""
    facts = {"name": name, "version": version("showface")} | {key: str(value) for key, value in values.items()}
    onnx.helper.set_model_props(model, facts)


def pad_inside(model: Any, stride: int) -> None:
    """Let a model of two images take any height and width: it pads its inputs to multiples and crops its outputs.

    The padding repeats the last row and column, as the networks do.
    """
    import onnx
    from onnx import helper, numpy_helper

    graph = model.graph
    inner = {x.name: f"{x.name}_padded" for x in graph.input} | {x.name: f"{x.name}_uncropped" for x in graph.output}
    for node in graph.node:
        node.input[:] = [inner.get(x, x) for x in node.input]
        node.output[:] = [inner.get(x, x) for x in node.output]
    constants = {"pad_stride": [stride, stride], "pad_zero": [0, 0], "pad_axes": [2, 3]}
    graph.initializer.extend(numpy_helper.from_array(np.array(v, np.int64), k) for k, v in constants.items())
    before = [
        helper.make_node("Shape", [graph.input[0].name], ["pad_size"], start=2, end=4),
        helper.make_node("Neg", ["pad_size"], ["pad_minus"]),
        helper.make_node("Mod", ["pad_minus", "pad_stride"], ["pad_by"]),  # like Python's: never negative
        helper.make_node("Concat", ["pad_zero", "pad_by"], ["pads"], axis=0),
        *(helper.make_node("Pad", [x.name, "pads", "", "pad_axes"], [inner[x.name]], mode="edge") for x in graph.input),
    ]
    after = [
        helper.make_node("Slice", [inner[x.name], "pad_zero", "pad_size", "pad_axes"], [x.name]) for x in graph.output
    ]
    nodes = [*before, *graph.node, *after]
    del graph.node[:]
    graph.node.extend(nodes)
    for value in (*graph.input, *graph.output):
        sizes = value.type.tensor_type.shape.dim
        for dim, size in ((0, "batch"), (2, "height"), (3, "width")):
            sizes[dim].Clear()
            sizes[dim].dim_param = size
    onnx.checker.check_model(model)


def store_half(model: Any) -> None:
    """Store large float32 constants as float16, each with a conversion to float32 at its use."""
    from onnx import TensorProto, helper, numpy_helper

    casts = []
    for constant in model.graph.initializer:
        if constant.data_type != TensorProto.FLOAT:
            continue
        values = numpy_helper.to_array(constant)
        with np.errstate(over="ignore"):
            small = values.astype(np.float16)
        if values.size < HALF_FROM or not np.isfinite(small).all():
            continue
        full = constant.name
        constant.CopyFrom(numpy_helper.from_array(small, f"{full}_half"))
        casts.append(helper.make_node("Cast", [f"{full}_half"], [full], to=TensorProto.FLOAT))
    nodes = [*casts, *model.graph.node]
    del model.graph.node[:]
    model.graph.node.extend(nodes)


def example_input(height: int, width: int, hole_ratio: float, batch: int = 1) -> tuple[Tensor, Tensor]:
    """A smooth random image (B, 3, H, W) in [-1, 1] and a hole (B, 1, H, W) of about this ratio."""
    source = torch.Generator().manual_seed(height * width + round(100 * hole_ratio))
    noise = torch.rand(batch, 3, -(-height // 8) + 1, -(-width // 8) + 1, generator=source)
    image = torch.nn.functional.interpolate(noise, (height, width), mode="bicubic").mul(2).sub(1).clamp(-1, 1)
    threshold = torch.quantile(image[:, :1].flatten(1), hole_ratio, dim=1).view(-1, 1, 1, 1)
    hole = image[:, :1] <= threshold if hole_ratio > 0 else torch.zeros(batch, 1, height, width)
    return image, hole.float()


@torch.no_grad()
def check_onnx(
    network: InpaintingNetwork,
    path: str | Path,
    sizes: Sequence[tuple[int, int]] = SIZES,
    ratios: Sequence[float] = RATIOS,
    detail: float | None = None,
) -> list[Parity]:
    """Compare an ONNX file, run by onnxruntime on the CPU, with the network. Batches of 1 and 2 are used in turn.

    Args:
        network: on the CPU, with the weights that the file has; see `rounded` for a file with float16 weights.
        sizes, ratios: of the images and their holes.
        detail: the third input of a file that has one.

    Raises:
        ModuleNotFoundError: onnxruntime is missing.
    """
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    more = {} if detail is None else {"detail": np.array(detail, np.float32)}
    rows = []
    for i, (height, width) in enumerate(sizes):
        for ratio in ratios:
            image, hole = example_input(height, width, ratio, batch=1 + i % 2)
            filled, coarse = session.run(None, {"image": image.numpy(), "hole": hole.numpy(), **more})
            output = network(image, hole)
            differences = [
                float((torch.from_numpy(x) - y).abs().max())
                for x, y in ((filled, output.image), (coarse, output.coarse))
            ]
            rows.append(Parity(height, width, ratio, *differences))
    return rows


def rounded(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A network's state dict as a file with float16 weights has it: large weights are rounded, and still float32."""
    return {
        name: x.half().float() if x.dtype == torch.float32 and x.numel() >= HALF_FROM else x
        for name, x in state.items()
    }


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the exporter's remarks about packages that it does not need and about its own code."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "torch.onnx._internal.exporter._registration")]
    levels = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
