"""Load the compiled extension, and explain why it or its CUDA part is missing.

The extension is optional, and nothing here raises if it is missing. `showface.ops` calls these functions to choose a
backend.
"""

import importlib
import json
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

_FOLDER = Path(__file__).parent
# The namespace of the CUDA kernels' operators, by device type of the tensors. The tests add an entry for "cpu": a
# library with the same kernels compiled for the CPU.
CUDA_LIBRARIES = {"cuda": "showface_C"}
_INSTALL = "run `pip install .` in the checkout of showface"


@cache
def _report() -> dict[str, str | None] | None:
    """The report of the build: for each part, why it was left out. None if nothing was built."""
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
    """The namespace `torch.ops.<name>` with the CUDA kernels for tensors on the device of `like`."""
    import torch

    return getattr(torch.ops, CUDA_LIBRARIES[like.device.type])


def allow_tf32() -> bool:
    """Whether kernels may use tf32 for float32 products, as torch's own products on CUDA do at this moment.

    It follows `torch.set_float32_matmul_precision`, `torch.backends.cuda.matmul.allow_tf32` and the `fp32_precision`
    settings, in any combination. (torch's getters of the first two raise if the last were used too.)
    """
    import torch

    return torch.backends.cuda.matmul.fp32_precision == "tf32"


def why_missing() -> str | None:
    """Why there is no compiled extension, as the end of a sentence; None if there is one."""
    return _load()[1]


@cache
def has_cpu_bfloat16() -> bool:
    """Whether the extension has kernels for bfloat16 tensors on this processor."""
    extension = load()
    return extension is not None and "avx512_bf16" in extension.build_info()["instruction_sets_here"]


def why_no_cuda() -> str | None:
    """Why the extension has no CUDA kernels, as the end of a sentence; None if it has them."""
    extension, reason = _load()
    if extension is None:
        return reason
    if extension.build_info()["cuda"]:
        return None
    report = _report()
    return (report and report.get("why_no_cuda")) or f"the compiled extension has no CUDA half; {_INSTALL}"
