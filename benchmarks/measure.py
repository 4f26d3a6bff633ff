"""Time and memory of a call, and the best rates of the machine."""

import time
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

Run = Callable[[], Any]
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def seconds(run: Run, *, launches: bool = True) -> float:
    """The time of one call. On a GPU, it is the time between two events, after the caches were flushed.

    Without `launches`, the call is launched while the GPU still flushes its caches, so launch times don't count.
    """
    if DEVICE == "cpu":
        start = time.perf_counter()
        run()
        return time.perf_counter() - start
    torch.empty(2**28, dtype=torch.int8, device=DEVICE).zero_()
    if launches:
        torch.cuda.synchronize()
    events = [torch.cuda.Event(enable_timing=True) for _ in range(2)]
    events[0].record()
    run()
    events[1].record()
    torch.cuda.synchronize()
    return events[0].elapsed_time(events[1]) / 1e3


def peak_mib(run: Run) -> float:
    """The peak of memory allocated by torch during a call, beyond what was allocated before."""
    if DEVICE == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        run()
        return (torch.cuda.max_memory_allocated() - before) / 2**20
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        run()
    # `profiler.events()` sums allocations by operator, but the peak needs single allocations.
    events = [event for event in profiler.profiler.kineto_results.events() if event.name() == "[memory]"]
    allocated = peak = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        allocated += event.nbytes()
        peak = max(peak, allocated)
    return peak / 2**20


def replay(run: Run) -> Run | None:
    """The call as a CUDA graph, without launches from Python; None if the call synchronises with the host."""
    if DEVICE == "cpu":
        return None
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):  # warm up, so that one-time initialisation is not captured
        for _ in range(3):
            run()
    torch.cuda.current_stream().wait_stream(side)
    # A failed capture corrupts the state of torch's allocator, so test for synchronisation first.
    torch.cuda.set_sync_debug_mode("error")
    try:
        expected = run()
    except RuntimeError:
        return None
    finally:
        torch.cuda.set_sync_debug_mode("default")
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = run()
    graph.replay()
    for got, wanted in zip(captured, expected, strict=True):
        # Sums whose order varies may round to another number, and half precision rounds coarsely.
        limit = 1e-3 if wanted.dtype == torch.float32 else 0.03
        torch.testing.assert_close(got, wanted, rtol=limit, atol=limit)
    return graph.replay


def product(dtype: torch.dtype) -> tuple[Run, float]:
    """torch's product of large square matrices, and its number of operations."""
    side = 2048 if DEVICE == "cpu" else 8192
    a, b = (torch.randn(side, side, device=DEVICE).to(dtype) for _ in range(2))
    return partial(torch.matmul, a, b), 2.0 * side**3


def copy() -> tuple[Run, float]:
    """A copy of a large tensor, and the number of bytes it reads and writes."""
    source = torch.zeros(2**24 if DEVICE == "cpu" else 2**28, device=DEVICE)
    return partial(torch.empty_like(source).copy_, source), 2.0 * source.nbytes
