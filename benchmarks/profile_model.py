"""The ten most expensive operators of the model: `python benchmarks/profile_model.py [--label before]`.

Profiles inference on one image of 256 pixels, and a training step on four. The result is stored under a label in
benchmarks/results/profile-DEVICE.json, beside the results with other labels; `--out` chooses another folder.
"""

import argparse
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import measure
import record
from test_mdrnets import Problem, infer, make, network, step
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile


def modes(size: int) -> dict[str, tuple[Problem, Callable[..., Any]]]:
    """What is profiled, for images of this size."""
    return {
        "inference": (Problem(size, 1, 0.5, "float32", "inference"), infer),
        "training step": (Problem(size, 4, 0.5, "float32", "training step"), step),
    }


def costs(run: Callable[[], Any], calls: int = 5) -> dict[str, Any]:
    """Milliseconds per call, and the ten operators with the largest self time, with their share and number of calls."""
    for _ in range(3):
        run()
    taken = 1e3 * median(measure.seconds(run) for _ in range(3 * calls))
    activities = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * (measure.DEVICE == "cuda")
    with profile(activities=activities) as profiler:
        for _ in range(calls):
            run()
    own = "self_device_time_total" if measure.DEVICE == "cuda" else "self_cpu_time_total"
    # Events of the GPU are left out, since their times are included in the operators that launched them.
    operators = [event for event in profiler.key_averages() if event.device_type == DeviceType.CPU]
    events = sorted(operators, key=lambda event: getattr(event, own), reverse=True)
    total = sum(getattr(event, own) for event in events)
    largest = {
        event.key: {"share": round(getattr(event, own) / total, 4), "calls": event.count // calls}
        for event in events[:10]
    }
    return {"ms": round(taken, 2), "largest": largest}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--label", default="now", help="label to store the result under")
    parser.add_argument("--out", type=Path, default=record.RESULTS, metavar="FOLDER", help="where to write the result")
    parser.add_argument("--smoke", action="store_true", help="small images, to test this program")
    options = parser.parse_args()
    found = {}
    for mode, (problem, call) in modes(32 if options.smoke else 256).items():
        found[mode] = costs(partial(call, network(), *make(problem)), calls=1 if options.smoke else 5)
        print(f"{mode}: {found[mode]['ms']} ms")
        for name, cost in found[mode]["largest"].items():
            print(f"  {cost['share']:6.1%} {cost['calls']:5d} x {name}")
    path = record.path_of("profile", options.out)
    kept = record.read(path)["labels"] if path.exists() else {}
    record.save(path, {"labels": kept | {options.label: record.machine() | {"modes": found}}})


if __name__ == "__main__":
    main()
