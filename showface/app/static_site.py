"""The page as a folder for any static host: the networks run in the browser, and no server sees the photos."""

import hashlib
import json
import shutil
import subprocess
import tarfile
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote

if TYPE_CHECKING:
    from showface.registry import About

STATIC = Path(__file__).parent / "static"
PACKAGE = "onnxruntime-web"
CPU = {
    "ort.wasm.min.mjs": "ort.js",
    "ort-wasm-simd-threaded.mjs": "ort-wasm.js",
    "ort-wasm-simd-threaded.wasm": "ort-wasm.wasm",
}
"""Files of onnxruntime-web and their names in the folder. Not every host knows that .mjs is a script."""
GPU = {
    "ort.jspi.min.mjs": "ort-webgpu.js",
    "ort-wasm-simd-threaded.jspi.mjs": "ort-wasm-webgpu.js",
    "ort-wasm-simd-threaded.jspi.wasm": "ort-wasm-webgpu.wasm",
}


def write_static_site(
    out: str | Path,
    models: Sequence[str] = ("default",),
    *,
    onnxruntime_web: str | Path | None = None,
    webgpu: bool = False,
    check: bool = True,
    overwrite: bool = False,
) -> Path:
    """Write a folder that any static host can serve: the page, the networks as ONNX files, and onnxruntime-web.

    Args:
        out: the folder. Its parent must exist.
        models: bundled models, or folders of saved models; the first one is the page's default. Their weights are
            stored as float16, about 19 MB for a bundled one.
        onnxruntime_web: an unpacked onnxruntime-web, for those without npm. By default `npm pack` downloads it into a
            cache folder.
        webgpu: also write the variant for WebGPU, which adds 17 MB. Browsers without WebGPU don't load it.
        check: compare the ONNX files with PyTorch, see `showface.export`.
        overwrite: replace a site that this function wrote. Other files in the folder stay.

    Returns:
        The folder.

    Raises:
        ValueError: no models, or two with the same name.
        FileExistsError: the folder is not empty.
        FileNotFoundError: the parent folder, npm, or a file of onnxruntime-web is missing.
        ModuleNotFoundError: a package of the extra `export` is missing.
    """
    from showface.registry import about_model, model_name

    out = Path(out).resolve()
    names = [model_name(model) for model in models]
    if not names or len(set(names)) < len(names):
        raise ValueError(f"models must have different names, got {', '.join(names) or 'none'}")
    if "faces" in names:
        raise ValueError("a model can't be called faces: that is the name of the detector's file")
    _check_folder(out, overwrite)
    runtime = Path(onnxruntime_web) if onnxruntime_web is not None else fetch_onnxruntime_web()
    # In the folder itself, if it exists: it may be a disk of its own, and files can't be moved from one to another.
    with tempfile.TemporaryDirectory(dir=out if out.exists() else out.parent, prefix=f".{out.name}-") as temporary:
        folder = Path(temporary) / "site"
        static = folder / "static"
        shutil.copytree(STATIC, static)
        if (static / "index.html").exists():
            (static / "index.html").rename(folder / "index.html")
        copy_runtime(runtime, static / "ort", webgpu)
        described = [about_model(model) for model in models]
        files = _write_networks(static, models, described, names, check)
        _write_config(static, described, files, webgpu)
        _write_service_worker(folder)
        if out.exists():
            _replace(folder, out)
        else:
            folder.chmod(0o755)
            folder.rename(out)
    return out


def _replace(folder: Path, out: Path) -> None:
    """Put the parts of a new site in the place of the old one's. What else is in the folder may be the user's own."""
    old = folder.with_name("old")
    old.mkdir()
    for part in sorted(folder.iterdir()):
        if (out / part.name).exists():
            (out / part.name).rename(old / part.name)
        part.rename(out / part.name)


def _check_folder(out: Path, overwrite: bool) -> None:
    if not out.parent.is_dir():
        raise FileNotFoundError(f"there is no folder {out.parent}")
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return
    if not (out / "static" / "engine-config.json").is_file():
        raise FileExistsError(f"{out} holds other files than a page of showface: choose another folder")
    if not overwrite:
        raise FileExistsError(f"{out} holds a page already: choose another folder, or pass --overwrite")


def _write_networks(
    static: Path, models: Sequence[str], described: "Sequence[About]", names: Sequence[str], check: bool
) -> dict[str, str]:
    """Write the ONNX files. Returns their URLs by name, as in the page's configuration."""
    from showface.export import export_faces, export_model

    (static / "models").mkdir()
    files = {"faces": "models/yunet.onnx"} | {name: f"models/{name}.onnx" for name in names}
    export_faces(static / files["faces"], check=check)
    for model, about, name in zip(models, described, names, strict=True):
        export_model(static / files[name], model, half=True, check=check, detail_input=about.detail is not None)
    shutil.copy(STATIC.parents[1] / "assets" / "faces" / "LICENSE-yunet.txt", static / "models")
    return {name: quote(file) for name, file in files.items()}


def _write_config(static: Path, described: "Sequence[About]", files: dict[str, str], webgpu: bool) -> None:
    models = [
        {
            "name": about.name,
            "description": about.description,
            "licence": about.licence,
            "detail": about.detail,
            "size": about.image_size,
        }
        for about in described
    ]
    config = {"engine": "onnx", "models": models, "files": files, "gpu": webgpu}
    (static / "engine-config.json").write_text(json.dumps(config, indent=2) + "\n")


def _write_service_worker(folder: Path) -> None:
    """Put the service worker beside index.html, with the list of the files that it keeps, and a hash of them."""
    worker = folder / "static" / "onnx" / "service-worker.js"
    code = worker.read_text()
    worker.unlink()
    paths = [path for path in sorted(folder.rglob("*")) if path.is_file() and "ort-wasm-webgpu" not in path.name]
    kept = [path for path in paths if path.suffix != ".txt" and path.name != "engine-server.js"]
    names = [path.relative_to(folder).as_posix() for path in kept]
    urls = ["./" if name == "index.html" else quote(name) for name in names]
    (folder / "static" / "files.json").write_text(json.dumps(urls, indent=2) + "\n")
    version = hashlib.sha256()
    for name, path in zip(names, kept, strict=True):
        version.update(name.encode() + path.read_bytes())
    (folder / worker.name).write_text(code.replace('"showface"', f'"showface-{version.hexdigest()[:16]}"'))


def copy_runtime(package: Path, out: Path, webgpu: bool) -> None:
    """Copy the needed files of onnxruntime-web, with its licence.

    Raises:
        FileNotFoundError: one is missing.
    """
    out.mkdir()
    for name, short in (CPU | (GPU if webgpu else {})).items():
        source = _first(package / "dist" / name, package / name)
        shutil.copy(source, out / short)
    about = json.loads(_first(package / "package.json", package.parent / "package.json").read_text())
    (out / "README.txt").write_text(
        f"{PACKAGE} {about.get('version', '')}, Copyright (c) Microsoft Corporation, MIT License\n"
        "https://github.com/microsoft/onnxruntime\n"
    )


def _first(*paths: Path) -> Path:
    for path in paths:
        if path.is_file():
            return path
    raise FileNotFoundError(f"there is no {paths[0]}: is it an unpacked {PACKAGE}?")


def fetch_onnxruntime_web(cache: Path | None = None) -> Path:
    """Download onnxruntime-web with npm, once. Returns the unpacked package.

    Raises:
        FileNotFoundError: npm is missing.
        OSError: the download failed.
    """
    folder = cache or cache_folder()
    if (folder / "package" / "package.json").is_file():
        return folder / "package"
    npm = shutil.which("npm")
    if npm is None:
        raise FileNotFoundError(
            f"npm is missing, which downloads {PACKAGE}: install it, or unpack the package yourself and name its folder"
            " with --onnxruntime-web"
        )
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent) as temporary:
        done = subprocess.run([npm, "pack", "--silent", PACKAGE], cwd=temporary, capture_output=True, text=True)
        packed = sorted(Path(temporary).glob("*.tgz"))
        if done.returncode or not packed:
            raise OSError(f"npm could not download {PACKAGE}: {done.stderr.strip()[-300:] or 'no file came'}")
        unpacked = Path(temporary) / "unpacked"
        with tarfile.open(packed[0]) as archive:
            archive.extractall(unpacked, members=_needed(archive), filter="data")
        if folder.exists():
            shutil.rmtree(folder)
        unpacked.rename(folder)
    return folder / "package"


def _needed(archive: tarfile.TarFile) -> Iterable[tarfile.TarInfo]:
    wanted = {"package/package.json", *(f"package/dist/{name}" for name in CPU | GPU)}
    return (member for member in archive if member.name in wanted)


def cache_folder() -> Path:
    """Where downloads are kept: in torch's cache, which follows TORCH_HOME and XDG_CACHE_HOME."""
    import torch

    return Path(torch.hub.get_dir()) / "showface" / PACKAGE
