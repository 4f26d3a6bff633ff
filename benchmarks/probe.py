"""A first look at a GPU in five minutes: `python benchmarks/probe.py --out FOLDER`.

Times all our backends and all peers on the most telling cases, each call as it is and replayed as a CUDA graph. Writes
FOLDER/probe-DEVICE.json after each case, in the form of the records. An implementation that fails, ours too, is left
out with its error, and a case that fails does not stop the others.

Functions of torch.compile are timed only with --compiled, because compiling takes most of the time; FlexAttention is
always compiled. The benchmarks time everything.
"""

import argparse
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import correlation_cases
import memory_cases
import record
from interleaved import Case, Checked, Work, first_line, group_name, time_all
from measure import DEVICE


@dataclass(frozen=True)
class Trial:
    """A case, its minimum work, and what makes and checks the implementations of these names."""

    case: Case
    work: Work
    names: tuple[str, ...]
    why_left_out: Callable[[str], str | None]
    prepare: Callable[..., Checked]


def trial(cases: Any, op: str, problem: Any, names: Any) -> Trial:
    """`cases` is one of the modules with the cases of an operator."""
    return Trial(
        {"op": op, **asdict(problem)},
        cases.work(problem),
        tuple(names),
        partial(cases.why_left_out, problem=problem),
        partial(cases.prepare, problem),
    )


def correlation(problem: correlation_cases.Problem) -> Trial:
    return trial(correlation_cases, "masked_correlation", problem, correlation_cases.IMPLEMENTATIONS)


def memory(problem: memory_cases.Problem) -> Trial:
    names = memory_cases.implementations(problem.mode, problem.dtype)
    return trial(memory_cases, "memory", problem, names)


def trials(smoke: bool = False) -> Iterator[Trial]:
    """The cases, in the order of what one wants to know first. With `smoke`, small ones for a test on any device."""
    if smoke:
        small = correlation_cases.Problem("blob", 64, 8, 0.3, 2, "bfloat16", "forward and backward")
        yield correlation(small)
        yield from (
            memory(memory_cases.Problem("regions", 38, 19, 8, 16, "float32", mode)) for mode in ("read", "write")
        )
        return
    # In training a call has a backward too. Each case takes about as long as compiling FlexAttention for it.
    for mode in ("forward", "forward and backward"):
        for tokens, batch in ((16384, 4), (4096, 32)):
            for channels in (128, 64, 256):
                size = {"tokens": tokens, "batch": batch, "channels": channels}
                yield correlation(correlation_cases.Problem(dtype="bfloat16", mode=mode, **size))
        if mode == "forward":
            for dtype in ("bfloat16", "float32"):
                for shape in memory_cases.SHAPES:
                    yield from (memory(replace(shape, dtype=dtype, mode=each)) for each in ("read", "write"))


def run_trial(each: Trial, rounds: int, compiled: bool) -> None:
    """Time one case, and add it to the record."""
    reasons = {name: each.why_left_out(name) for name in each.names}
    if not compiled:
        reasons |= {name: "only with --compiled" for name in each.names if name.startswith("compiled")}
    checked = each.prepare(tuple(name for name in each.names if not reasons[name]), keep_going=True)
    left_out = {name: reason for name, reason in reasons.items() if reason} | dict(checked.left_out)
    time_all(each.case, Checked(checked.runs, left_out), work=each.work, rounds=rounds, keep_going=True)


def lines(name: str) -> Iterator[str]:
    """The results of a case, the fastest first."""
    group = record.group(name)
    for each, x in sorted(group["results"].items(), key=lambda item: item[1]["median_ms"]):
        graph = f", as a graph {x['graph']['median_ms']:9.4f} ms" if "graph" in x else ""
        yield f"  {x['median_ms']:9.4f} ms{graph}, {x['share_of_floor']:4.0%} of the roofline: {each}"
    yield from (f"  left out: {each}: {reason}" for each, reason in group.get("left_out", {}).items())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--out", type=Path, metavar="FOLDER", help="where to write probe-DEVICE.json")
    parser.add_argument("--list", action="store_true", help="print the cases, and measure nothing")
    parser.add_argument("--only", default="", metavar="TEXT", help="only cases whose name contains this text")
    parser.add_argument("--compiled", action="store_true", help="also time what torch.compile makes of the peers")
    parser.add_argument("--minutes", type=float, default=5, help="after so many minutes, start no other case")
    parser.add_argument("--rounds", type=int, help="timed calls of each implementation (15; 2 with --smoke)")
    parser.add_argument("--smoke", action="store_true", help="small sizes, to test this program on any device")
    options = parser.parse_args()
    chosen = {group_name(each.case): each for each in trials(options.smoke)}
    chosen = {name: each for name, each in chosen.items() if options.only in name}
    if options.list:
        print("\n".join(chosen))
        return
    if options.out is None:
        parser.error("--out is missing")
    if DEVICE == "cpu" and not options.smoke:
        parser.error("the cases are for a GPU, and there is none; --smoke runs small ones on a CPU")

    rounds = options.rounds or (2 if options.smoke else 15)
    path, start = record.path_of("probe", options.out), time.perf_counter()
    failed: dict[str, str] = {}
    waiting = list(chosen)
    while waiting:
        seconds = time.perf_counter() - start
        if seconds > 60 * options.minutes:
            print(f"{seconds:.0f} s: no time for {len(waiting)} cases")
            break
        name = waiting.pop(0)
        print(f"{seconds:.0f} s: {name}", flush=True)
        try:
            run_trial(chosen[name], rounds, options.compiled)
        except Exception as error:
            failed[name] = first_line(error)
            print(f"  failed: {failed[name]}", flush=True)
        else:
            print("\n".join(lines(name)), flush=True)
        record.write_all(path, {"complete": not waiting, "failed": failed, "not_measured": waiting})
    print(f"written: {path}")


if __name__ == "__main__":
    main()
