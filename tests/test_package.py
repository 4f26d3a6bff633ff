"""What can be imported as part of showface, in a checkout and when installed."""

import importlib
import multiprocessing
import pkgutil
import subprocess
import sys
from pathlib import Path

import pytest

import showface

ROOT = Path(showface.__file__).parents[1]


@pytest.mark.parametrize("name", ["setup", "tests", "benchmarks", "csrc", "showface"])
def test_nothing_else_of_a_checkout_is_part_of_the_package(name):
    with pytest.raises(ModuleNotFoundError, match=f"showface.{name}"):
        importlib.import_module(f"showface.{name}")


def test_the_kernels_package_is_found():
    import showface.kernels
    from showface import kernels

    assert kernels is showface.kernels is sys.modules["showface.kernels"]
    assert {"attention", "memory", "tuned"} <= {module.name for module in pkgutil.iter_modules(kernels.__path__)}


@pytest.mark.parametrize(
    "arguments",
    [
        ["-c", "import showface.kernels.tuned"],
        ["-c", "from showface import kernels; from showface.kernels import tuned; assert tuned is kernels.tuned"],
        ["-m", "showface.kernels.tuned"],
    ],
)
def test_kernels_are_imported_in_a_fresh_process(arguments):
    subprocess.run([sys.executable, *arguments], cwd=ROOT, check=True)


def test_kernels_are_unpickled_in_a_spawned_process():
    pytest.importorskip("triton")
    from showface.kernels.tiles import round_up

    with multiprocessing.get_context("spawn").Pool(1) as pool:
        assert pool.apply(round_up, (33,)) == 64
