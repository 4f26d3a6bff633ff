"""Train, be killed at random moments, and go on, until the run is complete: is it the run without a stop?

    python -m support.kills FACES OUT STRIKES SEED SETTING...      (in a process with the layer of faults.c)

Each attempt is a forked child that trains with one data worker. It is struck in one of four ways, in turn: it is killed
at a random time; it is killed within a random call that writes a file of the run; its worker is killed; or all its
processes are stopped for some time and then killed. Every complete run must have the bits of the run without a stop.
Prints how often each way struck.
"""

import os
import random
import signal
import sys
import time
from collections import Counter
from pathlib import Path

import torch

from showface.training import Trainer, load_config
from showface.training.checkpoint import list_checkpoints, load_checkpoint

from support.faults import arm
from support.runs import assert_same_run, small

WAYS = ("killed", "killed while writing", "worker killed", "stopped, then killed")


def train(faces: Path, out: Path, settings: list[str], fault_at: int) -> None:
    """The child: make or resume the run. Ends with status 0 if it is complete, 1 after an OSError."""
    os.setsid()
    status = 2
    try:
        if fault_at:
            arm(str(out), "kill", fault_at)
        resume = bool(list_checkpoints(out / "checkpoints"))
        config = load_config(out / "config.yaml") if resume else small(faces, "data.workers=1", *settings)
        Trainer(config, out, resume=resume).run()
        status = 0
    except OSError as error:
        print(error, file=sys.stderr, flush=True)
        status = 1
    finally:
        os._exit(status)


def start(*arguments) -> int:
    child = os.fork()
    if child == 0:
        train(*arguments)
    return child


def others(child: int) -> list[int]:
    """The data workers of a child."""
    tasks = Path(f"/proc/{child}/task/{child}/children")
    return [int(number) for number in tasks.read_text().split()] if tasks.exists() else []


def strike(child: int, way: str, delay: float, rng: random.Random) -> None:
    ends = time.monotonic() + delay
    while time.monotonic() < ends and os.waitid(os.P_PID, child, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
        time.sleep(0.01)
    try:
        if way == "killed":
            os.kill(child, signal.SIGKILL)
        elif way == "worker killed":
            for worker in others(child):
                os.kill(worker, signal.SIGKILL)
        elif way == "stopped, then killed":
            os.killpg(child, signal.SIGSTOP)
            time.sleep(rng.uniform(0.5, 2))
            os.killpg(child, signal.SIGCONT)
            time.sleep(rng.uniform(0, 0.5))
            os.kill(child, signal.SIGKILL)
    except ProcessLookupError:
        pass  # it was complete before


def main(faces: Path, out: Path, strikes: int, seed: int, settings: list[str]) -> None:
    torch.set_num_threads(1)
    rng = random.Random(seed)
    started = time.monotonic()
    whole, children = start(faces, out / "whole", settings, 0), []
    assert os.waitpid(whole, 0)[1] == 0
    whole_time = time.monotonic() - started
    struck: Counter[str] = Counter()
    runs = 0
    while struck.total() < strikes:
        run = out / f"run{runs}"
        while True:
            way = WAYS[struck.total() % len(WAYS)] if struck.total() < strikes else ""
            child = start(faces, run, settings, rng.randint(1, 2000) if way == "killed while writing" else 0)
            children.append(child)
            if way and way != "killed while writing":
                strike(child, way, rng.uniform(0, whole_time / 2), rng)
            _, status = os.waitpid(child, 0)
            if status == 0:
                break
            if os.WIFSIGNALED(status):
                assert os.WTERMSIG(status) == signal.SIGKILL, status
            else:
                assert (way, os.waitstatus_to_exitcode(status)) == ("worker killed", 1), (way, status)
            struck[way] += 1
        assert load_checkpoint(run / "checkpoints")["step"] == load_config(run / "config.yaml").steps
        assert_same_run(out / "whole", run)
        model = "model/model.safetensors"
        assert (run / model).read_bytes() == (out / "whole" / model).read_bytes()
        assert not list(run.rglob(".*"))
        runs += 1
    ends = time.monotonic() + 30
    while any(alive(child) for child in children):
        assert time.monotonic() < ends, "data workers outlived their run"
        time.sleep(0.1)
    print(f"{struck.total()} strikes in {runs} runs: {dict(struck)}")


def alive(group: int) -> bool:
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4]), sys.argv[5:])
