"""Training of MDRNets and the baselines: configuration and trainer. Needs the extra `train`."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

# Imported on first use: the losses of this package are plain PyTorch, and work without what the trainer needs.
_EXPORTS = {
    "DataConfig": "showface.training.config",
    "Trainer": "showface.training.trainer",
    "TrainingConfig": "showface.training.config",
    "load_config": "showface.training.config",
    "resumed_config": "showface.training.resume",
}
if TYPE_CHECKING:
    from showface.training.config import DataConfig, TrainingConfig, load_config
    from showface.training.resume import resumed_config
    from showface.training.trainer import Trainer

__all__ = ["DataConfig", "Trainer", "TrainingConfig", "load_config", "resumed_config"]


def __getattr__(name: str) -> Any:
    if name in _EXPORTS:
        return getattr(import_module(_EXPORTS[name]), name)
    raise AttributeError(f"module 'showface.training' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
