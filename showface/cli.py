"""The command `showface`."""

import sys
import warnings
from importlib.resources import as_file, files
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.markup import escape

if TYPE_CHECKING:
    from PIL import Image

    from showface.models import InpaintingNetwork

app = typer.Typer(
    name="showface",
    help="Restore faces with Memory-Disentangled Refinement Networks (MDRNets).",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
console = Console(soft_wrap=True)

ModelOption = Annotated[Path | None, typer.Option(help="Folder of a model; the bundled one by default.")]
DeviceOption = Annotated[str, typer.Option(help="cpu, cuda, ...")]


@app.command()
def demo(
    out: Annotated[Path, typer.Option("--out", "-o", help="Where to write the picture.")] = Path("showface-demo.png"),
    model: ModelOption = None,
    device: DeviceOption = "cpu",
) -> None:
    """Restore the bundled portrait: input, mask, coarse image and result, side by side in one PNG."""
    from PIL import Image

    from showface.inference import restore

    _check_image_name(out)
    with as_file(files("showface") / "assets" / "demo") as folder:
        result = restore(folder / "portrait.png", folder / "mask.png", model=_load(model, device))
        mask = Image.open(folder / "mask.png").convert("RGB")
    panels = (result.masked, mask, result.coarse, result.image)
    gap = 8
    sheet = Image.new("RGB", (sum(x.width + gap for x in panels) - gap, panels[0].height), "white")
    left = 0
    for panel in panels:
        sheet.paste(panel, (left, 0))
        left += panel.width + gap
    _save(sheet, out)
    console.print(f"input | mask | coarse | result, a hole of {result.coverage:.1%}: {escape(str(out.resolve()))}")


@app.command()
def inpaint(
    photo: Annotated[Path, typer.Argument(help="The photo, any size and format.")],
    mask: Annotated[Path, typer.Argument(help="The mask: white = hole.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Where to write the result.")],
    mask_polarity: Annotated[str, typer.Option(help="The colour of the hole: white or black.")] = "white",
    size: Annotated[
        int | None, typer.Option(help="Fill at this shorter side; by default the model's training size.")
    ] = None,
    model: ModelOption = None,
    device: DeviceOption = "cpu",
) -> None:
    """Fill the hole of a photo."""
    from showface.inference import restore

    _check_image_name(out)
    result = restore(photo, mask, model=_load(model, device), mask_polarity=mask_polarity, size=size)
    _save(result.image, out)
    console.print(f"hole: {result.coverage:.1%} of {result.image.width}x{result.image.height}")
    console.print(f"result: {escape(str(out.resolve()))}")


@app.command()
def train(
    out: Annotated[Path, typer.Option(help="Folder for the run: checkpoints, logs, the model.")],
    data: Annotated[list[Path] | None, typer.Option(help="Folder of images; may be given several times.")] = None,
    config: Annotated[Path | None, typer.Option(help="YAML file of settings.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the newest checkpoint in OUT.")] = False,
    overrides: Annotated[
        list[str] | None,
        typer.Argument(help="Settings such as data.size=128 batch=8 model.use_memory=false, or system=unet."),
    ] = None,
) -> None:
    """Train on your own faces."""
    try:
        from showface.training import Trainer, load_config
    except ModuleNotFoundError as error:
        raise ValueError(f"training needs the package {error.name}: install 'showface[train]'") from error

    settings = load_config(config, overrides or [])
    if data:
        settings.data.folders = [str(folder) for folder in data]
    trainer = Trainer(settings, out, resume=resume)
    images = trainer.dataset
    console.print(
        f"{len(images)} images on {trainer.device}: {images.labelled} with parsing labels; left out: "
        f"{images.too_small} too small, {images.unreadable} unreadable"
    )
    if trainer.step:
        console.print(f"resumed after step {trainer.step}")
    console.print(f"model: {escape(str(trainer.run().resolve()))}")


@app.command()
def memory(
    photos: Annotated[Path, typer.Argument(help="Folder of whole faces, best those of the training.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Where to write the picture.")] = Path("showface-memory.png"),
    limit: Annotated[int, typer.Option(min=1, help="Look at no more than this many photos.")] = 200,
    slots: Annotated[int, typer.Option(min=1, help="Columns of the picture.")] = 10,
    model: ModelOption = None,
    device: DeviceOption = "cpu",
) -> None:
    """Show what the memory holds: for each part of the face, the photos most like its most used slots."""
    from showface.data import find_images
    from showface.inspection import memory_picture
    from showface.models import MDRNets

    _check_image_name(out)
    found = find_images(photos)
    if not found:
        raise ValueError(f"there are no images in {photos}")
    chosen = found[:: max(1, len(found) // limit)][:limit]
    network = _load(model, device)
    if not isinstance(network, MDRNets):
        raise ValueError(f"{model} holds a {network.system}: only MDRNets have a memory")
    _save(memory_picture(network, chosen, slots), out)
    console.print(f"the memory by {len(chosen)} of {len(found)} photos: {escape(str(out.resolve()))}")


@app.command()
def info() -> None:
    """Print versions, devices, what was built, and which backend each operator will use."""
    from showface.info import describe, render

    render(describe())


def main() -> None:
    """Run the command; what a user can put right is told in one line, other errors keep their traceback."""
    warnings.showwarning = lambda message, *_, **__: Console(stderr=True, soft_wrap=True).print(
        f"[yellow]note:[/] {escape(str(message))}", highlight=False
    )
    try:
        app()
    except (OSError, ValueError, FloatingPointError) as error:
        Console(stderr=True, soft_wrap=True).print(f"[red]error:[/] {escape(str(error))}", highlight=False)
        sys.exit(1)


def _load(folder: Path | None, device: str) -> "InpaintingNetwork":
    """The model of a folder, or the bundled one, on a device."""
    import torch

    from showface.nn import channels_last
    from showface.systems import load_model

    try:
        return channels_last(load_model(folder).to(torch.device(device)))
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"--device {device} can't be used: {str(error).splitlines()[0]}") from error


def _check_image_name(path: Path) -> None:
    """Raise ValueError, before any work is done, if no image can be written under this name."""
    from PIL import Image

    writable = {ending for ending, name in Image.registered_extensions().items() if name in Image.SAVE}
    if path.suffix.lower() not in writable:
        raise ValueError(f"can't tell an image format from {path.name!r}: give a name that ends in .png, .jpg, ...")
    if not path.parent.is_dir():
        raise FileNotFoundError(f"there is no folder {path.parent}")


def _save(image: "Image.Image", path: Path) -> None:
    from showface.files import write_atomically

    # Formats that know no quality leave it alone.
    write_atomically(path, lambda temporary: image.save(temporary, quality=95))


if __name__ == "__main__":
    main()
