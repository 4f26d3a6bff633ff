"""Build the operators as a kernel for Hugging Face's package `kernels`: one folder for every Python, and torch >= 2.11.

    python tools/hf_kernels.py --out build/hf_kernels

It needs torch, ninja, pybind11, setuptools and a C++ compiler. What is built is in integrations/hf_kernels/build.toml.
"""

import argparse
import base64
import hashlib
import json
import platform
import re
import shutil
import sys
from pathlib import Path

import build_script

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "integrations" / "hf_kernels"
PACKAGE = SOURCE / "torch-ext" / "showface"
KERNELS_MINVER = "0.17.0"  # tested with 0.17.2

OPS = '''"""The namespace of this build's operators. Written by tools/hf_kernels.py."""

from pathlib import Path

import torch

torch.ops.load_library(Path(__file__).with_name("{library}.so"))
ops = torch.ops.{library}


def add_op_namespace_prefix(name: str) -> str:
    """The full name of an operator of this build."""
    return f"{library}::{{name}}"
'''


def build(out: Path) -> Path:
    """Build the kernel for this machine's CPU. Returns the folder of the variant, in `out`/build.

    Raises:
        RuntimeError: the machine is no Linux, or the sources can't be compiled; the message says why.
    """
    builder, config = build_script.load(), _read_config()
    # Builds of different sources can be loaded side by side, so each has its own namespace.
    sources = sorted(path for path in (ROOT / "csrc").rglob("*") if path.is_file())
    digest = hashlib.sha256(b"".join(path.read_bytes() for path in [*sources, *sorted(PACKAGE.glob("*.py"))]))
    library = f"_{config['name']}_cpu_{digest.hexdigest()[:8]}"
    abi = config["stable-abi"].replace(".", "")
    variant = out / "build" / f"torch-stable-abi{abi}-cpu-{platform.machine()}-linux"
    fresh = variant.with_name(f".{variant.name}")
    shutil.rmtree(fresh, ignore_errors=True)
    shutil.copytree(PACKAGE, fresh, ignore=shutil.ignore_patterns("__pycache__"))
    (fresh / "_ops.py").write_text(OPS.format(library=library))
    try:
        objects = ROOT / "build" / "hf_kernels-objects"
        builder.compile_extension((fresh / f"{library}.so").resolve(), objects, None, library)
    except builder.UnavailableError as error:
        shutil.rmtree(fresh)
        raise RuntimeError(str(error)) from error
    metadata = {
        "id": library,
        "name": config["name"],
        "version": int(config["version"]),
        "license": config["license"],
        "kernels-minver": KERNELS_MINVER,
        "python-depends": [],
        "backend": {"type": "cpu"},
        "digest": {"algorithm": "sha256", "files": {path.name: _sha256(path) for path in sorted(fresh.iterdir())}},
    }
    (fresh / "metadata.json").write_text(json.dumps(metadata, indent=2) + "\n")
    shutil.rmtree(variant, ignore_errors=True)
    fresh.rename(variant)
    return variant


def _read_config() -> dict[str, str]:
    """The plain values of build.toml. Python 3.10 has no TOML parser."""
    return dict(re.findall(r'^([\w-]+) = "?([^"\[\n]+)"?$', (SOURCE / "build.toml").read_text(), re.MULTILINE))


def _sha256(path: Path) -> str:
    return base64.b64encode(hashlib.sha256(path.read_bytes()).digest()).decode()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("build/hf_kernels"), help="folder of the kernel")
    try:
        print(build(parser.parse_args().out))
    except RuntimeError as error:
        sys.exit(f"error: {error}")
