"""The layers of docs/architecture.md hold: no module imports from a higher layer, and there are no circular imports."""

import ast
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "showface"
# From the lowest to the highest.
LAYERS = (
    ("files", "native", "options", "out_of_memory", "distributed", "kernels"),
    ("ops",),
    ("nn",),
    ("data", "crops", "enlargement"),
    ("faces",),
    ("losses",),
    ("models",),
    ("baselines",),
    ("registry",),
    ("hole_filling",),
    ("inference",),
    ("inspection", "batch", "align", "preview", "evaluation", "training", "export", "hub"),
    ("app",),
    ("info", "cli"),
)
LEVEL = {name: level for level, names in enumerate(LAYERS) for name in names}


def modules() -> dict[str, Path]:
    """Every module of the package and of kernels/, by its dotted name."""
    found = {}
    for folder, prefix in ((PACKAGE, "showface"), (ROOT / "kernels", "showface.kernels")):
        for path in folder.rglob("*.py"):
            parts = [prefix, *path.relative_to(folder).with_suffix("").parts]
            found[".".join(parts).removesuffix(".__init__")] = path
    return found


MODULES = modules()


def imports(path: Path) -> set[str]:
    """The modules of the package that a file imports, inside functions and for type checkers too."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            for alias in node.names:
                full = f"{node.module}.{alias.name}"
                found.add(full if full in MODULES else node.module)
    return {name for name in found if name in MODULES}


def layer(module: str) -> str:
    return module.split(".")[1]


def test_every_module_has_a_layer():
    assert {layer(name) for name in MODULES if "." in name} == set(LEVEL)


@pytest.mark.parametrize("name", [name for name in MODULES if "." in name])
def test_nothing_imports_from_above(name):
    above = [x for x in imports(MODULES[name]) if x != "showface" and LEVEL[layer(x)] > LEVEL[layer(name)]]
    assert not above


def test_there_are_no_circles():
    graph = {name: imports(path) - {"showface", name} for name, path in MODULES.items() if name != "showface"}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(" -> ".join(error.args[1]))


@pytest.mark.parametrize("op", ["memory", "masked_correlation"])
def test_an_operator_is_found_by_its_name(op):
    for path in (
        f"csrc/cpu/{op}.cpp",
        f"csrc/cuda/{op}.cu",
        f"kernels/{op}.py",
        f"showface/ops/{op}.py",
        f"tests/test_ops_{op}.py",
        f"benchmarks/test_{op}.py",
    ):
        assert (ROOT / path).is_file(), path
