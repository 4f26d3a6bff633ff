"""Start-up times and the wheel: `pytest benchmarks/test_installation.py`.

Times Python with `import showface`, the command's help, and filling one photo from the shell, compared with Python and
`import torch`. Also builds the wheel from the committed files.
"""

import subprocess
import sys
import tarfile
import time
from functools import partial
from io import BytesIO
from pathlib import Path

import pytest
import record
from interleaved import Checked
from to_pytest import CLOCK, report, skip_if_recorded

ROOT = Path(__file__).parents[1]
STARTS = {
    "python": ["-c", "pass"],
    "import torch": ["-c", "import torch"],
    "showface: import showface": ["-c", "import showface"],
    "showface: import showface.ops": ["-c", "import showface.ops"],
    "showface: showface --help": ["-m", "showface.cli", "--help"],
    "showface: showface demo": ["-m", "showface.cli", "demo", "--out", "{folder}/demo.png"],
}


def start(arguments: list[str], folder: Path) -> None:
    command = [sys.executable, *(each.format(folder=folder) for each in arguments)]
    subprocess.run(command, check=True, capture_output=True, cwd=ROOT)


@pytest.mark.benchmark(timer=CLOCK)
@pytest.mark.parametrize("name", STARTS)
def test_start(benchmark, tmp_path_factory, name: str) -> None:
    case = {"op": "installation", "mode": "start"}
    folder = tmp_path_factory.getbasetemp()
    runs = {each: partial(start, arguments, folder) for each, arguments in STARTS.items()}
    report(benchmark, case, name, lambda: Checked(runs, {}), work=None, rounds=7)


def test_wheel(benchmark, tmp_path: Path) -> None:
    """Build time and size of the wheel, with the kernels that this machine's compilers can build."""
    if not (ROOT / ".git").exists():
        pytest.skip("not a git checkout")
    skip_if_recorded("wheel")
    archive = subprocess.run(["git", "archive", "HEAD"], cwd=ROOT, check=True, capture_output=True).stdout
    with tarfile.open(fileobj=BytesIO(archive)) as files:
        files.extractall(tmp_path / "checkout", filter="data")
    # Without build isolation, which would download torch first and so measure the network.
    command = [sys.executable, "-m", "pip", "wheel", ".", "--no-deps", "--no-build-isolation", "-w", str(tmp_path)]
    begin = time.perf_counter()
    benchmark.pedantic(partial(subprocess.run, command, cwd=tmp_path / "checkout", check=True), rounds=1)
    taken = time.perf_counter() - begin
    (wheel,) = tmp_path.glob("*.whl")
    sizes = {"wheel_mib": round(wheel.stat().st_size / 2**20, 2), "build_s": round(taken, 1)}
    benchmark.extra_info.update(sizes)
    record.add("wheel", {"op": "installation", "mode": "wheel"}, {}, {"showface": sizes})
