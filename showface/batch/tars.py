"""Fill tar files of photos, a few photos at a time."""

from __future__ import annotations

import glob
import itertools
import tarfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from showface.batch.work import FAILURES, Fill, Filled, Shard, fill_together
from showface.data import Photo, encode_photo, read_photo
from showface.data.photo import output_format
from showface.data.tars import IMAGES, Sample, add_member, read_samples
from showface.data.urls import Urls, expand_urls, is_pattern, is_remote, url_name
from showface.files import remove_temporaries, write_atomically
from showface.out_of_memory import memory_errors

FindSampleHole = Callable[[Sample, Photo], NDArray[np.bool_]]
_SUFFIXES = (".tar", ".tgz", ".tar.gz", ".tar.bz2", ".tar.xz", ".tar.zst")


def are_tars(text: str) -> bool:
    """Whether a text that stands for photos stands for tar files, and not for one photo or a folder.

    Patterns and URLs do. Compressed tar files do too, so that `fill_tars` says what it needs.
    """
    return not Path(text).is_dir() and (is_pattern(text) or url_name(text).endswith(_SUFFIXES))


@dataclass
class TarsResult:
    """What `fill_tars` did. Tar files have their file names, and photos the names `file.tar:member`.

    Attributes:
        filled: the number of photos that were filled.
        empty: the photos with an empty hole, which are saved as they are.
        written: the tar files that were filled.
        skipped: the tar files whose result existed already.
        failed: the photos that could not be read, filled or encoded, with the reason. Their samples are left out.
        failed_tars: the tar files that could not be read or written, with the reason. They have no result.
        faces: the number of faces that were filled.
        without_face: the photos with a hole at which no face was found.
    """

    filled: int = 0
    empty: list[str] = field(default_factory=list)
    written: list[str] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)
    failed_tars: dict[str, str] = field(default_factory=dict)
    faces: int = 0
    without_face: list[str] = field(default_factory=list)


def fill_tars(
    urls: Urls,
    out: Path,
    find_hole: FindSampleHole,
    fill: Fill,
    *,
    batch: int = 1,
    overwrite: bool = False,
    shard: Shard | None = None,
    progress: Callable[[float, int], object] = lambda done, total: None,
    on_failure: Callable[[str, str], object] = lambda name, reason: None,
) -> TarsResult:
    """Fill the photos in tar files, and write a tar file of the same name for each into a folder.

    A tar file follows WebDataset's convention: members with the same path up to the first dot of the file name are a
    sample, and follow one another. The first image of each sample is filled and saved in its own format. All other
    members are copied unchanged, in the same order.

    Only one batch of samples is in memory at a time. Each tar file is written atomically, so one that exists is
    finished: it is skipped, and a stopped run can be started again. The sample of a photo that fails is left out, and
    a tar file that fails is not written; neither stops the others.

    Args:
        urls: the tar files, as for `expand_urls`: paths, patterns, and URLs that fsspec can open.
        out: the folder of results. It is made if needed.
        find_hole: gets a sample and its photo, and returns the hole, (H, W) bool; `Sample.mask` opens its own mask.
        fill: as for `fill_folder`.
        batch: the number of samples that are filled together.
        overwrite: fill tar files again whose results exist.
        shard: fill only this share of the tar files.
        progress: called with the number of tar files done, with a fraction, and of all tar files.
        on_failure: called with the name of a photo or a tar file and the reason, as soon as it fails.

    Raises:
        FileNotFoundError: a local tar file does not exist, or no file matches a pattern.
        ValueError: no tar file, a file of another name, two of the same name, `out` is a file, or it holds the tar
            files themselves.
        ModuleNotFoundError: a URL is given, and fsspec is not installed.
    """
    found = _find_tars(urls, out)
    names = list(found) if shard is None else shard(list(found))
    result = TarsResult(skipped=[name for name in names if (out / name).exists() and not overwrite])
    finished = set(result.skipped)
    waiting = [name for name in names if name not in finished]
    for count, name in enumerate(waiting, len(result.skipped)):
        filler = _Filler(find_hole, fill, on_failure)
        samples = _counted(read_samples(found[name]), partial(_advance, progress, count, len(names)))
        try:
            out.mkdir(parents=True, exist_ok=True)
            remove_temporaries(out, glob.escape(name))
            with memory_errors("the tar file"):
                write_atomically(out / name, partial(filler.write, samples, batch))
        except FAILURES as error:
            result.failed_tars[name] = str(error)
            on_failure(name, str(error))
        else:
            result.written.append(name)
            result.filled += filler.filled
            result.empty += filler.empty
            result.faces += filler.faces
            result.without_face += filler.without_face
        result.failed |= filler.failed
    progress(len(names), len(names))
    return result


class _Filler:
    """Fills one tar file, and counts."""

    def __init__(self, find_hole: FindSampleHole, fill: Fill, on_failure: Callable[[str, str], object]) -> None:
        self.find_hole, self.fill, self.on_failure = find_hole, fill, on_failure
        self.filled = self.faces = 0
        self.empty: list[str] = []
        self.without_face: list[str] = []
        self.failed: dict[str, str] = {}

    def write(self, samples: Iterator[Sample], batch: int, path: Path) -> None:
        """Write the filled samples into a tar file. Raises ValueError if every photo failed, or there is none."""
        with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as tar:
            while some := list(itertools.islice(samples, batch)):
                for sample in self._fill(some):
                    for info, data in sample.members:
                        add_member(tar, info, data)
        if not (self.filled or self.empty):
            raise ValueError(
                f"none of its {len(self.failed)} photos was filled" if self.failed else f"no images ({IMAGES})"
            )

    def _fill(self, samples: list[Sample]) -> list[Sample]:
        """The samples with filled images. If a photo fails, its sample is removed; other members stay."""
        read: dict[int, tuple[Photo, NDArray[np.bool_]]] = {}
        for index, sample in enumerate(samples):
            if sample.image is not None:
                try:
                    with memory_errors():
                        photo = read_photo(sample.open(sample.image))
                        read[index] = photo, self.find_hole(sample, photo)
                except FAILURES as error:
                    self._failed(sample, error)
        filled = fill_together(self.fill, read)
        for index, (photo, hole) in read.items():
            sample = samples[index]
            try:
                with memory_errors():
                    self._set_image(sample, photo, hole, filled[index])
            except FAILURES as error:
                self._failed(sample, error)
        return samples

    def _set_image(
        self, sample: Sample, photo: Photo, hole: NDArray[np.bool_], done: Filled | BaseException | None
    ) -> None:
        """Put the filled image in the place of the photo."""
        if isinstance(done, BaseException):
            raise done
        assert sample.image is not None
        info, _ = sample.members[sample.image]
        name = sample.name(sample.image)
        form = output_format(Path(info.name).name, photo.rgb.size)
        image = photo.rgb if done is None else done.image
        sample.members[sample.image] = info, encode_photo(image, form, photo, hole=hole, name=name)
        if done is None:
            self.empty.append(name)
        else:
            self.filled += 1
            self.faces += done.faces
            self.without_face += [name] * (not done.faces)

    def _failed(self, sample: Sample, error: BaseException) -> None:
        assert sample.image is not None
        name = sample.name(sample.image)
        self.failed[name] = str(error)
        self.on_failure(name, str(error))
        sample.members, sample.image = sample.others(), None


def _advance(progress: Callable[[float, int], object], before: int, total: int, share: float) -> None:
    progress(before + share, total)


def _counted(samples: Iterable[tuple[Sample, float]], progress: Callable[[float], object]) -> Iterator[Sample]:
    """The samples; `progress` gets the share of the tar file before each."""
    done = 0.0
    for sample, end in samples:
        progress(done)
        yield sample
        done = end


def _find_tars(urls: Urls, out: Path) -> dict[str, str]:
    """The tar files by their file name, in order, checked without opening them."""
    if out.exists() and not out.is_dir():
        raise ValueError(f"tar files are written into a folder, but {out} is a file")
    found: dict[str, str] = {}
    for url in expand_urls(urls):
        name = url_name(url)
        if not name.endswith(".tar"):
            raise ValueError(f"several photos must be in a folder or in uncompressed .tar files, got {url}")
        if name in found:
            raise ValueError(f"both {found[name]} and {url} would be written to {out / name}: give them one by one")
        if not is_remote(url):
            if not Path(url).exists():
                raise FileNotFoundError(f"there is no tar file {url}")
            if Path(url).resolve().parent == out.resolve():
                raise ValueError(f"results must be in a folder of their own, and {url} is in {out}")
        found[name] = url
    return found
