"""showface: coordinated face inpainting with Memory-Disentangled Refinement Networks (MDRNets).

    import showface
    restored = showface.inpaint("photo.jpg", "mask.png")     # PIL.Image

`showface.ops` has the operators, `showface.nn` the modules built from them, and `showface.MDRNets` is the network.
"""

import sys
from importlib import import_module
from importlib.machinery import ModuleSpec
from importlib.util import spec_from_file_location
from pathlib import Path
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"


class _CheckoutKernels:
    """Finds `showface.kernels` in a checkout, where it is the folder `kernels` beside this package.

    In an installed wheel it is a subfolder of this package, which Python's own finders find first. Nothing
    else in the checkout can be imported as part of showface.
    """

    folder = Path(__file__).parents[1] / "kernels"

    @classmethod
    def find_spec(cls, name: str, path: object = None, target: object = None) -> ModuleSpec | None:
        if name != "showface.kernels":
            return None
        init = cls.folder / "__init__.py"
        if not init.is_file():
            return None
        return spec_from_file_location(name, init, submodule_search_locations=[str(cls.folder)])


sys.meta_path.append(_CheckoutKernels)

# Public names and the modules that define them. They are imported on first use, so that `import showface` and
# `showface --help` stay fast.
_EXPORTS = {
    "Inpainter": "showface.inference",
    "MDRNets": "showface.models",
    "MDRNetsConfig": "showface.models",
    "align_faces": "showface.align",
    "inpaint": "showface.inference",
    "load_model": "showface.registry",
    "push_to_hub": "showface.hub",
}
if TYPE_CHECKING:
    from showface import baselines, data, evaluation, faces, hub, inference, losses, models, nn, ops, training
    from showface.align import align_faces
    from showface.hub import push_to_hub
    from showface.inference import Inpainter, inpaint
    from showface.models import MDRNets, MDRNetsConfig
    from showface.registry import load_model

__all__ = [
    "Inpainter",
    "MDRNets",
    "MDRNetsConfig",
    "__version__",
    "align_faces",
    "baselines",
    "data",
    "evaluation",
    "faces",
    "hub",
    "inference",
    "inpaint",
    "load_model",
    "losses",
    "models",
    "nn",
    "ops",
    "push_to_hub",
    "training",
]


def __getattr__(name: str) -> Any:
    if name in _EXPORTS:
        return getattr(import_module(_EXPORTS[name]), name)
    if name in __all__:  # the others are modules
        return import_module(f"showface.{name}")
    raise AttributeError(f"module 'showface' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
