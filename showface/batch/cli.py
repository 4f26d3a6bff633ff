"""What `showface inpaint` does with a folder and with tar files: a progress bar, failures, and counts."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.progress import MofNCompleteColumn, Progress

from showface.batch import BatchResult, MaskFolder, Shard, TarsResult, fill_folder, fill_tars, keep_apart
from showface.data import Marks
from showface.inference import Inpainter


def fill_and_report(
    photos: Path | str,
    out: Path,
    marks: Marks,
    inpainter: Inpainter,
    batch: int,
    overwrite: bool,
    shard: Shard | None,
) -> None:
    """Fill the photos in a folder, given as a path, or in tar files, given as a text for `expand_urls`.

    Raises:
        FileNotFoundError, ValueError: as for `fill_folder` and `fill_tars`, or the mask does not fit.
        ValueError: photos or tar files failed.
    """
    console, errors = Console(soft_wrap=True), Console(stderr=True, soft_wrap=True)
    masks = _check_mask(photos, out, marks.mask)
    columns = (*Progress.get_default_columns(), MofNCompleteColumn())  # the default has the time left
    with Progress(*columns, console=errors, transient=True, disable=not sys.stderr.isatty()) as bar:
        task = bar.add_task("filling", total=None)

        def advance(done: float, of: int) -> None:
            bar.update(task, completed=done, total=of)

        def failed(name: object, reason: str) -> None:
            errors.print(f"[red]failed:[/] {escape(f'{name}: {reason}')}", highlight=False)

        options: dict[str, Any] = {"batch": batch, "overwrite": overwrite, "shard": shard}
        options |= {"fill": inpainter.restore_many, "progress": advance, "on_failure": failed}
        result: BatchResult | TarsResult
        if isinstance(photos, Path):
            result = fill_folder(
                photos, out, lambda path, photo: marks.hole(photo, masks(path) if masks else None), **options
            )
        else:
            result = fill_tars(
                photos, out, lambda sample, photo: marks.hole(photo, sample.mask() if marks.own else None), **options
            )
    notes = [f"{name}: the hole is empty, the photo is copied" for name in result.empty]
    if inpainter.detector is not None:
        notes += [f"{name}: no face was found at the hole" for name in result.without_face]
    for note in notes:
        errors.print(f"[yellow]note:[/] {escape(note)}", highlight=False)
    if inpainter.detector is not None:
        console.print(f"faces filled: {result.faces}")
    counts, failures = _folder_counts(result) if isinstance(result, BatchResult) else _tar_counts(result)
    console.print(f"{counts}: {escape(str(out.resolve()))}")
    if failures:
        raise ValueError(failures)


def _check_mask(photos: Path | str, out: Path, mask: Path | None) -> MaskFolder | None:
    """Check the one mask, or the folder of masks, before any work. Returns the folder."""
    if mask is None:
        return None
    if not mask.exists():
        raise FileNotFoundError(f"there is no mask {mask}")
    keep_apart(out, mask)
    if isinstance(photos, Path):
        keep_apart(photos, mask)
        return MaskFolder(mask, photos) if mask.is_dir() else None
    if mask.is_dir() or mask.suffix == ".tar":
        wanted = "give one image for all photos, or put key.mask.png beside key.jpg into the tar files"
        raise ValueError(f"{mask} can't be the mask of tar files: {wanted}, and quote a pattern of tar files")
    return None


def _folder_counts(result: BatchResult) -> tuple[str, str]:
    """What was done, and what failed in the end."""
    copied = f"{len(result.empty)} copied, " if result.empty else ""
    done = f"{len(result.filled)} filled, {copied}{len(result.skipped)} finished before, {len(result.failed)} failed"
    if not result.failed:
        return done, ""
    total = len(result.filled) + len(result.empty) + len(result.skipped) + len(result.failed)
    return done, f"{len(result.failed)} of {total} photos failed: {', '.join(map(str, result.failed))}"


def _tar_counts(result: TarsResult) -> tuple[str, str]:
    """What was done, and what failed in the end."""
    tars = len(result.written) + len(result.skipped) + len(result.failed_tars)
    copied = f", {len(result.empty)} copied" if result.empty else ""
    done = (
        f"{result.filled} photos filled{copied} in {len(result.written)} of {tars} tar files, "
        f"{len(result.skipped)} finished before, {len(result.failed_tars)} failed"
    )
    failures = []
    if result.failed:
        failures.append(f"{len(result.failed)} photos failed, and are left out: {', '.join(result.failed)}")
    if result.failed_tars:
        failures.append(f"{len(result.failed_tars)} of {tars} tar files failed: {', '.join(result.failed_tars)}")
    return done, "; ".join(failures)
