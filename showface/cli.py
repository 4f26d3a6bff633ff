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

app = typer.Typer(
    name="showface",
    help="Fill holes in photos of faces with Memory-Disentangled Refinement Networks (MDRNets).",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
console = Console(soft_wrap=True)

ModelOption = Annotated[str, typer.Option(help="Bundled model (default or psnr), or folder of a saved model.")]
DeviceOption = Annotated[str, typer.Option(help="Device: cpu, cuda, ...")]


@app.command()
def demo(
    out: Annotated[Path, typer.Option("--out", "-o", help="Output image.")] = Path("showface-demo.png"),
    model: ModelOption = "default",
    device: DeviceOption = "cpu",
) -> None:
    """Fill the bundled portrait. Writes input, mask, coarse image and result side by side."""
    from PIL import Image

    from showface.inference import restore
    from showface.registry import load_model

    _check_image_name(out)
    with as_file(files("showface") / "assets" / "demo") as folder:
        result = restore(folder / "portrait.png", folder / "mask.png", model=load_model(model, device))
        mask = Image.open(folder / "mask.png").convert("RGB")
    panels = (result.masked, mask, result.coarse, result.image)
    gap = 8
    sheet = Image.new("RGB", (sum(x.width + gap for x in panels) - gap, panels[0].height), "white")
    left = 0
    for panel in panels:
        sheet.paste(panel, (left, 0))
        left += panel.width + gap
    _save(sheet, out)
    console.print(f"input | mask | coarse | result, a hole of {result.hole_ratio:.1%}: {escape(str(out.resolve()))}")


@app.command()
def inpaint(
    photo: Annotated[Path, typer.Argument(help="Photo of any size and format.")],
    mask: Annotated[Path, typer.Argument(help="Mask image: white = hole.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Output image.")],
    mask_polarity: Annotated[str, typer.Option(help="Colour of the hole in the mask: white or black.")] = "white",
    size: Annotated[
        int | None, typer.Option(help="Shorter side to fill at, in pixels. Default: the model's training size.")
    ] = None,
    model: ModelOption = "default",
    device: DeviceOption = "cpu",
) -> None:
    """Fill the hole of a photo."""
    from showface.inference import restore
    from showface.registry import load_model

    _check_image_name(out)
    result = restore(photo, mask, model=load_model(model, device), mask_polarity=mask_polarity, size=size)
    _save(result.image, out)
    console.print(f"hole: {result.hole_ratio:.1%} of {result.image.width}x{result.image.height}")
    console.print(f"result: {escape(str(out.resolve()))}")


@app.command()
def train(
    out: Annotated[Path, typer.Option(help="Output folder for checkpoints, logs and the model.")],
    data: Annotated[list[Path] | None, typer.Option(help="Folder of images. Repeatable.")] = None,
    config: Annotated[Path | None, typer.Option(help="YAML file with settings.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Continue from the newest checkpoint in OUT.")] = False,
    overrides: Annotated[
        list[str] | None,
        typer.Argument(help="Settings, such as data.size=128 batch=8 model.use_memory=false system=unet."),
    ] = None,
) -> None:
    """Train a model on your own photos."""
    try:
        from showface.training import Trainer, load_config
    except ModuleNotFoundError as error:
        raise ValueError(f"training needs the package {error.name}: install 'showface[train]'") from error

    settings = load_config(config, overrides or [])
    if data:
        settings.data.folders = [str(folder) for folder in data]
    trainer = Trainer(settings, out, resume=resume)
    images = trainer.dataset
    console.quiet = not trainer.accelerator.is_main_process
    console.print(
        f"{len(images)} images on {trainer.device}: {images.labelled} with parsing labels; left out: "
        f"{images.too_small} too small, {images.unreadable} unreadable"
    )
    if trainer.step:
        console.print(f"resumed after step {trainer.step}")
    console.print(f"model: {escape(str(trainer.run().resolve()))}")


@app.command()
def evaluate(
    images: Annotated[list[Path], typer.Option(help="Folder of faces. Repeatable.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Output folder for tables, manifest and contact sheet.")],
    masks: Annotated[
        Path | None, typer.Option(help="Folder of masks, white = hole. Default: generate them from the seed.")
    ] = None,
    model: Annotated[
        list[str] | None,
        typer.Option(help="Bundled model (default or psnr), or folder of a saved model. Repeatable."),
    ] = None,
    baseline: Annotated[
        list[str] | None, typer.Option(help="Classical method: telea or navier-stokes. Repeatable.")
    ] = None,
    holes: Annotated[
        str, typer.Option(help="free-form, or components: whole eyes, nose, mouth, and halves of the face.")
    ] = "free-form",
    size: Annotated[int, typer.Option(min=16, help="Side of the scored images in pixels.")] = 256,
    limit: Annotated[int | None, typer.Option(min=1, help="Use only the first LIMIT images of each folder.")] = None,
    seed: Annotated[int, typer.Option(help="Seed of the masks and of their order.")] = 0,
    fine: Annotated[bool, typer.Option("--fine", help="Use six bins of 10% instead of three of 20%.")] = False,
    lpips_weights: Annotated[Path | None, typer.Option(help="File with torchvision's AlexNet; adds LPIPS.")] = None,
    fid_weights: Annotated[Path | None, typer.Option(help="File with torch-fidelity's Inception; adds FID.")] = None,
    identity: Annotated[
        bool, typer.Option("--identity", help="Add the distance to the photo's person, by dlib. Aligned faces only.")
    ] = False,
    device: DeviceOption = "cpu",
) -> None:
    """Compare models and classical methods on faces with holes."""
    from rich.progress import Progress
    from rich.table import Table

    from showface import evaluation as ev
    from showface.models import BUNDLED
    from showface.registry import load_model

    try:
        systems = {name: ev.classical_system(name) for name in baseline or []}
        for folder in model or ([] if baseline else ["default"]):
            name = f"showface {folder}" if folder in BUNDLED else Path(folder).resolve().name
            if name in systems:
                raise ValueError(f"the compared models must have different names, got {name} twice")
            systems[name] = ev.model_system(load_model(folder, device))
        lpips = ev.LPIPS(lpips_weights) if lpips_weights else None
        person = ev.IdentityDistance() if identity else None
        frechet = ev.FrechetDistances(fid_weights) if fid_weights else None
    except ModuleNotFoundError as error:
        raise ValueError(str(error)) from error
    with Progress(console=Console(stderr=True), transient=True, disable=not sys.stderr.isatty()) as bar:
        task = bar.add_task("scoring", total=None)
        result = ev.run_evaluation(
            systems,
            images,
            out,
            masks,
            holes=holes,
            size=size,
            limit=limit,
            seed=seed,
            fine=fine,
            lpips=lpips,
            identity=person,
            frechet=frechet,
            progress=lambda done, of: bar.update(task, completed=done, total=of),
        )
    for header, cells in [ev.table(result.rows)] + [ev.region_table(result.regions)] * bool(result.regions):
        shown = Table(*header)
        for line in cells:
            shown.add_row(*line)
        # In a terminal, use its width. In a pipe, use a fixed width, so that nothing is cut off.
        Console(width=None if console.is_terminal else 160).print(shown)
    console.print(f"written to {escape(str(out.resolve()))}")


@app.command()
def memory(
    photos: Annotated[Path, typer.Argument(help="Folder of whole faces, preferably the training images.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Output image.")] = Path("showface-memory.png"),
    limit: Annotated[int, typer.Option(min=1, help="Maximum number of photos.")] = 200,
    slots: Annotated[int, typer.Option(min=1, help="Number of columns.")] = 10,
    model: ModelOption = "default",
    device: DeviceOption = "cpu",
) -> None:
    """Draw the memory: for each region of the face, the photos most similar to its most read slots."""
    from showface.data import find_images
    from showface.inspection import memory_picture
    from showface.models import MDRNets
    from showface.registry import load_model

    _check_image_name(out)
    found = find_images(photos)
    chosen = found[:: max(1, len(found) // limit)][:limit]
    network = load_model(model, device)
    if not isinstance(network, MDRNets):
        raise ValueError(f"{model} is a {network.system} model: only MDRNets have a memory")
    _save(memory_picture(network, chosen, slots), out)
    console.print(f"memory drawn with {len(chosen)} of {len(found)} photos: {escape(str(out.resolve()))}")


@app.command()
def info() -> None:
    """Show versions, devices, compiled kernels, and the backend of each operator."""
    from showface.info import describe, render

    render(describe())


def main() -> None:
    """Run the command. Errors that a user can fix are printed in one line; others keep their traceback."""
    warnings.showwarning = lambda message, *_, **__: Console(stderr=True, soft_wrap=True).print(
        f"[yellow]note:[/] {escape(str(message))}", highlight=False
    )
    try:
        app()
    except (OSError, ValueError, FloatingPointError) as error:
        Console(stderr=True, soft_wrap=True).print(f"[red]error:[/] {escape(str(error))}", highlight=False)
        sys.exit(1)


def _check_image_name(path: Path) -> None:
    """Check, before any work starts, that an image can be written to this path.

    Raises:
        ValueError: unknown image format.
        FileNotFoundError: the folder does not exist.
    """
    from PIL import Image

    writable = {ending for ending, name in Image.registered_extensions().items() if name in Image.SAVE}
    if path.suffix.lower() not in writable:
        raise ValueError(f"unknown image format {path.name!r}: use a name that ends in .png, .jpg, ...")
    if not path.parent.is_dir():
        raise FileNotFoundError(f"there is no folder {path.parent}")


def _save(image: "Image.Image", path: Path) -> None:
    from showface.files import write_atomically

    # Formats without a quality setting ignore it.
    write_atomically(path, lambda temporary: image.save(temporary, quality=95))


if __name__ == "__main__":
    main()
