"""The list of the work of an attention kernel, made on the device, which alone knows how much there is.

The work consists of sections: for each image one for each group, and a last one for the rows that have no columns. The
rows of a section are queries and its columns keys, or the other way round (OVER_QUERIES). A program takes an item of
the list: a tile of rows with all columns of the section, or with a piece of them. One tile of rows with one tile of
columns is a unit of work.

A GPU does `slots` items at a time. If the tiles are no multiple of that, most slots would have nothing to do while the
last tiles are done; with a small hole, all the time. So the tiles past the last multiple are cut into pieces. The
results of pieces go to a buffer, and another kernel (combine.py) adds them up in the order of the pieces, so that
results are the same in every run.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from showface.kernels.rows import store_rows

# Block sizes of list_work_kernel: sections, items, and limits of the pieces that it looks at together.
LIST = {"BLOCK_S": 128, "BLOCK_I": 32, "BLOCK_L": 64}
# What an item costs besides its units of work, in units: estimates for tiles of 128 rows with 128 channels. A piece is
# written and read again in float32.
TILE_OVERHEAD, PIECE_OVERHEAD = tl.constexpr(1), tl.constexpr(4)


@triton.jit
def section_at(
    offset_ptr, section, exists, tokens, groups, key_rows, OVER_QUERIES: tl.constexpr, LISTED_KEYS: tl.constexpr
):
    """The first row, the number of rows, the first column and the number of columns of sections.

    Queries are counted in the list of tokens. So are keys with LISTED_KEYS; others are rows of the group's matrix.
    """
    group = section % (groups + 1)
    offset_ptr += section // (groups + 1) * (groups + 2)
    begin = tl.load(offset_ptr + group, mask=exists, other=0)
    end = tl.load(offset_ptr + group + 1, mask=exists, other=0)
    count = end - begin
    grouped = exists & (group < groups)
    if LISTED_KEYS:
        # The only group is followed by the tokens of no group, which are its keys.
        keys = tl.where(grouped, tokens - end, 0)
        first_key = tl.where(grouped, end, 0)
    else:
        keys = tl.where(grouped, key_rows, 0)
        first_key = tl.zeros_like(begin)
    if OVER_QUERIES:
        # Listed tokens that are no keys are rows without columns.
        rows = tl.where(exists, tokens - count, 0) if LISTED_KEYS else keys
        return first_key, rows, begin, tl.where(grouped, count, 0)
    else:
        return begin, count, first_key, keys


@triton.jit
def tiles_at(
    offset_ptr, first, sections, tokens, groups, key_rows,
    OVER_QUERIES: tl.constexpr, LISTED_KEYS: tl.constexpr, BLOCK_ROWS: tl.constexpr, BLOCK_COLUMNS: tl.constexpr,
    BLOCK_S: tl.constexpr,
):  # fmt: skip
    """Of the sections first, first + 1, ...: the number of tiles, and how many units of work each of them is."""
    s = first + tl.arange(0, BLOCK_S)
    _, rows, _, columns = section_at(offset_ptr, s, s < sections, tokens, groups, key_rows, OVER_QUERIES, LISTED_KEYS)
    return tl.cdiv(rows, BLOCK_ROWS), tl.cdiv(columns, BLOCK_COLUMNS)


@triton.jit
def pieces_of(units, limit):
    """Pieces of a tile of so many units, if none may have more units than `limit`."""
    return tl.maximum(tl.cdiv(units, limit), 1)


@triton.jit
def choose_limit(
    offset_ptr, sections, tokens, groups, key_rows, whole, longest, slots, most,
    OVER_QUERIES: tl.constexpr, LISTED_KEYS: tl.constexpr, BLOCK_ROWS: tl.constexpr, BLOCK_COLUMNS: tl.constexpr,
    BLOCK_S: tl.constexpr, BLOCK_L: tl.constexpr,
):  # fmt: skip
    """The limit of the units of a piece with which all tiles after the first `whole` ones are done soonest.

    They may have `most` pieces. longest: the units of the longest tile.
    """
    # Cut the longest tile into 1, 2, ..., BLOCK_L pieces. Pieces of one unit are not worth it.
    limit = tl.maximum(tl.cdiv(longest, 1 + tl.arange(0, BLOCK_L)), 2)
    items = tl.zeros((BLOCK_L,), tl.int32)
    before = tl.zeros((), tl.int32)
    for first in range(0, sections, BLOCK_S):
        tiles, units = tiles_at(
            offset_ptr, first, sections, tokens, groups, key_rows,
            OVER_QUERIES, LISTED_KEYS, BLOCK_ROWS, BLOCK_COLUMNS, BLOCK_S,
        )  # fmt: skip
        tiles = tl.where(units > 0, tiles, 0)
        end = before + tl.cumsum(tiles, axis=0)
        cut = tl.minimum(tl.maximum(end - whole, 0), tiles)
        pieces = pieces_of(units[None, :], limit[:, None])
        items += tl.sum(cut[None, :] * pieces, axis=1)
        before += tl.sum(tiles, axis=0)
    overhead = tl.where(limit < longest, PIECE_OVERHEAD, TILE_OVERHEAD)
    time = tl.where(items <= most, tl.cdiv(items, slots) * (limit + overhead), 2**31 - 1)
    return tl.max(tl.where(time == tl.min(time, axis=0), limit, 0), axis=0)


@triton.jit
def list_work_kernel(
    offset_ptr,  # (B, groups + 2), see tokens.py
    item_ptr,  # (items, 8) int32, see `list_work`
    sections,
    tokens,
    groups,
    key_rows,
    slots,
    most,
    items,
    OVER_QUERIES: tl.constexpr,
    LISTED_KEYS: tl.constexpr,
    CUT: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_COLUMNS: tl.constexpr,
    BLOCK_S: tl.constexpr,
    BLOCK_I: tl.constexpr,
    BLOCK_L: tl.constexpr,
):
    whole = tl.zeros((), tl.int32)
    longest = tl.zeros((), tl.int32)
    for first in range(0, sections, BLOCK_S):
        tiles, units = tiles_at(
            offset_ptr, first, sections, tokens, groups, key_rows,
            OVER_QUERIES, LISTED_KEYS, BLOCK_ROWS, BLOCK_COLUMNS, BLOCK_S,
        )  # fmt: skip
        whole += tl.sum(tl.where(units > 0, tiles, 0), axis=0)
        longest = tl.maximum(longest, tl.max(tl.where(tiles > 0, units, 0), axis=0))
    limit = tl.full((), 1, tl.int32)
    if CUT:
        whole -= whole % slots
        limit = choose_limit(
            offset_ptr, sections, tokens, groups, key_rows, whole, tl.maximum(longest, 1), slots, most,
            OVER_QUERIES, LISTED_KEYS, BLOCK_ROWS, BLOCK_COLUMNS, BLOCK_S, BLOCK_L,
        )  # fmt: skip
    item = tl.program_id(0) * BLOCK_I + tl.arange(0, BLOCK_I)
    section = tl.zeros((BLOCK_I,), tl.int32)
    tile = tl.zeros((BLOCK_I,), tl.int32)  # number of the tile in its section
    piece = tl.zeros((BLOCK_I,), tl.int32)
    listed = tl.zeros((), tl.int32)
    # Pieces come first, so that the number of an item is its place in the buffer. Then whole tiles, then tiles without
    # columns. Programs begin with the last item.
    for kind in tl.static_range(3):
        before = tl.zeros((), tl.int32)
        for first in range(0, sections, BLOCK_S):
            tiles, units = tiles_at(
                offset_ptr, first, sections, tokens, groups, key_rows,
                OVER_QUERIES, LISTED_KEYS, BLOCK_ROWS, BLOCK_COLUMNS, BLOCK_S,
            )  # fmt: skip
            some = tl.where(units > 0, tiles, 0)
            after = before + tl.cumsum(some, axis=0)
            cut = tl.minimum(tl.maximum(after - whole, 0), some)
            pieces = pieces_of(units, limit)
            here = cut * pieces if kind == 0 else some - cut if kind == 1 else tiles - some
            end = listed + tl.cumsum(here, axis=0)
            number = item[:, None] - (end - here)[None, :]  # of the item in the section
            mine = (number >= 0) & (number < here[None, :])
            s = first + tl.arange(0, BLOCK_S)
            section += tl.sum(tl.where(mine, s[None, :], 0), axis=1)
            if kind == 0:
                tile += tl.sum(tl.where(mine, (some - cut)[None, :] + number // pieces[None, :], 0), axis=1)
                piece += tl.sum(tl.where(mine, number % pieces[None, :], 0), axis=1)
            else:
                tile += tl.sum(tl.where(mine, number, 0), axis=1)
            before += tl.sum(some, axis=0)
            listed += tl.sum(here, axis=0)
        if kind == 0:
            cut_items = listed
    # Surplus items have no rows and no columns.
    row, rows, column, columns = section_at(
        offset_ptr, section, item < listed, tokens, groups, key_rows, OVER_QUERIES, LISTED_KEYS
    )
    units = tl.cdiv(columns, BLOCK_COLUMNS)
    pieces = tl.where(item < cut_items, pieces_of(units, limit), 1)
    start = piece * units // pieces * BLOCK_COLUMNS
    stop = tl.minimum((piece + 1) * units // pieces * BLOCK_COLUMNS, columns)
    item_ptr += 8 * item
    valid = item < items
    tl.store(item_ptr, section // (groups + 1), mask=valid)
    tl.store(item_ptr + 1, section % (groups + 1), mask=valid)
    tl.store(item_ptr + 2, row + tile * BLOCK_ROWS, mask=valid)
    tl.store(item_ptr + 3, tl.maximum(rows - tile * BLOCK_ROWS, 0), mask=valid)
    tl.store(item_ptr + 4, column + start, mask=valid)
    tl.store(item_ptr + 5, stop - start, mask=valid)
    tl.store(item_ptr + 6, piece, mask=valid)
    tl.store(item_ptr + 7, pieces, mask=valid)


def list_work(
    offset: Tensor,
    tokens: int,
    key_rows: int,
    slots: int,
    *,
    over_queries: bool,
    listed_keys: bool,
    rows: int,
    columns: int,
) -> tuple[Tensor, int]:
    """List the work on the device.

    Args:
        offset: (B, groups + 2), see `tokens.sort_tokens`.
        tokens: tokens of an image.
        key_rows: rows of a group's matrix of keys.
        slots: how many programs run at a time.
        over_queries: the rows of the work are keys, the columns queries.
        listed_keys: keys are the tokens of no group.
        rows, columns: of a tile.

    Returns:
        items (n, 8) int32, where n is enough for all sizes of the groups: the image, the group (past the last one are
        the rows without columns), the first row, the number of rows from there to the end of the section, the first
        column, the number of columns, the number of the piece in its tile, the pieces of the tile;
        and the largest number of pieces, 0 if no tile is ever cut. These are the first items. Programs begin with the
        last item.
    """
    batch, groups = offset.shape[0], offset.shape[1] - 2
    if over_queries and not listed_keys:
        tiles = batch * groups * triton.cdiv(key_rows, rows)
    else:
        tiles = batch * (triton.cdiv(tokens, rows) + groups)
    units = triton.cdiv(tokens if over_queries else key_rows, columns)
    most = min(4 * slots, tiles * triton.cdiv(units, 2)) if units > 2 else 0
    items = torch.empty((tiles + most, 8), dtype=torch.int32, device=offset.device)
    list_work_kernel[(triton.cdiv(len(items), LIST["BLOCK_I"]),)](
        offset,
        items,
        batch * (groups + 1),
        tokens,
        groups,
        key_rows,
        slots,
        most,
        len(items),
        OVER_QUERIES=over_queries,
        LISTED_KEYS=listed_keys,
        CUT=most > 0,
        BLOCK_ROWS=rows,
        BLOCK_COLUMNS=columns,
        **LIST,
    )
    return items, most


@triton.jit
def item_of_program():
    """The number of the item that a program takes. The long ones are last in the list, and are begun first."""
    return tl.num_programs(0) - 1 - tl.program_id(0)


@triton.jit
def load_item(item_ptr, item):
    """The fields of an item, see `list_work`."""
    item_ptr += 8 * item
    image, group, row, rows = tl.load(item_ptr), tl.load(item_ptr + 1), tl.load(item_ptr + 2), tl.load(item_ptr + 3)
    column, columns, piece = tl.load(item_ptr + 4), tl.load(item_ptr + 5), tl.load(item_ptr + 6)
    return image.to(tl.int64), group, row, rows, column, columns, piece, tl.load(item_ptr + 7)


@triton.jit
def list_rows(order_ptr, first, rows, start, LISTED: tl.constexpr, BLOCK: tl.constexpr):
    """The rows start, start + 1, ... of an item: their indices, and a mask of those that exist.

    first, rows: the item's first row, and how many it has. In the same way for columns.
    """
    i = start + tl.arange(0, BLOCK)
    exists = i < rows
    if LISTED:
        return tl.load(order_ptr + first + i, mask=exists, other=0), exists
    else:
        return first + i, exists


@triton.jit
def store_rows_or_piece(
    ptr, partial_ptr, index, exists, width, column, values, pieces,
    CUT: tl.constexpr, BLOCK_ROWS: tl.constexpr, BLOCK_P: tl.constexpr,
):  # fmt: skip
    """Store the results (BLOCK_ROWS, BLOCK_P) of an item: of a whole tile at its rows, of a piece in the buffer."""
    if pieces == 1:
        store_rows(ptr, index, exists, width, column, values, BLOCK_P)
    elif CUT:
        i = tl.arange(0, BLOCK_ROWS)
        partial_ptr += item_of_program().to(tl.int64) * BLOCK_ROWS * width
        store_rows(partial_ptr, i, i >= 0, width, column, values, BLOCK_P)
