"""Training faces from photos: `align_faces` for one photo, `align_photos` for many."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from showface.align.photos import AlignResult, align_faces, align_photos

__all__ = ["AlignResult", "align_faces", "align_photos"]


def __getattr__(name: str) -> Any:
    # On first use, so that `showface --help` stays fast.
    if name in __all__:
        return getattr(import_module("showface.align.photos"), name)
    raise AttributeError(f"module 'showface.align' has no attribute {name!r}")
