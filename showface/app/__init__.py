"""The app: an HTTP endpoint and a page to fill holes, for `showface app`. It needs the extra `showface[app]`."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from showface.app.guard import Hosts, Limits
    from showface.app.launch import serve
    from showface.app.server import create_app
    from showface.app.work import load_models

__all__ = ["Hosts", "Limits", "create_app", "load_models", "serve"]

# FastAPI and uvicorn are imported on first use.
_EXPORTS = {
    "Hosts": "showface.app.guard",
    "Limits": "showface.app.guard",
    "create_app": "showface.app.server",
    "load_models": "showface.app.work",
    "serve": "showface.app.launch",
}


def __getattr__(name: str) -> Any:
    if name in _EXPORTS:
        return getattr(import_module(_EXPORTS[name]), name)
    raise AttributeError(f"module 'showface.app' has no attribute {name!r}")
