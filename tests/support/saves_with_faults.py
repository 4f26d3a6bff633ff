"""Save a run again and again, each time with another call that goes wrong, and check what is left.

    python -m support.saves_with_faults FACES OUT STRIDE KIND...      (in a process with the layer of faults.c)

Each fault strikes a forked child, at every STRIDE-th call. Prints the number of faults of each kind.
"""

import json
import os
import shutil
import signal
import sys
from pathlib import Path

import torch
from safetensors.torch import load_file

from showface import MDRNets
from showface.training import Trainer, load_config
from showface.training.checkpoint import list_checkpoints, load_checkpoint
from showface.training.resume import remove_leftovers

from support.faults import arm, seen
from support.runs import small

MODEL = "model/model.safetensors"


def same(a: dict, b: dict) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def save_with_fault(trainer: Trainer, kind: str, at: int) -> tuple[str, bool]:
    """Save in a child. Returns its end ("saved", "refused" or "killed"), and whether the fault struck."""
    child = os.fork()
    if child == 0:
        end = 3
        try:
            arm(str(trainer.out), kind, at)
            trainer.save()
            end = 0
        except OSError as error:
            end = 1 if "can't write the" in str(error) else 2
        finally:
            os._exit(end + 16 * (seen() >= at))
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status):
        assert os.WTERMSIG(status) == signal.SIGKILL
        return "killed", True
    end = os.waitstatus_to_exitcode(status)
    return {0: "saved", 1: "refused"}[end % 16], end >= 16


def main(faces: Path, out: Path, stride: int, kinds: list[str]) -> None:
    torch.set_num_threads(1)  # a forked child has no threads
    trainer = Trainer(small(faces, "steps=9", "keep=1", "warmup=1"), out)
    batches = trainer._batches()
    trainer.train_step([next(batches)])
    trainer.save()
    MDRNets.from_pretrained(out / "model")
    old = load_file(out / MODEL)
    old_step = trainer.step
    trainer.train_step([next(batches)])
    new = {name: x.cpu() for name, x in trainer._ema_model().state_dict().items()}
    assert not same(old, new)
    before = out.with_name("before")
    shutil.copytree(out, before)
    load_config(out / "config.yaml")
    for number, kind in enumerate(kinds):
        at, count = 1 + number, 0  # so that kinds strike at different calls
        while True:
            end, struck = save_with_fault(trainer, kind, at)
            if not struck:
                break
            assert end == {"short write": "saved", "kill": "killed"}.get(kind, "refused") or _after_rename(out), (
                kind,
                at,
            )
            step = load_checkpoint(out / "checkpoints")["step"]
            model = load_file(out / MODEL)
            json.loads((out / "model" / "config.json").read_text())
            assert step in (old_step, trainer.step), (kind, at)
            assert same(model, old) or same(model, new), (kind, at)
            assert same(model, old) or step == trainer.step, (kind, at)  # the model is never ahead of the checkpoint
            if end == "saved":
                assert step == trainer.step
                assert same(model, new)
            left = [path.name for path in out.rglob(".*")]
            if kind == "kill":
                remove_leftovers(out)
                left = [path.name for path in out.rglob(".*")]
            assert left == [".lock"], (kind, at, left)
            assert list_checkpoints(out / "checkpoints")
            if step != old_step:
                for name in ("checkpoints", "model"):
                    shutil.rmtree(out / name)
                    shutil.copytree(before / name, out / name)
            at, count = at + stride, count + 1
        print(f"{kind}: {count}", flush=True)


def _after_rename(out: Path) -> bool:
    """Whether everything was written: flushing the folder's entry may fail without an error."""
    return load_checkpoint(out / "checkpoints")["step"] == 2


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]), sys.argv[4:])
