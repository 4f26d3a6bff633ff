"""`showface info`: versions, devices, compiled kernels, and the backend of each operator."""

import platform
import sys
from importlib import metadata
from typing import Any

import torch
from rich.console import Console
from rich.markup import escape
from rich.table import Table

import showface
from showface import native


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _devices() -> list[str]:
    devices = [f"cpu: {torch.get_num_threads()} threads, {platform.machine()}"]
    for index in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(index)
        memory = properties.total_memory / 2**30
        devices.append(f"cuda:{index}: {properties.name}, sm_{properties.major}{properties.minor}, {memory:.0f} GiB")
    return devices


def _operators() -> dict[str, dict[str, Any]]:
    # Imported here, because importing the operators registers their backends.
    from showface.ops import dispatch

    return {
        op: {
            device: {
                "auto": dispatch.choose(op, device),
                "why_not": {
                    backend: reason
                    for backend in dispatch.BACKENDS
                    if (reason := dispatch.why_not(op, backend, device)) is not None
                },
            }
            for device in ("cpu", "cuda")
        }
        for op in dispatch.OPS
    }


def describe() -> dict[str, Any]:
    """Describe this installation, for bug reports.

    Returns a dict that can be written as JSON:

    - "versions": versions of showface, Python, torch, Triton and torch's CUDA; None if not installed.
    - "devices": one line for the CPU and one for each CUDA device.
    - "extension": "built" (bool), "why_missing", "why_no_cuda" and, if built, the keys of `_C.build_info`.
    - "operators": for each operator and device type, "auto" (the backend for float32) and "why_not" (the reason for
      each backend that can't run).
    """
    extension = native.load()
    return {
        "versions": {
            "showface": showface.__version__,
            "python": platform.python_version(),
            "platform": sys.platform,
            "torch": torch.__version__,
            "torch's CUDA": torch.version.cuda,
            "triton": _version("triton"),
        },
        "devices": _devices(),
        "extension": {
            "built": extension is not None,
            "why_missing": native.why_missing(),
            "why_no_cuda": native.why_no_cuda(),
            **(extension.build_info() if extension is not None else {}),
        },
        "operators": _operators(),
    }


def _pairs(title: str, rows: dict[str, str]) -> Table:
    table = Table(title=title, title_justify="left", show_header=False)
    table.add_column(style="bold")
    table.add_column()
    for name, value in rows.items():
        table.add_row(escape(name), escape(value))  # a compiler's messages have brackets
    return table


def _extension_rows(extension: dict[str, Any]) -> dict[str, str]:
    if not extension["built"]:
        return {"compiled": f"no: {extension['why_missing']}"}
    cuda = f"CUDA {extension['cuda_version']}: {extension['cuda_archs']}"
    here = extension["instruction_sets_here"]
    return {
        "compiled": f"{extension['compiler']}, headers of torch {extension['torch_headers']}",
        "C++ kernels": f"{', '.join(extension['instruction_sets'])} (this processor has {here[-1]})",
        "CUDA kernels": cuda if extension["cuda"] else f"no: {extension['why_no_cuda']}",
    }


def render(info: dict[str, Any]) -> None:
    """Print the result of `describe` as tables."""
    console = Console()
    versions = {name: value or "not installed" for name, value in info["versions"].items()}
    devices = dict(line.split(": ", 1) for line in info["devices"])
    console.print(_pairs("Versions", versions))
    console.print(_pairs("Devices", devices))
    console.print(_pairs("Extension", _extension_rows(info["extension"])))

    table = Table(title="Operators", title_justify="left")
    for column in ("operator", "device", "backend", "unavailable"):
        table.add_column(column)
    for op, by_device in info["operators"].items():
        for device, choice in by_device.items():
            reasons = [f"{backend}: {reason}" for backend, reason in choice["why_not"].items()]
            table.add_row(op, device, choice["auto"], escape("\n".join(reasons)))
        table.add_section()
    console.print(table)
