"""Tiles measured to be the fastest on a chip, written by tools/tune_triton.py; the rest is in tiles.py."""

# compute capability: {(kernel, kind, width): (queries, keys, piece, part, warps, stages)}
TUNED: dict[int, dict[tuple[str, str, int], tuple[int, int, int, int, int, int]]] = {}
