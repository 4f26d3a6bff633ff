"""The command `showface`."""

import io
import sys
import warnings
from importlib.resources import as_file, files
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape

import showface
from showface.align.cli import align_and_report
from showface.app.cli import serve_app
from showface.export.cli import export_file
from showface.files import with_home
from showface.hub.cli import push_model
from showface.options import is_given, refuse_options
from showface.out_of_memory import memory_errors

app = typer.Typer(
    name="showface",
    help="Fill holes in photos of faces with Memory-Disentangled Refinement Networks (MDRNets).",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
console = Console(soft_wrap=True)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"showface {showface.__version__}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    """Fill holes in photos of faces with Memory-Disentangled Refinement Networks (MDRNets)."""


ModelOption = Annotated[
    str, typer.Option(help="Bundled model (default or psnr), folder of a saved model, or org/name on the Hub.")
]
DetailOption = Annotated[
    float | None, typer.Option(help="0 = smooth, closest pixel by pixel, to 1 = sharp. Default: the model's own.")
]
DeviceOption = Annotated[str, typer.Option(help="Device: cpu, cuda, ...")]
PrecisionOption = Annotated[str, typer.Option(help="fp32, or bf16: faster on a GPU and on a CPU with AMX.")]


DEMO, MEMORY, PREVIEW = Path("showface-demo.png"), Path("showface-memory.png"), Path("showface-mask.png")
"""Default outputs. They are the program's own, so they are written over if no --out is given."""

OverwriteOption = Annotated[bool, typer.Option("--overwrite", help="Write over existing files.")]
MaskArgument = Annotated[Path | None, typer.Argument(help="Mask image: white = hole.")]
PaintOption = Annotated[
    str | None, typer.Option(help="Colour in which the hole is painted into the photo: white, '#ff0000', ...")
]
AlphaOption = Annotated[bool, typer.Option("--alpha", help="The transparent part of the photo is the hole.")]
PolarityOption = Annotated[str, typer.Option(help="Colour of the hole in the mask: white or black.")]
InvertOption = Annotated[bool, typer.Option("--invert", help="Swap hole and known pixels.")]
GrowOption = Annotated[int, typer.Option(min=0, help="Grow the hole by this many pixels.")]


@app.command()
def demo(
    context: typer.Context,
    out: Annotated[Path, typer.Option("--out", "-o", help="Output image.")] = DEMO,
    overwrite: OverwriteOption = False,
    model: ModelOption = "default",
    detail: DetailOption = None,
    device: DeviceOption = "cpu",
) -> None:
    """Fill the bundled portrait. Writes input, mask and result side by side."""
    from PIL import Image

    from showface.data import save_photo
    from showface.data.photo import check_output
    from showface.inference import Inpainter
    from showface.preview import side_by_side

    overwrite = check_output(out, [], overwrite, not is_given(context, "out"))
    with as_file(files("showface") / "assets" / "demo") as folder:
        result = Inpainter(model, device=device, detail=detail).restore(folder / "portrait.png", folder / "mask.png")
        mask = Image.open(folder / "mask.png").convert("RGB")
    save_photo(side_by_side((result.masked, mask, result.image)), out, overwrite=overwrite)
    console.print(f"input | mask | result, a hole of {result.hole_ratio:.1%}: {escape(str(out.resolve()))}")


@app.command()
def inpaint(
    context: typer.Context,
    photo: Annotated[
        str,
        typer.Argument(help="Photo of any size and format, folder of photos, or tar files: 'photos-{000..099}.tar'."),
    ],
    out: Annotated[Path, typer.Option("--out", "-o", help="Output image; for a folder or tar files, output folder.")],
    mask: MaskArgument = None,
    mask_option: Annotated[
        Path | None,
        typer.Option(
            "--mask", help="Like MASK. For a folder: a mask for all, or a folder; for tar files: a mask for all."
        ),
    ] = None,
    paint: PaintOption = None,
    alpha: AlphaOption = False,
    mask_polarity: PolarityOption = "white",
    invert: InvertOption = False,
    grow: GrowOption = 0,
    faces: Annotated[bool, typer.Option(help="Find faces, and fill them as the model was trained.")] = True,
    size: Annotated[
        int | None,
        typer.Option(help="Side of the crops to fill, in pixels. Default: the model's training size."),
    ] = None,
    batch: Annotated[int | None, typer.Option(min=1, help="Photos to fill together. Default: 1, on a GPU 8.")] = None,
    shard: Annotated[
        str | None,
        typer.Option(metavar="I/N", help="Fill only the I-th of N equal shares of a folder or of tar files."),
    ] = None,
    overwrite: OverwriteOption = False,
    model: ModelOption = "default",
    detail: DetailOption = None,
    device: DeviceOption = "cpu",
    precision: PrecisionOption = "fp32",
) -> None:
    """Fill the hole of a photo, or of each photo in a folder or in tar files."""
    from showface.batch import Shard, are_tars
    from showface.batch.cli import fill_and_report
    from showface.data import Marks, read_photo, save_photo
    from showface.data.photo import check_inputs, check_output, output_format
    from showface.inference import Inpainter
    from showface.registry import load_model

    if mask and mask_option:
        raise ValueError("give the mask once: as MASK, or with --mask")
    tars, path = are_tars(photo), Path(photo)
    _check_polarity(context, paint, alpha)
    own = tars and not (mask or mask_option or paint or alpha)
    marks = Marks(mask or mask_option, paint, alpha, mask_polarity, invert, grow, own)
    share = Shard.parse(shard) if shard else None
    if tars or path.is_dir():
        inpainter = Inpainter(load_model(model, device, detail=detail), faces=faces, size=size, precision=precision)
        together = batch or (1 if device == "cpu" else 8)
        fill_and_report(photo if tars else path, out, marks, inpainter, together, overwrite, share)
        return
    check_inputs(path, marks.mask, "photo or folder")
    refuse_options(context, ("batch", "shard"), "one photo")
    check_output(out, [path, marks.mask], overwrite)
    with memory_errors():
        before = read_photo(path)
        output_format(out, before.rgb.size)
        inpainter = Inpainter(load_model(model, device, detail=detail), faces=faces, size=size, precision=precision)
        result = inpainter.restore(before.rgb, marks.hole(before))
        save_photo(result.image, out, before, hole=result.hole, overwrite=overwrite)
    found = f"; faces filled: {result.faces}" if faces else ""
    console.print(f"hole: {result.hole_ratio:.1%} of {result.image.width}x{result.image.height}{found}")
    console.print(f"result: {escape(str(out.resolve()))}")


@app.command("mask")
def show_mask(
    context: typer.Context,
    photo: Annotated[Path, typer.Argument(help="Photo of any size and format.")],
    mask: MaskArgument = None,
    out: Annotated[Path, typer.Option("--out", "-o", help="Output image.")] = PREVIEW,
    paint: PaintOption = None,
    alpha: AlphaOption = False,
    mask_polarity: PolarityOption = "white",
    invert: InvertOption = False,
    grow: GrowOption = 0,
    overwrite: OverwriteOption = False,
) -> None:
    """Show what would be filled, and say what looks wrong with the mask. Draws photo and hole side by side."""
    from showface.data import Marks, describe_hole, read_photo, save_photo
    from showface.data.photo import check_inputs, check_output
    from showface.faces import find_faces
    from showface.preview import hole_picture

    _check_polarity(context, paint, alpha)
    marks = Marks(mask, paint, alpha, mask_polarity, invert, grow)
    check_inputs(photo, marks.mask)
    overwrite = check_output(out, [photo, marks.mask], overwrite, not is_given(context, "out"))
    with memory_errors():
        before = read_photo(photo)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".* resized with nearest")  # the report says it
            hole = marks.hole(before)
        report = describe_hole(before.rgb, hole, mask)
        faces = find_faces(before.rgb)
        save_photo(hole_picture(before.rgb, hole, faces), out, overwrite=overwrite)
    for problem in report.problems:
        warnings.warn(problem, stacklevel=1)
    pieces = "1 piece" if report.pieces == 1 else f"{report.pieces} pieces"
    console.print(f"hole: {report.ratio:.1%} of {before.rgb.width}x{before.rgb.height} in {pieces}; {marks}")
    console.print(f"faces seen before filling: {len(faces)}")
    console.print(f"photo | hole in red, faces in blue: {escape(str(out.resolve()))}")


@app.command()
def train(
    out: Annotated[Path, typer.Option(help="Output folder for checkpoints, logs and the model.")],
    data: Annotated[
        list[str] | None,
        typer.Option(help="Folder of images, or shards: a tar file, 'faces-*.tar', or a URL. Repeatable."),
    ] = None,
    validation: Annotated[
        list[str] | None,
        typer.Option(help="Folder of images put aside: the model that fills them best is kept. Repeatable."),
    ] = None,
    config: Annotated[Path | None, typer.Option(help="YAML file with settings.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Continue the run in OUT with its own settings.")] = False,
    resume_if_any: Annotated[
        bool, typer.Option("--resume-if-any", help="As --resume if OUT has a checkpoint; otherwise start the run.")
    ] = False,
    overrides: Annotated[
        list[str] | None,
        typer.Argument(help="Settings, such as data.size=128 batch=8 model.use_memory=false system=unet."),
    ] = None,
) -> None:
    """Train a model on your own photos."""
    from showface.batch import are_tars

    try:
        from showface.training import Trainer, load_config, resumed_config
        from showface.training.checkpoint import list_checkpoints
    except ModuleNotFoundError as error:
        raise ValueError(f"training needs the package {error.name}: install 'showface[train]'") from error

    resume = resume or (resume_if_any and bool(list_checkpoints(out / "checkpoints")))
    settings = resumed_config(out, config, overrides or []) if resume else load_config(config, overrides or [])
    if data:
        shards = [place for place in data if are_tars(place)]
        settings.data.shards, settings.data.folders = shards, [place for place in data if place not in shards]
    if validation:
        settings.data.validation = validation
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
    best = out / "best"
    if settings.data.validation and best.is_dir():
        console.print(f"best model on the validation images: {escape(str(best.resolve()))}")


@app.command()
def evaluate(
    images: Annotated[list[Path], typer.Option(help="Folder of faces. Repeatable.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Output folder for tables, manifest and contact sheet.")],
    masks: Annotated[
        Path | None, typer.Option(help="Folder of masks, white = hole. Default: generate them from the seed.")
    ] = None,
    model: Annotated[
        list[str] | None,
        typer.Option(
            help="Bundled model (default or psnr), folder of a saved model, or org/name on the Hub. Repeatable."
        ),
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
    overwrite: OverwriteOption = False,
    device: DeviceOption = "cpu",
) -> None:
    """Compare models and classical methods on faces with holes."""
    from rich.progress import Progress
    from rich.table import Table

    from showface import evaluation as ev
    from showface.models import BUNDLED
    from showface.registry import load_model, model_name

    try:
        systems = {name: ev.classical_system(name) for name in baseline or []}
        for folder in model or ([] if baseline else ["default"]):
            name = f"showface {folder}" if folder in BUNDLED else model_name(folder)
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
            overwrite=overwrite,
            progress=lambda done, of: bar.update(task, completed=done, total=of),
        )
    for header, cells in [ev.table(result.rows)] + [ev.region_table(result.regions)] * bool(result.regions):
        shown = Table(*header)
        for line in cells:
            shown.add_row(*line)
        # In a terminal, use its width. In a pipe, use a fixed width, so that nothing is cut off.
        Console(width=None if console.is_terminal else 160).print(shown)
    console.print(f"written to {escape(str(out.resolve()))}")
    if result.failed:
        for photo, reason in result.failed.items():
            Console(stderr=True, soft_wrap=True).print(
                f"[red]failed:[/] {escape(f'{photo}: {reason}')}", highlight=False
            )
        raise ValueError(f"{len(result.failed)} photos could not be scored: {', '.join(result.failed)}")


@app.command()
def memory(
    context: typer.Context,
    photos: Annotated[Path, typer.Argument(help="Folder of whole faces, preferably the training images.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Output image.")] = MEMORY,
    overwrite: OverwriteOption = False,
    limit: Annotated[int, typer.Option(min=1, help="Maximum number of photos.")] = 200,
    slots: Annotated[int, typer.Option(min=1, help="Number of columns.")] = 10,
    model: ModelOption = "default",
    device: DeviceOption = "cpu",
) -> None:
    """Draw the memory: for each region of the face, the photos most similar to its most read slots."""
    from showface.data import list_faces, save_photo
    from showface.data.photo import check_output
    from showface.inspection import memory_picture
    from showface.models import MDRNets
    from showface.registry import load_model

    found = [face for face, _ in list_faces(photos)]
    overwrite = check_output(out, found, overwrite, not is_given(context, "out"))
    chosen = found[:: max(1, len(found) // limit)][:limit]
    network = load_model(model, device)
    if not isinstance(network, MDRNets):
        raise ValueError(f"{model} is a {network.system} model: only MDRNets have a memory")
    save_photo(memory_picture(network, chosen, slots), out, overwrite=overwrite)
    console.print(f"memory drawn with {len(chosen)} of {len(found)} photos: {escape(str(out.resolve()))}")


app.command("align")(align_and_report)
app.command("app")(serve_app)
app.command("export")(export_file)
app.command("push")(push_model)


@app.command()
def info() -> None:
    """Show versions, devices, compiled kernels, and the backend of each operator."""
    from showface.info import describe, render

    render(describe())


def main() -> None:
    """Run the command. Errors that a user can fix are printed in one line; others keep their traceback."""
    sys.argv[1:] = map(with_home, sys.argv[1:])
    warnings.showwarning = lambda message, *_, **__: Console(stderr=True, soft_wrap=True).print(
        f"[yellow]note:[/] {escape(str(message))}", highlight=False
    )
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # for names that the terminal can't show
    try:
        with memory_errors("this"):
            app()
    except (OSError, ValueError, FloatingPointError, MemoryError, ModuleNotFoundError) as error:
        # A missing package of ours says what to install. Any other one is a bug.
        if isinstance(error, ModuleNotFoundError) and "install '" not in str(error):
            raise
        Console(stderr=True, soft_wrap=True).print(f"[red]error:[/] {escape(str(error))}", highlight=False)
        sys.exit(1)


def _check_polarity(context: typer.Context, paint: str | None, alpha: bool) -> None:
    """Raise ValueError if a colour of the mask is given, but no mask."""
    if paint is not None or alpha:
        refuse_options(context, ("mask_polarity",), "--alpha" if alpha else "--paint")


if __name__ == "__main__":
    main()
