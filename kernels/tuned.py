"""The fastest measured tiles per chip, written by tools/tune_triton.py. Other tiles come from tiles.py."""

# compute capability: {(kernel, kind, width): (queries, keys, piece, part, warps, stages)}
TUNED: dict[int, dict[tuple[str, str, int], tuple[int, int, int, int, int, int]]] = {}
