"""The list of work of the Triton kernels: it covers all work once, and keeps a GPU busy to the end."""

import itertools
from importlib.util import find_spec

import pytest
import torch

if find_spec("triton") is None:
    pytest.skip("triton is not installed", allow_module_level=True)

from simulate_work import costs_of, holes, time_of

from showface.kernels import work
from showface.kernels.tokens import sort_tokens
from showface.kernels.work import list_work


@pytest.fixture(autouse=True)
def interpreter(device, monkeypatch):
    """Kernels run in Triton's interpreter on a CPU. New memory is filled with numbers that are no counts."""
    if device == "cpu" and torch.cuda.is_available():
        pytest.skip("kernels are compiled where there is a GPU")
    monkeypatch.setenv("TRITON_INTERPRET", "1" if device == "cpu" else "0")
    torch.use_deterministic_algorithms(True, warn_only=True)
    yield
    torch.use_deterministic_algorithms(False)


torch.manual_seed(0)
GROUPS = {  # tokens of each image: the group of each, -1 = none
    "holes": (torch.rand(5, 97) < torch.tensor([0.0, 0.02, 0.3, 0.6, 1.0])[:, None], 1),
    "regions": (torch.randint(-1, 4, (1, 97)) * (torch.rand(1, 97) < 0.4), 5),
    "one token": (torch.ones(1, 1, dtype=torch.bool), 1),
    "many images": (torch.rand(70, 12) < 0.3, 1),
}


@pytest.mark.parametrize("slots", [1, 40])
@pytest.mark.parametrize("over_queries", [False, True])
@pytest.mark.parametrize(
    ("name", "listed_keys"), [(name, False) for name in GROUPS] + [(name, True) for name in GROUPS if name != "regions"]
)
def test_every_row_meets_every_column_once(device, name, listed_keys, over_queries, slots):
    group, groups = GROUPS[name]
    tokens, keys = group.shape[1], group.shape[1] if listed_keys else 37
    _, offset = sort_tokens(group.to(device), groups)
    how = {"over_queries": over_queries, "listed_keys": listed_keys}
    items, most = list_work(offset, tokens, keys, slots, **how, rows=16, columns=8)
    items = items.tolist()
    met, alone = [], []
    for index, (image, group, row, rows, column, columns, piece, pieces) in enumerate(items):
        assert 0 <= piece < pieces
        if pieces > 1:  # its place in the buffer, and those of the pieces before it
            assert index < most
            assert items[index - piece][:4] == [image, group, row, rows]
        for i in range(row, row + min(rows, 16)):
            met += [(image, group, i, j) for j in range(column, column + columns)]
            alone += [(image, group, i)] * (columns == 0)
    wanted = list(sections(offset.tolist(), keys, listed_keys, over_queries))
    assert sorted(met) == sorted((*where, i, j) for where, rows, columns in wanted for i in rows for j in columns)
    assert sorted(alone) == sorted((*where, i) for where, rows, columns in wanted for i in rows if not columns)


def sections(offset, keys, listed_keys, over_queries):
    """The rows and columns of each image and group, in plain Python."""
    for image, begins in enumerate(offset):
        for group, (begin, end) in enumerate(itertools.pairwise(begins)):
            last = group == len(begins) - 2
            queries = range(begin, end)
            if last:  # the tokens of no group: with listed keys, the rows that are no keys are those of the hole
                rows = range(begin) if listed_keys else range(0)
                yield (image, group), rows if over_queries else queries, range(0)
            else:
                own = range(end, begins[-1]) if listed_keys else range(keys)
                yield (image, group), *((own, queries) if over_queries else (queries, own))


@pytest.mark.parametrize(("batch", "share"), [(1, 0.3), (4, 0.02), (4, 0.1), (4, 0.6), (16, 0.1)])
@pytest.mark.parametrize("over_queries", [False, True])
def test_multiprocessors_are_busy_to_the_end(device, batch, share, over_queries):
    """Holes of different sizes, 4,096 tokens, on 132 multiprocessors, with what items cost besides their units."""
    hole, groups = holes(batch, 4096, share)
    _, offset = sort_tokens(hole.to(device), groups)
    how = {"over_queries": over_queries, "listed_keys": True}
    items, _ = list_work(offset, 4096, 4096, 132, **how, rows=128, columns=64)
    costs = costs_of(items, 64)
    # At best all are equally busy. What is lost may be a quarter, and the time of the shortest piece.
    assert time_of(costs, 132) < 1.25 * sum(costs) / 132 + 2 + work.PIECE_OVERHEAD.value
