"""Atomic writes: modes, links, devices, odd names, and a fault at each call."""

import errno
import os
import stat
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from showface.files import remove_temporaries, write_atomically, write_text


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


@pytest.fixture
def umask():
    before = os.umask(0o027)
    yield
    os.umask(before)


@pytest.mark.usefixtures("umask")
def test_a_new_file_has_the_mode_of_the_umask(tmp_path):
    write_text(tmp_path / "a.txt", "a")
    assert mode(tmp_path / "a.txt") == 0o640
    # safetensors replaces the file by its own, of mode 0600.
    write_atomically(tmp_path / "b.safetensors", lambda path: save_file({"x": torch.zeros(1)}, path))
    assert mode(tmp_path / "b.safetensors") == 0o640


def test_an_existing_file_keeps_its_mode(tmp_path):
    path = tmp_path / "a.txt"
    for bits in (0o600, 0o664, 0o440):
        path.touch()
        path.chmod(bits)
        write_text(path, "new")
        assert mode(path) == bits
        assert path.read_text() == "new"


def test_a_link_is_written_through(tmp_path):
    (tmp_path / "elsewhere").mkdir()
    target = tmp_path / "elsewhere" / "target.txt"
    link = tmp_path / "link.txt"
    link.symlink_to("elsewhere/target.txt")
    for text in ("made", "replaced"):  # the link dangles at first
        write_text(link, text)
        assert link.is_symlink()
        assert target.read_text() == text
    assert sorted(x.name for x in tmp_path.rglob("*")) == ["elsewhere", "link.txt", "target.txt"]
    (tmp_path / "loop").symlink_to("loop")
    with pytest.raises(OSError, match="loop"):
        write_text(tmp_path / "loop", "x")


def test_a_pipe_is_written_not_replaced(tmp_path):
    path = tmp_path / "pipe"
    os.mkfifo(path)
    reader = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    write_text(path, "text")
    assert os.read(reader, 10) == b"text"
    os.close(reader)
    assert stat.S_ISFIFO(path.stat().st_mode)
    with pytest.raises(IsADirectoryError):
        write_text(tmp_path, "x")


def test_names_that_are_not_utf8(tmp_path):
    name = os.fsdecode(b"caf\xe9.txt")
    write_text(tmp_path / name, f"read {name}")
    assert os.listdir(os.fsencode(tmp_path)) == [b"caf\xe9.txt"]
    assert (tmp_path / name).read_text() == r"read caf\xe9.txt"


@pytest.mark.parametrize("call", ["open", "write", "chmod", "fsync", "replace"])
@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO])
def test_a_fault_at_any_call_keeps_the_old_file(tmp_path, monkeypatch, call, number):
    path = tmp_path / "a.txt"
    write_text(path, "old")

    def fail(*args, **kwargs):
        raise OSError(number, os.strerror(number), *([str(args[0])] if call == "open" else []))

    def write(temporary: Path) -> None:
        temporary.write_text("half")
        if call == "write":
            fail()

    owner = {"open": os, "fsync": os, "chmod": Path, "replace": Path, "write": None}[call]
    with monkeypatch.context() as patch:
        if owner is not None:
            patch.setattr(owner, call, fail)
        with pytest.raises(OSError, match=rf"{os.strerror(number)}: '.*a\.txt'"):
            write_atomically(path, write)
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["a.txt"]


def test_temporary_files_of_a_killed_process_are_removed(tmp_path):
    kept = ["step-00000001.pt", "notes.txt", ".step-1.pt", ".config-0123abcd.yaml"]
    for name in [*kept, ".step-00000001-0123abcd.pt", ".step-00000002-x_0z9abc.pt"]:
        (tmp_path / name).touch()
    child = os.fork()
    if child == 0:
        write_atomically(tmp_path / "step-00000003.pt", lambda path: os._exit(0))
    os.waitpid(child, 0)
    assert len(os.listdir(tmp_path)) == 7
    remove_temporaries(tmp_path, "step-*.pt")
    assert sorted(os.listdir(tmp_path)) == sorted(kept)
    remove_temporaries(tmp_path / "nowhere", "step-*.pt")
