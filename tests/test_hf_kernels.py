"""The operators as a kernel for Hugging Face's package `kernels`, in processes that find that package."""

import json
import os
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest
import torch

import showface
from showface import ops

ROOT = Path(showface.__file__).parents[1]
TOOL = ROOT / "tools" / "hf_kernels.py"


def is_installed() -> bool:
    """Whether the package is there. To import it here would give the checkout's own folder kernels/."""
    try:
        return bool(metadata.version("kernels"))
    except metadata.PackageNotFoundError:
        return False


pytestmark = [
    pytest.mark.long,
    pytest.mark.shared("hf_kernels"),
    pytest.mark.skipif(not TOOL.is_file(), reason="showface is not in a checkout"),
    pytest.mark.skipif(not is_installed(), reason="the package kernels is not installed"),
]

PRELUDE = """
import sys
from pathlib import Path
import kernels, torch
from kernels import LocalLayerRepository, Mode, get_local_kernel, kernelize
from kernels import use_kernel_forward_from_hub, use_kernel_mapping
folder = Path(sys.argv[1])
given = torch.load("given.pt")
"""


@pytest.fixture(scope="module")
def kernel(tmp_path_factory) -> Path:
    """A folder with the kernel, built for this machine."""
    out = tmp_path_factory.mktemp("kernel")
    command = [sys.executable, str(TOOL), "--out", str(out)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode and "no C++ compiler" in done.stderr:
        pytest.skip(done.stderr)
    assert done.returncode == 0, done.stderr
    return out


@pytest.fixture
def run(kernel, tmp_path):
    """Run a program elsewhere than in the checkout, whose folder kernels/ hides the package; returns its results."""

    def run_program(program: str, **given: object) -> dict:
        torch.save(given, tmp_path / "given.pt")
        paths = [path for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path and Path(path) != ROOT]
        env = os.environ | {"PYTHONPATH": os.pathsep.join(paths), "HF_HUB_OFFLINE": "1"}
        command = [sys.executable, "-c", PRELUDE + program, str(kernel), str(ROOT)]
        done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return torch.load(tmp_path / "got.pt")

    return run_program


def tensors(dtype: torch.dtype = torch.float32) -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    query, key = torch.randn(2, 2, 63, 20, dtype=dtype)
    return {
        "query": query,
        "key": key,
        "value": torch.randn(2, 63, 12, dtype=dtype),
        "hole": torch.rand(2, 63) < 0.4,
        "latent": torch.randn(63, 20, dtype=dtype),
        "memory": torch.randn(5, 33, 20, dtype=dtype),
        "region": torch.randint(-1, 5, (63,)),
        "temperature": torch.tensor(8.0, dtype=dtype),
    }


CORRELATION, MEMORY = ("query", "key", "value", "hole"), ("latent", "memory", "region")
BACKWARD = """
for x in given.values():
    x.requires_grad_(x.is_floating_point())
kernel = get_local_kernel(folder)
assert "showface" not in sys.modules
correlation, memory = kernel.masked_correlation, kernel.memory_read
if COMPILED:
    correlation = torch.compile(correlation, fullgraph=True, backend="aot_eager")
    memory = torch.compile(memory, fullgraph=True, backend="aot_eager")
one = correlation(*(given[name] for name in CORRELATION), temperature=given["temperature"])
two = memory(*(given[name] for name in MEMORY), temperature=given["temperature"])
(one.square().sum() + two.square().sum()).backward()
gradients = {name: x.grad for name, x in given.items() if x.requires_grad}
torch.save({"one": one.detach(), "two": two.detach(), **gradients}, "got.pt")
"""


@pytest.mark.parametrize("is_compiled", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_results_and_gradients_are_those_of_the_operators(run, dtype, is_compiled):
    given = tensors(dtype)
    head = f"CORRELATION, MEMORY, COMPILED = {CORRELATION}, {MEMORY}, {is_compiled}"
    got = run(head + BACKWARD, **given)
    mine = {name: x.requires_grad_(x.is_floating_point()) for name, x in given.items()}
    one = ops.masked_correlation(*(mine[name] for name in CORRELATION), temperature=mine["temperature"])
    two = ops.memory_read(*(mine[name] for name in MEMORY), temperature=mine["temperature"])
    (one.square().sum() + two.square().sum()).backward()
    expected = {"one": one.detach(), "two": two.detach()} | {k: x.grad for k, x in mine.items() if x.requires_grad}
    assert set(got) == set(expected)
    close = {torch.bfloat16: {"rtol": 0.05, "atol": 0.05}}.get(dtype, {"rtol": 1e-4, "atol": 1e-5})
    for name, x in expected.items():
        torch.testing.assert_close(got[name], x, **close)


def test_kernelize_replaces_the_forward_of_other_modules(run):
    program = """
@use_kernel_forward_from_hub("MaskedCorrelation")
class Attention(torch.nn.Module):
    def forward(self, query, key, value, hole, temperature):
        raise AssertionError("not replaced")

@use_kernel_forward_from_hub("MemoryRead")
class Codebook(torch.nn.Module):
    def forward(self, latent, memory, region, temperature):
        raise AssertionError("not replaced")

model = torch.nn.ModuleList([Attention(), Codebook()])
names = ("MaskedCorrelation", "MemoryRead")
mapping = {name: {"cpu": LocalLayerRepository(folder, layer_name=name)} for name in names}
with use_kernel_mapping(mapping):
    kernelize(model, mode=Mode.TRAINING | Mode.TORCH_COMPILE, device="cpu", use_fallback=False)
one = model[0](given["query"], given["key"], given["value"], given["hole"], 8.0)
two = model[1](given["latent"], given["memory"], given["region"], 8.0)
torch.save({"one": one, "two": two}, "got.pt")
"""
    given = tensors()
    got = run(program, **given)
    one = ops.masked_correlation(*(given[name] for name in CORRELATION), temperature=8.0)
    torch.testing.assert_close(got["one"], one, rtol=1e-4, atol=1e-5)
    two = ops.memory_read(*(given[name] for name in MEMORY), temperature=8.0)
    torch.testing.assert_close(got["two"], two, rtol=1e-4, atol=1e-5)


def test_it_loads_beside_the_package(run):
    program = """
kernel = get_local_kernel(folder)
sys.path.insert(0, sys.argv[2])
from showface import ops
arguments = given["latent"], given["memory"], given["region"]
mine, theirs = ops.memory_read(*arguments, temperature=8.0), kernel.memory_read(*arguments, temperature=8.0)
torch.save({"mine": mine, "theirs": theirs}, "got.pt")
"""
    got = run(program, **tensors())
    torch.testing.assert_close(got["mine"], got["theirs"], rtol=1e-4, atol=1e-5)


def test_wrong_arguments_are_refused(run):
    program = """
kernel = get_local_kernel(folder)
q, hole = given["query"], given["hole"]
errors = []
for key, keys in ((q[:, :5], "valid"), (q.double(), "valid"), (q, "known")):
    try:
        kernel.masked_correlation(q, key, q, hole, temperature=8.0, keys=keys)
    except (RuntimeError, ValueError) as error:
        errors.append(str(error))
torch.save(errors, "got.pt")
"""
    shape, dtype, keys = run(program, **tensors())
    assert "must have the batch and tokens of query" in shape
    assert "differ in dtype" in dtype
    assert "keys must be 'valid' or 'all', got 'known'" in keys


def test_metadata(kernel):
    (variant,) = (kernel / "build").iterdir()
    described = json.loads((variant / "metadata.json").read_text())
    assert (described["name"], described["license"], described["backend"]) == ("showface", "MIT", {"type": "cpu"})
    files = {path.name for path in variant.iterdir() if path.is_file()} - {"metadata.json"}
    assert set(described["digest"]["files"]) == files
    assert (variant / f"{described['id']}.so").is_file()
