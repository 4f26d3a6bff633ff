"""The face detector's network as an ONNX file."""

from pathlib import Path
from typing import Any

import torch
from torch.export import Dim

from showface.export.onnx import describe, onnx_model
from showface.export.program import LARGEST
from showface.faces.detector import MULTIPLE
from showface.faces.yunet import YuNet
from showface.files import write_atomically

TOLERANCE = 1e-2
"""The largest difference from PyTorch that a file may have, in pixels. Two runtimes differ by some 1e-4."""


def write_faces_onnx(path: str | Path, *, check: bool = True) -> float | None:
    """Write YuNet as an ONNX file, atomically, and compare it with PyTorch at three sizes.

    Input: `pictures` (B, 3, H, W) float32, RGB, 0 to 255, H and W multiples of 32. Output: `rows` (B, N, 15), see
    `YuNet.forward`: box, points and score of each place. Thresholds and `suppress` come after it.

    Returns:
        The largest difference from PyTorch, in pixels; None without a check.

    Raises:
        ValueError: the file differs from PyTorch by more than TOLERANCE. It is deleted then.
        ModuleNotFoundError: a package of the extra `export` is missing.
    """
    import onnx

    network = YuNet.bundled()
    height, width = (MULTIPLE * Dim(name, min=2, max=LARGEST // MULTIPLE) for name in ("h", "w"))
    sizes = {0: Dim("batch", min=1, max=64), 2: height, 3: width}
    program = torch.export.export(
        network, (torch.zeros(2, 3, 128, 160),), dynamic_shapes={"pictures": sizes}, strict=False
    )
    model = onnx_model(program, ("pictures",), ("rows",))
    _name_sizes(model)
    describe(
        model,
        name="YuNet, face_detection_yunet_2023mar",
        licence="MIT, Copyright (c) 2020 Shiqi Yu",
        pictures="(batch, 3, height, width) float32, RGB, 0 to 255; height and width multiples of 32",
        rows="(batch, places, 15) float32: left, top, right, bottom; five points x, y; score; in pixels",
    )
    onnx.checker.check_model(model)
    worst: float | None = None

    def write(file: Path) -> None:
        """Write and check a file. It gets its final name only if it is right."""
        nonlocal worst
        onnx.save(model, file)
        if check:
            worst = _difference(network, file)
            if not worst <= TOLERANCE:
                raise ValueError(f"onnxruntime's faces differ from PyTorch's by {worst:.2g} pixels, over {TOLERANCE:g}")

    write_atomically(path, write)
    return worst


def _name_sizes(model: Any) -> None:
    names = {"pictures": (None, None, "height", "width"), "rows": (None, "places", None)}
    for value in (*model.graph.input, *model.graph.output):
        for size, name in zip(value.type.tensor_type.shape.dim, names[value.name], strict=True):
            if name is not None:
                size.Clear()
                size.dim_param = name
        value.type.tensor_type.shape.dim[0].dim_param = "batch"


@torch.no_grad()
def _difference(network: YuNet, path: Path) -> float:
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    worst = 0.0
    for batch, height, width in ((1, 64, 64), (2, 160, 96), (1, 320, 640)):
        pictures = 255 * torch.rand(batch, 3, height, width, generator=torch.Generator().manual_seed(height))
        (rows,) = session.run(None, {"pictures": pictures.numpy()})
        worst = max(worst, float((torch.from_numpy(rows) - network(pictures)).abs().max()))
    return worst
