"""Run a probe, or all kernels, under AddressSanitizer and UndefinedBehaviorSanitizer in a separate process.

python sanitized.py probe LIBRARY NAME N THREADS SHARED_BYTES
python sanitized.py kernels LIBRARY
"""

import ctypes
import sys


def run_probe(library: str, name: str, n: int, threads: int, shared_bytes: int) -> None:
    libc = ctypes.CDLL(None)  # with the sanitizer's malloc, which detects accesses outside the array
    libc.malloc.restype = ctypes.c_void_p
    source, target = (ctypes.cast(libc.malloc(4 * n), ctypes.POINTER(ctypes.c_float)) for _ in range(2))
    for i in range(n):
        source[i] = i
    error = ctypes.create_string_buffer(256)
    run = ctypes.CDLL(library).run_probe
    if run(name.encode(), source, target, n, threads, shared_bytes, error):
        raise SystemExit(error.value.decode())


def run_kernels(library: str) -> None:
    import torch

    from showface.ops import definitions

    torch.ops.load_library(library)
    size_chip = ctypes.CDLL(library).cuda_on_cpu_multiprocessors
    ops = torch.ops.showface_cuda_on_cpu
    torch.manual_seed(0)
    # float32 goes through tf32. Each allowance is at least twice the largest error over ten seeds.
    for dtype, atol in ((torch.float64, 1e-9), (torch.float32, 1e-2), (torch.float16, 1e-2), (torch.bfloat16, 0.1)):
        for tokens, regions, slots, channels, values in (
            (1, 1, 1, 1, None),
            (7, 3, 5, 3, 4),
            (5, 2, 1025, 20, None),
            (63, 4, 64, 129, 130),
            (2100, 5, 3, 8, None),  # so many tokens that separate launches sort them
        ):
            latent, memory = torch.randn(tokens, channels).to(dtype), torch.randn(regions, slots, channels).to(dtype)
            value = None if values is None else torch.randn(regions, slots, values).to(dtype)
            region = torch.randint(-1, regions, (tokens,))
            wide = latent.double(), memory.double(), region
            for temperature, multiprocessors in ((None, 1), (torch.tensor(2.0), 132)):
                size_chip(multiprocessors)
                rest = region, temperature, 4.0
                tau = 4.0 if temperature is None else 8.0
                out, lse = ops.memory_attend(latent, memory, value, *rest, True)
                if value is None:
                    expected = definitions.memory_read(*wide, tau)
                    torch.testing.assert_close(out.double(), expected, rtol=0, atol=atol)
                backward = ops.memory_attend_backward
                grads = backward(torch.randn_like(out), latent, memory, value, region, out, lse, *rest[1:], True)
                assert all(x.isfinite().all() for x in grads)
                single = dtype if dtype == torch.float64 else torch.float32
                written = latent.to(single), memory.to(single), *rest
                rho, total = ops.memory_accumulate(*written, False)
                expected = definitions.memory_accumulate(*wide, tau)
                torch.testing.assert_close((rho.double(), total.double()), expected, rtol=1e-4, atol=1e-4)
                expected = definitions.memory_write(*wide, tau, 0.1)[0]
                for after in (ops.memory_write(*written, 0.1, False)[0], ops.memory_blend(memory, rho, total, 0.1)):
                    torch.testing.assert_close(after.double(), expected, rtol=0, atol=atol)
        for tokens, channels, values, all_keys in ((1, 1, 1, True), (7, 3, 5, False), (300, 20, 130, False)):
            size_chip(132 if tokens > 100 else 1)
            query, key = (torch.randn(2, tokens, channels).to(dtype) for _ in range(2))
            value, hole = torch.randn(2, tokens, values).to(dtype), torch.rand(2, tokens) < 0.5
            rest = None, 4.0, all_keys, True
            out, lse = ops.masked_correlation(query, key, value, hole, *rest)
            wide = query.double(), key.double(), value.double(), hole
            expected = definitions.masked_correlation(*wide, 4.0, "all" if all_keys else "valid")
            torch.testing.assert_close(out.double(), expected, rtol=0, atol=atol)
            backward = ops.masked_correlation_backward
            grads = backward(torch.randn_like(value), query, key, value, hole, out, lse, *rest)
            assert all(x.isfinite().all() for x in grads)


if __name__ == "__main__":
    kind, library, *rest = sys.argv[1:]
    if kind == "probe":
        run_probe(library, rest[0], *map(int, rest[1:]))
    else:
        run_kernels(library)
    print("clean")
