"""Training of MDRNets and the baselines: configuration and trainer. Needs the extra `train`."""

from showface.training.config import DataConfig, TrainingConfig, load_config
from showface.training.resume import resumed_config
from showface.training.trainer import Trainer

__all__ = ["DataConfig", "Trainer", "TrainingConfig", "load_config", "resumed_config"]
