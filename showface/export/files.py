"""Write a model or the face detector as a file of the kind that its name says."""

from pathlib import Path
from typing import TYPE_CHECKING

from showface.files import refuse_overwrite, write_atomically

if TYPE_CHECKING:
    from collections.abc import Mapping

    from rich.table import Table

    from showface.export.onnx import Parity
    from showface.models import InpaintingNetwork
    from showface.models.interpolation import Difference

KINDS = (".aoti.pt2", ".onnx", ".pt2")  # the longest ending first


def kind_of(path: Path) -> str:
    """The ending that says what a file is. Raises ValueError for others."""
    for kind in KINDS:
        if path.name.lower().endswith(kind):
            return kind
    raise ValueError(f"the output must end in .onnx, .pt2 or .aoti.pt2, got {path.name}")


def check_output(path: Path, overwrite: bool) -> None:
    """Check, before any work starts, that a file can be written.

    Raises:
        FileNotFoundError: the folder does not exist.
        FileExistsError: the file exists, and `overwrite` is False; or it is a folder.
    """
    if not path.parent.is_dir():
        raise FileNotFoundError(f"there is no folder {path.parent}")
    refuse_overwrite(path, (), overwrite)


def export_faces(path: str | Path, *, check: bool = True, overwrite: bool = False) -> float | None:
    """Write the face detector as ONNX. Returns the largest difference from PyTorch in pixels, None without a check.

    Raises:
        ValueError: another ending than .onnx, or a file that differs too much from PyTorch, which is deleted.
        FileNotFoundError, FileExistsError: see `check_output`.
        ModuleNotFoundError: a package of the extra `export` is missing.
    """
    path = Path(path)
    if kind_of(path) != ".onnx":
        raise ValueError(f"the face detector is exported as .onnx only, got {path.name}")
    check_output(path, overwrite)
    from showface.export.faces import write_faces_onnx

    return write_faces_onnx(path, check=check)


def export_model(
    path: str | Path,
    model: str = "default",
    *,
    half: bool = False,
    compiled: bool = False,
    check: bool = True,
    overwrite: bool = False,
    device: str = "cpu",
    detail: float | None = None,
    detail_input: bool = False,
) -> "list[Parity]":
    """Write a model as ONNX (.onnx), for torch.export.load (.pt2), or compiled by AOTInductor (.aoti.pt2).

    Args:
        model: bundled model, or folder of a saved model.
        half: float16 weights, for ONNX only.
        compiled: compile with AOTInductor, whatever kind of .pt2 the name says.
        check: compare an ONNX file with PyTorch.
        device: where a .pt2 runs; ONNX files know no device.
        detail: as for `showface.load_model`.
        detail_input: make `detail` an input of an ONNX file, for models that have the choice.

    Returns:
        What the check measured; empty without a check.

    Raises:
        ValueError: another ending, or options that don't fit it; a model that draws samples; or the ONNX file differs
            from PyTorch by more than TOLERANCE. It is deleted then.
        FileNotFoundError, FileExistsError: see `check_output`; or AOTInductor has no compiler.
        ModuleNotFoundError: a package of the extra `export` is missing.
    """
    path = Path(path)
    kind = kind_of(path)
    if half and kind != ".onnx":
        raise ValueError("--half is for .onnx files")
    if compiled and kind == ".onnx":
        raise ValueError("--compile is for .pt2 files")
    if detail_input and kind != ".onnx":
        raise ValueError("--detail-input is for .onnx files")
    if detail_input and detail is not None:
        raise ValueError(f"give either --detail-input or --detail, got both, with {detail}")
    check_output(path, overwrite)
    if kind == ".onnx":
        return _export_onnx(path, model, half, check, detail, detail_input)
    from showface.export.program import write_compiled, write_program

    write = write_compiled if compiled or kind == ".aoti.pt2" else write_program
    write(_load(model, device, detail), path)
    return []


def _load(model: str | Path, device: str, detail: float | None) -> "InpaintingNetwork":
    from showface.baselines.pluralistic import PluralisticBaseline
    from showface.registry import load_model

    network = load_model(model, device, detail=detail)
    if isinstance(network, PluralisticBaseline):
        raise ValueError(f"{network.system} draws its samples in a loop with random numbers, and can't be exported")
    return network


def _export_onnx(
    path: Path, model: str, half: bool, check: bool, detail: float | None, detail_input: bool
) -> "list[Parity]":
    from showface.export.onnx import TOLERANCE, write_onnx
    from showface.models.find import find_detail
    from showface.models.interpolation import read_difference
    from showface.registry import about_model

    about = about_model(model)
    network = _load(about.folder, "cpu", 0.0 if detail_input else find_detail(model, detail))
    difference = read_difference(about.folder, network.state_dict()) if detail_input else None
    rows: list[Parity] = []

    def write(file: Path) -> None:
        """Write and check a file. It gets its final name only if it is right."""
        name = f"showface {about.name}"
        write_onnx(network, file, half=half, difference=difference, name=name, licence=about.licence)
        rows.extend(_check_onnx(network, file, half, difference) if check else [])
        worst = max((row.worst for row in rows), default=0.0)
        if not worst <= TOLERANCE:
            raise ValueError(f"onnxruntime's results differ from PyTorch's by {worst:.2g}, more than {TOLERANCE:g}")

    write_atomically(path, write)
    return rows


def _check_onnx(
    network: "InpaintingNetwork", path: Path, half: bool, difference: "Mapping[str, Difference] | None"
) -> "list[Parity]":
    """Compare a file with the network it was written from, whose weights change on the way."""
    from showface.export.onnx import SIZES, check_onnx, rounded
    from showface.models.interpolation import add_difference

    smooth = {name: x.clone() for name, x in network.state_dict().items()}
    if half:
        smooth = rounded(smooth)
    if difference is None:
        network.load_state_dict(smooth)
        return check_onnx(network, path)
    rows = []
    details = (1.0, 0.0, 0.5)
    for i, detail in enumerate(details):
        network.load_state_dict(add_difference(smooth, difference, detail))
        rows += check_onnx(network, path, SIZES[i :: len(details)], detail=detail)
    return rows


def parity_table(rows: "list[Parity]") -> "Table":
    """What a check measured: a row for each size, a column for each hole."""
    from rich.table import Table

    ratios = sorted({row.hole_ratio for row in rows})
    table = Table("height x width", *(f"hole {ratio:.0%}" for ratio in ratios), title="largest difference from PyTorch")
    sizes = dict.fromkeys((row.height, row.width) for row in rows)
    worst = {(row.height, row.width, row.hole_ratio): row.worst for row in rows}
    for height, width in sizes:
        table.add_row(f"{height} x {width}", *(f"{worst[height, width, ratio]:.1e}" for ratio in ratios))
    return table
