"""Simulate how long a GPU takes for the lists of work of the Triton kernels: `python tools/simulate_work.py`.

Makes the lists for holes and regions of many sizes, in Triton's interpreter, and gives their items to multiprocessors
in the order of the list. Prints a table in Markdown: the time as a multiple of what it would be if all multiprocessors
were equally busy and nothing was cut. Needs no GPU. It knows nothing of memory, caches and clocks.
"""

import argparse
import heapq
import os
from collections.abc import Sequence

if __name__ == "__main__":
    os.environ["TRITON_INTERPRET"] = "1"

import torch
from torch import Tensor

from showface.kernels import work
from showface.kernels.tokens import sort_tokens

BLOCKS = 19  # regions of a face


def costs_of(items: Tensor, block_columns: int) -> list[float]:
    """The times of the items, in the order in which programs take them, without those that have no columns.

    The unit is the time of a tile of rows with a tile of columns. items: see `list_work`. block_columns: the columns of
    a tile.
    """
    return [
        -(-columns // block_columns) + (work.PIECE_OVERHEAD if pieces > 1 else work.TILE_OVERHEAD).value
        for *_, columns, _, pieces in reversed(items.tolist())
        if columns
    ]


def time_of(costs: Sequence[float], slots: int) -> float:
    """The time until all items are done, if `slots` of them run at a time. The next one goes to the first free slot."""
    free = [0.0] * slots
    for cost in costs:
        heapq.heappush(free, heapq.heappop(free) + cost)
    return max(free)


def holes(batch: int, tokens: int, share: float) -> tuple[Tensor, int]:
    """Holes that are this share of the tokens on average, from half to one and a half of it."""
    shares = share * torch.linspace(0.5, 1.5, batch) if batch > 1 else torch.tensor([share])
    return torch.rand(batch, tokens) < shares[:, None], 1


def regions(tokens: int, largest: float) -> tuple[Tensor, int]:
    """Regions, the first of which has this share of the tokens."""
    region = torch.randint(1, BLOCKS, (1, tokens))
    region[torch.rand(1, tokens) < largest] = 0
    return region, BLOCKS


def compare(group: Tensor, groups: int, *, over_queries: bool, slots: int, rows: int, columns: int) -> list[float]:
    """The time without cuts and with them, each over the least possible time."""
    _, offset = sort_tokens(group, groups)
    tokens, listed = group.shape[1], groups == 1
    how = {"over_queries": over_queries, "listed_keys": listed, "rows": rows, "columns": columns}
    # With one slot, every number of tiles is a multiple of the slots, so nothing is cut.
    whole, cut = (
        costs_of(work.list_work(offset, tokens, tokens if listed else 64, each, **how)[0], columns)
        for each in (1, slots)
    )
    least = sum(whole) / slots
    return [time_of(costs, slots) / least for costs in (whole, cut)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--slots", type=int, default=132, help="items that run at a time; default: 132, as on an H100")
    slots = parser.parse_args().slots
    torch.manual_seed(0)
    print("| work | images | tokens | share | tiles whole | cut |\n|---|--:|--:|--:|--:|--:|")
    for tokens, batches in ((4096, (1, 4, 32)), (16384, (1, 4))):
        for batch in batches:
            for share in (0.02, 0.1, 0.3, 0.6):
                group, groups = holes(batch, tokens, share)
                whole, cut = compare(group, groups, over_queries=False, slots=slots, rows=128, columns=64)
                print(f"| masked_correlation, queries | {batch} | {tokens} | {share:.0%} | {whole:.2f} | {cut:.2f} |")
    for tokens in (4096, 16384, 65536):
        for largest in (0.1, 0.35, 0.6):
            group, groups = regions(tokens, largest)
            whole, cut = compare(group, groups, over_queries=True, slots=slots, rows=64, columns=64)
            print(f"| memory_write, slots | 1 | {tokens} | {largest:.0%} | {whole:.2f} | {cut:.2f} |")


if __name__ == "__main__":
    main()
