"""showface: coordinated face inpainting with Memory-Disentangled Refinement Networks (MDRNets).

    import showface
    restored = showface.inpaint("photo.jpg", "mask.png")     # PIL.Image

`showface.ops` holds the operators, `showface.nn` the modules built on them, `showface.MDRNets` the networks.
"""

from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

# A wheel holds the Triton kernels in showface/kernels; in a checkout they lie beside the package, in kernels/.
_package = Path(__file__).parent
if not (_package / "kernels").is_dir() and (_package.parent / "kernels" / "__init__.py").is_file():
    __path__.append(str(_package.parent))

# Public names and the module that holds each. They are imported when first used, so that `import showface`
# and `showface --help` don't pay for parts that are not needed.
_EXPORTS = {
    "MDRNets": "showface.models",
    "MDRNetsConfig": "showface.models",
    "inpaint": "showface.inference",
    "load_model": "showface.systems",
}
_SUBMODULES = ("baselines", "data", "evaluation", "inference", "losses", "models", "nn", "ops", "training")

if TYPE_CHECKING:
    from showface import baselines, data, evaluation, inference, losses, models, nn, ops, training
    from showface.inference import inpaint
    from showface.models import MDRNets, MDRNetsConfig
    from showface.systems import load_model

__all__ = [
    "MDRNets",
    "MDRNetsConfig",
    "__version__",
    "baselines",
    "data",
    "evaluation",
    "inference",
    "inpaint",
    "load_model",
    "losses",
    "models",
    "nn",
    "ops",
    "training",
]


def __getattr__(name: str) -> Any:
    if name in _EXPORTS:
        return getattr(import_module(_EXPORTS[name]), name)
    if name in _SUBMODULES:
        return import_module(f"showface.{name}")
    raise AttributeError(f"module 'showface' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
