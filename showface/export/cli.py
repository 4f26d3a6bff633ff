"""The command `showface export`. Only typer is imported until it runs."""

from pathlib import Path
from typing import Annotated

import typer

from showface.options import refuse_options


def export_file(
    context: typer.Context,
    out: Annotated[Path, typer.Option("--out", "-o", help="Output: .onnx, .pt2 or .aoti.pt2.")],
    faces: Annotated[
        bool, typer.Option("--faces", help="Export the face detector (.onnx) instead of a model.")
    ] = False,
    half: Annotated[bool, typer.Option("--half", help="Store the weights of an .onnx file as float16.")] = False,
    compiled: Annotated[bool, typer.Option("--compile", help="Compile a .pt2 file with AOTInductor.")] = False,
    check: Annotated[bool, typer.Option(help="Compare an .onnx file with PyTorch.")] = True,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Write over existing files.")] = False,
    model: Annotated[
        str, typer.Option(help="Bundled model (default or psnr), folder of a saved model, or org/name on the Hub.")
    ] = "default",
    detail: Annotated[float | None, typer.Option(help="0 = smooth to 1 = sharp. Default: the model's own.")] = None,
    detail_input: Annotated[
        bool, typer.Option("--detail-input", help="Make the detail an input of an .onnx file.")
    ] = False,
    device: Annotated[str, typer.Option(help="Where a .pt2 file runs: cpu, cuda, ...")] = "cpu",
) -> None:
    """Write a model for other programs: ONNX, torch.export or AOTInductor."""
    from rich.console import Console
    from rich.markup import escape

    from showface.export import export_faces, export_model, parity_table
    from showface.export.files import kind_of

    if faces:
        of_models = ("model", "half", "compiled", "detail", "detail_input", "device")
        refuse_options(context, of_models, "--faces")
    elif kind_of(out) == ".onnx":
        refuse_options(context, ("device",), "an .onnx file")
    else:
        refuse_options(context, ("check",), "a .pt2 file, which is not compared with PyTorch")
    console = Console(soft_wrap=True)
    try:
        if faces:
            worst = export_faces(out, check=check, overwrite=overwrite)
            if worst is not None:
                console.print(f"largest difference from PyTorch: {worst:.2g} pixels")
        else:
            rows = export_model(
                out,
                model,
                half=half,
                compiled=compiled,
                check=check,
                overwrite=overwrite,
                device=device,
                detail=detail,
                detail_input=detail_input,
            )
            if rows:
                Console(width=None if console.is_terminal else 100).print(parity_table(rows))
    except ModuleNotFoundError as error:
        raise ValueError(f"this export needs the package {error.name}: install 'showface[export]'") from error
    console.print(f"written: {escape(str(out.resolve()))}, {out.stat().st_size / 1e6:.1f} MB")
