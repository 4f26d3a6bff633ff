"""Models on the Hugging Face Hub: `push_to_hub`, and the card that it writes. `showface.load_model` loads them."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from showface.hub.card import model_card
    from showface.hub.push import push_to_hub

__all__ = ["model_card", "push_to_hub"]


def __getattr__(name: str) -> Any:
    # On first use, so that `showface --help` stays fast.
    if name in __all__:
        return getattr(import_module(f"showface.hub.{'card' if name == 'model_card' else 'push'}"), name)
    raise AttributeError(f"module 'showface.hub' has no attribute {name!r}")
