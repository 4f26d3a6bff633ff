"""The command `showface align`. Only typer is imported until it runs."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer


def align_and_report(
    photos: Annotated[list[Path], typer.Argument(help="Photos, and folders of photos.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Output folder for the faces.")],
    size: Annotated[int, typer.Option(min=16, help="Largest side of a face in pixels; smaller faces stay.")] = 512,
    min_side: Annotated[int, typer.Option(min=16, help="Leave out faces with a smaller side in the photo.")] = 128,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Write over existing files.")] = False,
) -> None:
    """Cut the faces out of photos and align them for training."""
    from rich.console import Console
    from rich.markup import escape
    from rich.progress import MofNCompleteColumn, Progress

    from showface.align import align_photos
    from showface.data.faces import some_of

    console, errors = Console(soft_wrap=True), Console(stderr=True, soft_wrap=True)

    def failed(photo: Path, reason: str) -> None:
        errors.print(f"[red]failed:[/] {escape(f'{photo}: {reason}')}", highlight=False)

    columns = (*Progress.get_default_columns(), MofNCompleteColumn())
    with Progress(*columns, console=errors, transient=True, disable=not sys.stderr.isatty()) as bar:
        task = bar.add_task("aligning", total=None)
        result = align_photos(
            photos,
            out,
            size=size,
            min_side=min_side,
            overwrite=overwrite,
            progress=lambda done, of: bar.update(task, completed=done, total=of),
            on_failure=failed,
        )

    def note(what: str, left_out: Sequence[Path]) -> None:
        if left_out:
            names = some_of([str(path) for path in dict.fromkeys(left_out)])
            errors.print(f"[yellow]note:[/] {escape(f'{what} ({len(left_out)}): {names}')}", highlight=False)

    note("photos without a face", result.without_face)
    note(f"faces left out, smaller than {min_side} pixels", result.small)
    note("faces left out, cut by the photo's border", result.cut)
    counts = f"{len(result.aligned)} aligned, {len(result.skipped)} finished before, {len(result.failed)} failed"
    console.print(f"faces: {result.faces}, photos: {counts}: {escape(str(out.resolve()))}")
    if result.failed:
        parts = (result.aligned, result.skipped, result.failed, result.without_face, result.small, result.cut)
        total = len({path for part in parts for path in part})
        raise ValueError(f"{len(result.failed)} of {total} photos failed: {some_of([*map(str, result.failed)])}")
