"""The compiled extension: loading it, and saying in words what is missing where it or a part of it is not there.

The extension is optional. Nothing here raises; the operators in `showface.ops` ask before they choose a backend.
"""

import importlib
import json
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

_FOLDER = Path(__file__).parent
# Where the CUDA kernels are for tensors of a device: the namespace of their operators. The tests add the CPU, with a
# library that holds the same kernels compiled for it.
CUDA_LIBRARIES = {"cuda": "showface_C"}
_INSTALL = "run `pip install .` in the checkout of showface"


@cache
def _report() -> dict[str, str | None] | None:
    """What the build wrote about itself: for each part, why it was left out. None if nothing was ever built."""
    try:
        report: dict[str, str | None] = json.loads((_FOLDER / "_build.json").read_text())
    except (OSError, ValueError):
        return None
    return report


@cache
def _load() -> tuple[ModuleType | None, str | None]:
    import torch  # noqa: F401  (the extension links against torch's libraries, which this loads)

    if not any(_FOLDER.glob("_C.*")):
        report = _report()
        reason = report.get("why_no_extension") if report else None
        return None, reason or f"the compiled extension was not built; {_INSTALL}"
    try:
        return importlib.import_module("showface._C"), None
    except ModuleNotFoundError:
        return None, f"the compiled extension was built for another Python; {_INSTALL}"
    except (ImportError, RuntimeError) as error:
        return None, f"the compiled extension failed to load ({error}); {_INSTALL}"


def load() -> ModuleType | None:
    """The extension `showface._C`, or None if it is missing.

    The first call imports it, which registers the operators `torch.ops.showface_C.*`.
    """
    return _load()[0]


def cuda_library(like: Any) -> Any:
    """The operators `torch.ops.<namespace>` that hold the CUDA kernels for tensors such as `like`."""
    import torch

    return getattr(torch.ops, CUDA_LIBRARIES[like.device.type])


def allow_tf32() -> bool:
    """Whether kernels may do with float32 what torch's own matrix products may."""
    import torch

    return torch.get_float32_matmul_precision() != "highest"


def why_missing() -> str | None:
    """Why there is no compiled extension, as the end of a sentence; None if there is one."""
    return _load()[1]


def why_no_cuda() -> str | None:
    """Why the extension has no CUDA kernels, as the end of a sentence; None if it has them."""
    extension, reason = _load()
    if extension is None:
        return reason
    if extension.build_info()["cuda"]:
        return None
    report = _report()
    return (report and report.get("why_no_cuda")) or f"the compiled extension has no CUDA half; {_INSTALL}"
