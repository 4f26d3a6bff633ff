"""The functions of setup.py, for tools and tests that compile the sources."""

from importlib import util
from pathlib import Path
from types import ModuleType

ROOT = Path(__file__).parents[1]


def load() -> ModuleType:
    """setup.py as a new module. It builds nothing, because it calls `setup` only where it is the program."""
    spec = util.spec_from_file_location("showface_setup", ROOT / "setup.py")
    assert spec is not None
    assert spec.loader is not None
    module = util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
