"""Keep what a run of pytest-benchmark measured, small enough to commit, and print the ratios to the best peer.

python -m pytest benchmarks/test_masked_correlation.py --benchmark-json=run.json
python benchmarks/record.py run.json benchmarks/results/masked_correlation-cpu.json
"""

import argparse
import json
import math
import platform
from pathlib import Path
from typing import Any

import torch


def processor() -> str:
    """The name of the CPU."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())


def compact(run: dict[str, Any]) -> dict[str, Any]:
    """Device, versions, and for each group and implementation the median and quartiles in milliseconds."""
    groups: dict[str, dict[str, Any]] = {}
    devices = set()
    for one in run["benchmarks"]:
        stats = one["stats"]
        devices.add(one["extra_info"]["device"])
        groups.setdefault(one["group"], {})[one["params"]["name"]] = {
            "median_ms": round(1e3 * stats["median"], 4),
            "quartiles_ms": [round(1e3 * stats["q1"], 4), round(1e3 * stats["q3"], 4)],
            "rounds": stats["rounds"],
        }
    return {
        "date": run["datetime"][:10],
        "device": sorted(devices),
        "processor": processor(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "groups": groups,
    }


def ratios(groups: dict[str, dict[str, Any]]) -> list[tuple[str, str, float, str, float]]:
    """For each group: our best implementation and its ms, the best peer, and the peer's time divided by ours."""
    rows = []
    for group, results in groups.items():
        ours = {name: x["median_ms"] for name, x in results.items() if name.startswith("showface")}
        peers = {name: x["median_ms"] for name, x in results.items() if not name.startswith("showface")}
        if ours and peers:
            best, peer = min(ours, key=ours.__getitem__), min(peers, key=peers.__getitem__)
            rows.append((group, best, ours[best], peer, peers[peer] / ours[best]))
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path, help="JSON of pytest-benchmark")
    parser.add_argument("out", type=Path, help="where the compact JSON goes")
    arguments = parser.parse_args()
    record = compact(json.loads(arguments.run.read_text()))
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    fresh = arguments.out.with_suffix(".new")
    fresh.write_text(json.dumps(record, indent=1) + "\n")
    fresh.replace(arguments.out)
    rows = ratios(record["groups"])
    print("| group | ours | ms | best peer | its time / ours |\n|---|---|---|---|---|")
    for group, best, milliseconds, peer, ratio in rows:
        print(f"| {group} | {best} | {milliseconds:.2f} | {peer} | {ratio:.2f} |")
    for mode in sorted({group.split("% ")[-1] for group, *_ in rows}):
        of_mode = [math.log(ratio) for group, *_, ratio in rows if group.endswith(mode)]
        print(
            f"\n{mode}: geometric mean {math.exp(sum(of_mode) / len(of_mode)):.2f}, least {math.exp(min(of_mode)):.2f}"
        )


if __name__ == "__main__":
    main()
