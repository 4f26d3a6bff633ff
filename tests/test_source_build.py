"""The sources as they are distributed, and building them: in folders with odd names, and to the same bytes again."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from zipfile import ZipFile

import build_script
import pytest

import showface

import planted_faults

ROOT = Path(showface.__file__).parents[1]
pytestmark = pytest.mark.skipif(not (ROOT / "setup.py").is_file(), reason="showface is not in a checkout")


@pytest.fixture
def build() -> ModuleType:
    """The functions of setup.py."""
    for name in ("setuptools", "ninja", "pybind11"):
        pytest.importorskip(name)
    return build_script.load()


def builders_environment(**settings):
    """Without PYTHONPATH: a checkout in it has a folder `kernels`, and setuptools loads what packages register."""
    return {name: value for name, value in os.environ.items() if name != "PYTHONPATH"} | settings


def copy_tracked(folder):
    """Copy all tracked files of the checkout, since building writes into it, and other tests change it meanwhile."""
    if not (ROOT / ".git").exists():
        pytest.skip("it is not a git checkout")
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    names = [name for name in listed.split("\0") if name]
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / name, folder / name)
    return names


def test_the_source_distribution_holds_every_tracked_file(tmp_path):
    pytest.importorskip("setuptools")
    tracked = copy_tracked(tmp_path / "copy")
    command = [sys.executable, "setup.py", "-q", "egg_info", "--egg-base", str(tmp_path)]
    done = subprocess.run(command, cwd=tmp_path / "copy", env=builders_environment(), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    listed = (tmp_path / "showface.egg-info" / "SOURCES.txt").read_text().splitlines()
    assert not set(tracked) - set(listed)


@pytest.mark.long
def test_a_wheel_from_the_source_distribution_works(tmp_path):
    """Built and imported outside of the checkout, with its compiled operators if there is a compiler."""
    for name in ("setuptools", "ninja", "pybind11"):
        pytest.importorskip(name)
    hook = "from setuptools import build_meta; print(build_meta.build_{}({!r}))"

    def build(kind: str, source: Path) -> Path:
        command = [sys.executable, "-c", hook.format(kind, str(tmp_path))]
        env = builders_environment(SHOWFACE_BUILD_CUDA="0")
        done = subprocess.run(command, cwd=source, env=env, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return tmp_path / done.stdout.splitlines()[-1]

    copy_tracked(tmp_path / "copy")
    archive = build("sdist", tmp_path / "copy")
    shutil.unpack_archive(archive, tmp_path / "unpacked", filter="data")
    wheel = build("wheel", tmp_path / "unpacked" / archive.name.removesuffix(".tar.gz"))
    shutil.unpack_archive(wheel, tmp_path / "installed", "zip")
    program = """
import torch
import showface, showface.kernels
from showface import native, ops
print(showface.__file__)
print(native.why_missing())
x = torch.randn(1, 9, 4)
ops.masked_correlation(x, x, x, torch.rand(1, 9) < 0.5, temperature=8.0)
showface.load_model()
"""
    env = os.environ | {"PYTHONPATH": str(tmp_path / "installed")}
    done = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found, missing = done.stdout.splitlines()
    assert Path(found).is_relative_to(tmp_path / "installed")
    assert missing == "None" or "compiler" in missing


@pytest.mark.parametrize("name", ["$HOME", "with space", "a:b", "$", "pa'rt", 'quo"te', "#x", "é", "100%", "a&b;c"])
def test_odd_folders(build, tmp_path, name):
    if not build.output_of(["c++", "--version"]):
        pytest.skip("there is no C++ compiler")
    root = tmp_path / name
    (root / "csrc").mkdir(parents=True)
    (root / "csrc" / "one.cpp").write_text('#include "two.h"\nextern "C" int answer() { return two; }\n')
    (root / "csrc" / "two.h").write_text("constexpr int two = 2;\n")
    build.ROOT = root
    output = root / "out" / "_C.so"
    for _ in range(2):  # the second run reads the dependencies that the first one wrote
        build.compile_extension(output, root / "objects", None)
    assert output.is_file()
    assert (root / "objects" / "csrc" / "one.cpp.o").is_file()


def test_a_folder_that_ninja_can_not_hold(build, tmp_path):
    with pytest.raises(build.UnavailableError, match="ninja can't build in a folder whose name has a line break"):
        build.ninja_file(tmp_path / "line\nbreak", tmp_path, None)


def test_a_build_without_a_result_is_no_success(build, tmp_path, monkeypatch):
    done = subprocess.CompletedProcess([], 0, stdout="")
    monkeypatch.setattr(build, "ninja_file", lambda *_: "")
    monkeypatch.setattr(build.subprocess, "run", lambda *_, **__: done)
    with pytest.raises(build.UnavailableError, match="ninja reported success, but there is no "):
        build.compile_extension(tmp_path / "out" / "_C.so", tmp_path / "objects", None)


@pytest.mark.long
def test_the_same_wheel_from_two_folders(build, tmp_path):
    if not build.output_of(["c++", "--version"]):
        pytest.skip("there is no C++ compiler")
    env = builders_environment(SOURCE_DATE_EPOCH="1700000000", SHOWFACE_BUILD_EXTENSION="1", SHOWFACE_BUILD_CUDA="0")
    wheels = []
    for name in ("first", "a second/folder"):
        tree, out = tmp_path / name, tmp_path / f"{name} wheel"
        tree.mkdir(parents=True)
        planted_faults.copy_tree(tree)
        shutil.rmtree(tree / "build", ignore_errors=True)
        command = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "--no-cache-dir"]
        command += ["--wheel-dir", str(out), str(tree)]
        done = subprocess.run(command, env=env, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-2000:]
        wheels += list(out.iterdir())
    assert wheels[0].name == wheels[1].name
    assert wheels[0].read_bytes() == wheels[1].read_bytes()
    with ZipFile(wheels[0]) as wheel:
        library = wheel.read(next(x for x in wheel.namelist() if x.startswith("showface/_C.")))
    for place in (tmp_path, build.find_torch()[0]):  # torch is elsewhere in pip's own build environment
        assert os.fsencode(place) not in library
    # It loads with the oldest glibc for which torch has wheels, whatever the one that it was compiled with.
    versions = re.findall(rb"\0GLIBC_2\.(\d+)(?=[.\0])", library)
    assert 0 < max(map(int, versions)) <= 28


def test_the_file_for_kernel_builder_names_every_source():
    """All but that of the Python module. `tools/hf_kernels.py` finds them itself."""
    text = (ROOT / "integrations" / "hf_kernels" / "build.toml").read_text()
    sources = [*(ROOT / "csrc").glob("*.cpp"), *(ROOT / "csrc" / "cpu").glob("*.cpp")]
    for source in sources:
        assert (f'"{source.relative_to(ROOT).as_posix()}"' in text) == (source.name != "module.cpp")
