"""The C++ kernels for the CPU under AddressSanitizer with UndefinedBehaviorSanitizer, and under ThreadSanitizer."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

import planted_faults
from support.cuda_on_cpu import build

ROOT = build.ROOT
pytestmark = [
    pytest.mark.long,
    pytest.mark.skipif(build.why_not() is not None, reason=f"{build.why_not()}"),
    pytest.mark.skipif(not (ROOT / "setup.py").is_file(), reason="showface is not in a checkout"),
]
FLAGS = {"address": build.SANITIZERS, "thread": ["-fsanitize=thread", "-g"]}
RUNTIMES = {"address": "libasan.so", "thread": "libtsan.so"}
THREADS = Path(__file__).parent / "support" / "four_threads.cpp"
OPERATORS = ("ops_memory", "ops_masked_correlation", "ops_coordination_loss", "cpu_bfloat16")
FILES = [f"tests/test_{name}.py" for name in OPERATORS]
# Each kernel runs forward and backward. torch.compile, opcheck and gradcheck only repeat that, and with ThreadSanitizer
# every test is many times slower.
TESTS = {
    "address": "(cpu-cpp or bfloat16) and not compile and not opcheck and not gradcheck",
    "thread": "bfloat16 or cpu-cpp and (test_definition or test_gradient) and not 1023",
}
FAULTS = {
    "address": ("a halved scratch buffer", "make_unique<Buffer<T>>(size)", "make_unique<Buffer<T>>(size / 2)"),
    "thread": ("a counter that is not atomic", "std::atomic<int64_t> next{0}", "int64_t next = 0"),
}
# What lies behind the buffer may be memory that was freed.
COMPLAINTS = {"address": "ERROR: AddressSanitizer: heap-", "thread": "WARNING: ThreadSanitizer: data race"}


class Checkout:
    """A copy of the checkout whose extension is compiled with a sanitizer."""

    def __init__(self, folder: Path, kind: str) -> None:
        self.tree, self.kind = folder / "tree", kind
        self.tree.mkdir()
        planted_faults.copy_tree(self.tree)
        self.compiler = folder / "compiler"
        self.compiler.write_text(f'#!/bin/sh\nexec g++ "$@" -O1 {" ".join(FLAGS[kind])}\n')
        self.compiler.chmod(0o755)
        self.threads = folder / "four_threads.so"
        subprocess.run(["g++", "-O1", "-shared", "-fPIC", "-pthread", THREADS, "-o", self.threads], check=True)
        self.build()

    def build(self) -> None:
        planted_faults.build_extension(self.tree, {"CXX": str(self.compiler), "SHOWFACE_BUILD_EXTENSION": "1"})

    def test(self, wanted: str) -> subprocess.CompletedProcess:
        """Run operators' tests with the sanitizer's library preloaded. Its first report ends the process."""
        libraries = [RUNTIMES[self.kind], "libstdc++.so.6"]  # without the second, ASan misses C++'s exceptions
        preload = [_output("g++", f"-print-file-name={name}") for name in libraries]
        if self.kind == "thread":
            preload.append(str(self.threads))
        environment = {
            **os.environ,
            "PYTHONPATH": str(self.tree),
            "LD_PRELOAD": ":".join(preload),
            # Python itself leaks memory, so leaks are not reported. Other errors must end the process.
            "ASAN_OPTIONS": "detect_leaks=0:halt_on_error=1",
            "UBSAN_OPTIONS": "print_stacktrace=1",
            "TSAN_OPTIONS": "halt_on_error=1",
            # What AMX reads and writes is not seen. The kernels with AVX512-BF16 have the same layouts and buffers.
            "SHOWFACE_INSTRUCTION_SET": "avx512_bf16",
            "OMP_NUM_THREADS": "1",
            "MKL_NUM_THREADS": "1",
        }
        # ThreadSanitizer wants addresses that are not random.
        command = ["setarch", "-R"] if self.kind == "thread" else []
        command += [sys.executable, "-m", "pytest", "-q", "-n", "0", "-s", "-p", "no:cacheprovider"]
        command += [*FILES, "-k", wanted]
        return subprocess.run(command, cwd=self.tree, env=environment, capture_output=True, text=True)


def _output(*command: str) -> str:
    return subprocess.check_output(command, text=True).strip()


@pytest.mark.parametrize("kind", FLAGS)
def test_kernels_are_clean_and_a_planted_fault_is_found(tmp_path, kind):
    checkout = Checkout(tmp_path, kind)
    done = checkout.test(TESTS[kind])
    said = done.stdout[-3000:] + done.stderr[-5000:]
    assert done.returncode == 0, said
    assert "cpp: " not in done.stdout, said  # as a reason to skip the tests
    name, right, wrong = FAULTS[kind]
    planted_faults.plant(checkout.tree, planted_faults.Fault(name, "csrc/cpu/attention.h", right, wrong, ""))
    checkout.build()
    done = checkout.test("cpu-cpp and test_definition")
    assert done.returncode != 0
    assert COMPLAINTS[kind] in done.stderr, done.stdout[-3000:] + done.stderr[-5000:]
