"""Random holes for training: free strokes, dabs, scribbles and blocks."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

KINDS = ("strokes", "blocks", "both")

# Number of shapes to draw before the rest of the area is filled at once. Only nearly full holes reach this limit.
MAX_SHAPES = 60


class _Shape(NamedTuple):
    """A painted shape. `order` (H, W) uint8 is n on the n-th dab, at `knots[n - 1]` (x, y), and 0 outside the shape."""

    order: NDArray[np.uint8]
    knots: NDArray[np.float64]
    square: bool


def random_hole(
    height: int,
    width: int,
    rng: np.random.Generator,
    *,
    ratio: tuple[float, float] = (0.01, 0.6),
    kind: str = "both",
) -> NDArray[np.bool_]:
    """Draw a random free-form hole, with a hole ratio drawn uniformly from `ratio`.

    The same state of `rng` gives the same hole.

    Args:
        height, width: the image's size in pixels.
        rng: the source of randomness.
        ratio: lowest and highest fraction of corrupted pixels, `0 <= low <= high <= 1`. The bounds hold exactly, or
            within one pixel if no whole number of pixels lies between them.
        kind: "strokes" (free strokes, dabs and scribbles), "blocks" (rectangles) or "both".

    Returns:
        bool array `(height, width)`, True = hole. At least one pixel is True unless `high` is 0.

    Raises:
        ValueError: a bad size, ratio or kind.
    """
    if height < 1 or width < 1:
        raise ValueError(f"height and width must be at least 1, got {height} and {width}")
    low, high = ratio
    if not 0.0 <= low <= high <= 1.0:
        raise ValueError(f"ratio must satisfy 0 <= low <= high <= 1, got {ratio}")
    if kind not in KINDS:
        raise ValueError(f"kind must be one of {KINDS}, got {kind!r}")
    wanted = _wanted_pixels(height * width, low, high, rng)
    hole = np.zeros((height, width), dtype=np.bool_)
    if not wanted:
        return hole
    share = wanted / hole.size
    margin = _frame_margin(height, width, share, rng)
    painters, weights = _painters(kind, rng)
    # All shapes of a hole share one grain, so that some holes are fine and others coarse.
    grain = float(rng.uniform(0.6, 1.4)) * (0.4 + 0.3 * share + 1.2 * share * share)
    count = 0
    for _ in range(MAX_SHAPES):
        painter = painters[int(np.searchsorted(weights, rng.random(), side="right"))]
        shape = painter(height, width, rng, grain)
        new = shape.order > 0
        if margin:
            _clear_frame(new, margin)
        new &= ~hole
        gain = int(np.count_nonzero(new))
        if count + gain >= wanted:
            hole |= _first_painted(new, shape, wanted - count)
            return hole
        hole |= new
        count += gain
    centre = np.array([[rng.uniform(0, width), rng.uniform(0, height)]])
    rest = _Shape(np.ones((height, width), dtype=np.uint8), centre, square=False)
    return hole | _first_painted(~hole, rest, wanted - count)


def _wanted_pixels(pixels: int, low: float, high: float, rng: np.random.Generator) -> int:
    draw = float(rng.uniform(low, high)) if high > low else low
    if high == 0.0:
        return 0
    # Without the slack, 0.3 * 10 = 3.0000000000000004 would be rounded up to 4.
    least = max(1, math.ceil(low * pixels - 1e-9))
    most = max(least, math.floor(high * pixels + 1e-9))
    return min(max(round(draw * pixels), least), most)


def _frame_margin(height: int, width: int, share: float, rng: np.random.Generator) -> int:
    """Width of a border to keep known: a quarter of the holes below one half stay away from the image's edge."""
    draw = rng.random()
    return int(0.1 * min(height, width)) if draw < 0.25 and share < 0.5 else 0


def _clear_frame(mask: NDArray[np.bool_], margin: int) -> None:
    mask[:margin] = False
    mask[-margin:] = False
    mask[:, :margin] = False
    mask[:, -margin:] = False


def _first_painted(new: NDArray[np.bool_], shape: _Shape, count: int) -> NDArray[np.bool_]:
    """The first `count` pixels of `new` that the brush painted. This shortens a stroke, or shrinks a block."""
    if count <= 0:
        return np.zeros_like(new)
    flat = np.flatnonzero(new)
    rows, columns = np.divmod(flat, new.shape[1])
    order = shape.order.reshape(-1)[flat].astype(np.int64)
    knots = shape.knots[order - 1]
    across, down = columns - knots[:, 0], rows - knots[:, 1]
    if shape.square:
        distance = np.maximum(np.abs(across), np.abs(down))
    else:
        distance = np.sqrt(across * across + down * down)
    key = order + distance / (2.0 * sum(new.shape))
    kept = np.argpartition(key, count - 1)[:count]
    first = np.zeros_like(new)
    first.reshape(-1)[flat[kept]] = True
    return first


Painter = Callable[[int, int, np.random.Generator, float], _Shape]


def _painters(kind: str, rng: np.random.Generator) -> tuple[list[Painter], NDArray[np.float64]]:
    """The kinds of shapes for one hole, and their cumulative probabilities."""
    if kind == "blocks":
        return [_block], np.ones(1)
    painters: list[Painter] = [_stroke, _dabs, _scribble]
    # Small alphas: one or two kinds of shapes dominate most holes.
    alphas = [1.2, 0.5, 0.6]
    if kind == "both":
        painters.append(_block)
        alphas.append(0.3)
    weights = np.cumsum(rng.dirichlet(alphas))
    weights[-1] = 1.0
    return painters, weights


def _stroke(height: int, width: int, rng: np.random.Generator, grain: float) -> _Shape:
    """A stroke: straight or bent, steady or shaky, with a varying width."""
    side = min(height, width)
    steps = int(rng.integers(3, 12))
    step = side * rng.uniform(0.05, 0.14)
    bend = 0.0 if rng.random() < 0.25 else rng.uniform(0.05, 0.6)
    turns = rng.uniform(-1, 1) * bend + rng.normal(0.0, bend, steps)
    if rng.random() < 0.25:
        turns[rng.integers(steps)] += rng.uniform(-2.5, 2.5)
    angles = rng.uniform(0, 2 * math.pi) + np.cumsum(turns)
    knots = np.empty((steps + 1, 2))
    knots[0] = rng.uniform(0, width), rng.uniform(0, height)
    knots[1:, 0] = knots[0, 0] + np.cumsum(np.cos(angles)) * step
    knots[1:, 1] = knots[0, 1] + np.cumsum(np.sin(angles)) * step
    drift = np.cumsum(rng.normal(0.0, rng.uniform(0.0, 0.25), steps + 1))
    radii = side * rng.uniform(0.018, 0.07) * grain * np.exp(np.clip(drift, -0.8, 0.8))
    return _paint(height, width, knots, radii, np.ones(steps, dtype=np.bool_))


def _dabs(height: int, width: int, rng: np.random.Generator, grain: float) -> _Shape:
    """Small separate dabs, round or elongated, scattered along a line."""
    side = min(height, width)
    number = int(rng.integers(3, 11))
    angle = rng.uniform(0, 2 * math.pi)
    line = np.array((math.cos(angle), math.sin(angle)))
    reach = np.linspace(0.0, side * rng.uniform(0.1, 0.6), number)[:, None]
    starts = np.array((rng.uniform(0, width), rng.uniform(0, height))) + reach * line
    starts += rng.normal(0.0, side * rng.uniform(0.02, 0.12), (number, 2))
    # In half of the scatters all dabs point the same way, like rain; in the others each has its own direction.
    across = rng.normal(0.0, 0.3) if rng.random() < 0.5 else rng.normal(0.0, 1.0, number)
    directions = angle + np.broadcast_to(across, number)
    lengths = side * rng.uniform(0.0, 0.07, number)
    knots = np.repeat(starts, 2, axis=0)
    knots[1::2, 0] += np.cos(directions) * lengths
    knots[1::2, 1] += np.sin(directions) * lengths
    radii = np.repeat(side * rng.uniform(0.008, 0.028, number) * (0.5 + grain), 2)
    return _paint(height, width, knots, radii, np.arange(2 * number - 1) % 2 == 0)


def _scribble(height: int, width: int, rng: np.random.Generator, grain: float) -> _Shape:
    """A brush moving back and forth around a point: a ragged patch, often with gaps."""
    side = min(height, width)
    number = int(rng.integers(5, 15))
    spread = side * rng.uniform(0.05, 0.13) * (0.5 + grain)
    offsets = rng.normal(0.0, spread, (number, 2)) * rng.uniform(0.4, 1.6, 2)
    knots = np.array((rng.uniform(0, width), rng.uniform(0, height))) + offsets
    radii = spread * rng.uniform(0.15, 0.5) * rng.uniform(0.8, 1.2, number)
    return _paint(height, width, knots, radii, np.ones(number - 1, dtype=np.bool_))


def _block(height: int, width: int, rng: np.random.Generator, grain: float) -> _Shape:
    """A rectangle with straight edges."""
    across = max(1.0, width * rng.uniform(0.06, 0.4) * min(1.0, 0.4 + grain))
    down = max(1.0, height * rng.uniform(0.06, 0.4) * min(1.0, 0.4 + grain))
    left = rng.uniform(-0.5 * across, width - 0.5 * across)
    top = rng.uniform(-0.5 * down, height - 0.5 * down)
    x0, y0 = max(0, round(left)), max(0, round(top))
    order = np.zeros((height, width), dtype=np.uint8)
    order[y0 : max(y0 + 1, round(top + down)), x0 : max(x0 + 1, round(left + across))] = 1
    return _Shape(order, np.array([[x0, y0]], dtype=np.float64), square=True)


def _paint(
    height: int, width: int, knots: NDArray[np.float64], radii: NDArray[np.float64], joins: NDArray[np.bool_]
) -> _Shape:
    """Draw discs at the knots, and a line from a knot to the next where `joins` is True."""
    canvas = Image.new("L", (width, height))
    draw = ImageDraw.Draw(canvas)
    points: list[list[float]] = knots.tolist()
    sizes: list[float] = np.maximum(radii, 0.5).tolist()
    joined: list[bool] = [*joins.tolist(), False]
    # Painted last to first, so that overlapping dabs keep the number of the earlier one.
    for index in range(len(points) - 1, -1, -1):
        (x, y), radius = points[index], sizes[index]
        if joined[index]:
            line = max(1, round(radius + sizes[index + 1]))
            draw.line([x, y, *points[index + 1]], fill=index + 1, width=line)
            if line <= 3:
                # At the bends of such a thin line the gap is below one pixel, so no disc is needed.
                continue
        draw.ellipse([x - radius, y - radius, x + radius, y + radius], fill=index + 1)
    return _Shape(np.asarray(canvas), knots, square=False)
