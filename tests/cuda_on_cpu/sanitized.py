"""Run one thing under AddressSanitizer and UndefinedBehaviorSanitizer, in a process that was started for it.

python sanitized.py probe LIBRARY NAME N THREADS SHARED_BYTES
python sanitized.py kernels LIBRARY
"""

import ctypes
import sys


def run_probe(library: str, name: str, n: int, threads: int, shared_bytes: int) -> None:
    libc = ctypes.CDLL(None)  # its malloc is the sanitizer's, which guards what lies around it
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
    ops = torch.ops.showface_cuda_on_cpu
    for dtype in (torch.float64, torch.float32, torch.float16, torch.bfloat16):
        for tokens, regions, slots, channels in ((1, 1, 1, 1), (7, 3, 5, 3), (5, 2, 1025, 20), (63, 4, 64, 129)):
            latent, memory = torch.randn(tokens, channels).to(dtype), torch.randn(regions, slots, channels).to(dtype)
            region = torch.randint(-1, regions, (tokens,))
            for temperature in (None, torch.tensor(2.0)):
                out = ops.memory_read(latent, memory, region, temperature, 4.0)
                wide = latent.double(), memory.double(), region
                expected = definitions.memory_read(*wide, 4.0 if temperature is None else 8.0)
                torch.testing.assert_close(out.double(), expected, rtol=0, atol=2e-2)
        for tokens, channels, values, all_keys in ((1, 1, 1, True), (7, 3, 5, False), (65, 20, 130, False)):
            query, key = (torch.randn(2, tokens, channels).to(dtype) for _ in range(2))
            value, hole = torch.randn(2, tokens, values).to(dtype), torch.rand(2, tokens) < 0.5
            rest = None, 4.0, all_keys, True
            out, log_sum = ops.masked_correlation(query, key, value, hole, *rest)
            wide = query.double(), key.double(), value.double(), hole
            expected = definitions.masked_correlation(*wide, 4.0, "all" if all_keys else "valid")
            torch.testing.assert_close(out.double(), expected, rtol=0, atol=4e-2)
            backward = ops.masked_correlation_backward
            grads = backward(torch.randn_like(value), query, key, value, hole, out, log_sum, *rest)
            assert all(x.isfinite().all() for x in grads)


if __name__ == "__main__":
    kind, library, *rest = sys.argv[1:]
    if kind == "probe":
        run_probe(library, rest[0], *map(int, rest[1:]))
    else:
        run_kernels(library)
    print("clean")
