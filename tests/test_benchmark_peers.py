"""The alternatives that the benchmarks time compute the same as the definitions, with the same gradients.

Peers that need a GPU are tested here with their kernel replaced: the sorting and packing around it is plain PyTorch.
"""

from collections.abc import Callable, Iterable
from typing import Any

import correlation_cases
import correlation_peers
import interleaved
import memory_cases
import memory_peers
import pytest
import torch
from correlation_peers import TEMPERATURE
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.attention.flex_attention import BlockMask, create_block_mask

from showface.ops import definitions

# Images, tokens, channels; FlexAttention's blocks have 128 tokens.
SIZES = [(2, 48, 16), (3, 37, 8), (3, 300, 4)]


def correlation_case(size: tuple[int, int, int], dtype: torch.dtype = torch.float64) -> list[Tensor]:
    """Query, key, value, hole and an upstream gradient. The second image has no hole."""
    generator = torch.Generator().manual_seed(1)
    query, key, value, grad = (torch.randn(size, generator=generator).to(dtype) for _ in range(4))
    hole = torch.rand(size[:2], generator=generator) < 0.4
    hole[1] = False
    return [query, key, value, hole, grad]


def assert_same(run: Callable[..., Tensor], query: Tensor, key: Tensor, value: Tensor, hole: Tensor, grad: Tensor):
    """Compare the results and the gradients with the definition."""
    tensors = [x.clone().requires_grad_() for x in (query, key, value)]
    found = []
    for each in (lambda *args: definitions.masked_correlation(*args, TEMPERATURE), run):
        out = each(*tensors, hole)
        found.append([out, *torch.autograd.grad(out, tensors, grad)])
    for wanted, got in zip(*found, strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("name", [name for name in correlation_peers.ANYWHERE if "compiled" not in name])
def test_correlation_peers_for_any_device(name, size):
    """For images that have known tokens: masking with infinities is undefined for an image that is all hole."""
    assert_same(correlation_peers.ANYWHERE[name], *correlation_case(size))


def varlen_by_loop(
    q: Tensor, k: Tensor, v: Tensor, cu_q: Tensor, cu_k: Tensor, max_q: int, max_k: int, *, scale: float
):
    """`varlen_attn`, sequence by sequence. Rows behind the last sequence get NaN, as results and as gradients."""
    assert cu_q.dtype == cu_k.dtype == torch.int32

    def spoil(x: Tensor, end: Tensor) -> Tensor:
        rows = torch.arange(len(x))[:, None, None] >= end
        if x.requires_grad:
            x.register_hook(lambda grad: grad.masked_fill(rows, torch.nan))
        return x.masked_fill(rows, torch.nan)

    parts = []
    q, k, v = spoil(q, cu_q[-1]), spoil(k, cu_k[-1]), spoil(v, cu_k[-1])
    for i in range(len(cu_q) - 1):
        queries, keys = slice(cu_q[i], cu_q[i + 1]), slice(cu_k[i], cu_k[i + 1])
        assert queries.stop - queries.start <= max_q
        assert keys.stop - keys.start <= max_k
        weight = torch.softmax(scale * torch.einsum("qhc,khc->qkh", q[queries], k[keys]), dim=1)
        parts.append(torch.einsum("qkh,khc->qhc", weight, v[keys]))
    return torch.cat([*parts, q[cu_q[-1] :]])


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("full", [False, True], ids=["", "one image is all hole"])
def test_packing_for_varlen(size, full):
    query, key, value, hole, grad = correlation_case(size)
    hole[0] = hole[0] | full

    def run(*args: Tensor) -> Tensor:
        return correlation_peers.gather_then_varlen(*args, attention=varlen_by_loop)

    assert_same(run, query, key, value, hole, grad)


@pytest.mark.parametrize("corrupted", [False, True])
def test_packing_for_varlen_without_any_pair(corrupted):
    *tensors, hole, grad = correlation_case(SIZES[0])
    hole[:] = corrupted
    tensors = [x.requires_grad_() for x in tensors]
    out = correlation_peers.gather_then_varlen(*tensors, hole, attention=varlen_by_loop)
    for x in (out, *torch.autograd.grad(out, tensors, grad)):
        assert x.eq(0).all()


def test_sorted_rows():
    first = torch.tensor([[False, True, False, True], [True, True, True, True], [False, False, False, False]])
    order, place = correlation_peers.sorted_rows(first)
    assert order.tolist() == [[1, 3, 0, 2], [0, 1, 2, 3], [0, 1, 2, 3]]
    assert place.tolist() == [[2, 0, 3, 1], [0, 1, 2, 3], [0, 1, 2, 3]]


def flex_by_matrix(q: Tensor, k: Tensor, v: Tensor, *, block_mask: BlockMask, scale: float) -> Tensor:
    """`flex_attention` with the matrix of all pairs, because it has no gradient on a CPU."""
    batch, _, tokens, _ = q.shape
    b, i, j = torch.meshgrid(torch.arange(batch), torch.arange(tokens), torch.arange(tokens), indexing="ij")
    wanted = block_mask.mask_mod(b, torch.zeros_like(b), i, j)[:, None]
    score = (scale * q @ k.mT).masked_fill(~wanted, -1e300)
    return (torch.softmax(score, dim=-1) * wanted) @ v


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("full", [False, True], ids=["", "one image is all hole"])
def test_flex_attention(size, full):
    query, key, value, hole, grad = correlation_case(size)
    hole[0] = hole[0] | full
    masks = {run: make(hole) for run, make in _flex_peers().items()}
    exact = definitions.masked_correlation(query, key, value, hole, TEMPERATURE)
    for run, mask in masks.items():
        out = run(query.float(), key.float(), value.float(), hole, mask)
        torch.testing.assert_close(out.double(), exact, rtol=1e-5, atol=1e-5)
    mask = masks[correlation_peers.sort_then_flex]
    assert_same(
        lambda *args: correlation_peers.sort_then_flex(*args, mask, attention=flex_by_matrix),
        query, key, value, hole, grad,
    )  # fmt: skip


def _flex_peers() -> dict[Callable[..., Tensor], Callable[[Tensor], BlockMask]]:
    return {
        correlation_peers.flex: correlation_peers.flex_mask,
        correlation_peers.sort_then_flex: correlation_peers.sorted_mask,
    }


@pytest.mark.parametrize("tokens", [100, 256, 700])
def test_the_mask_of_sorted_tokens_has_the_blocks_of_all_pairs(tokens):
    hole = torch.rand(5, tokens, generator=torch.Generator().manual_seed(0)) < 0.5
    hole[1:4] = torch.tensor([False, True, False])[:, None]
    hole[3, :10] = True
    mask = correlation_peers.sorted_mask(hole)
    exact = create_block_mask(mask.mask_mod, 5, None, tokens, tokens, device="cpu")
    for kind in ("kv", "full_kv", "q", "full_q"):
        count = getattr(mask, f"{kind}_num_blocks")
        assert torch.equal(count, getattr(exact, f"{kind}_num_blocks"))
        listed = torch.arange(count.max()) < count[..., None]
        got, wanted = (getattr(x, f"{kind}_indices")[..., : count.max()] * listed for x in (mask, exact))
        assert torch.equal(got, wanted)


def test_the_gpu_peers_can_be_traced_whole():
    """torch.compile takes what is around the attention in one piece, which a GPU would otherwise pay for."""
    query, key, value, hole, _ = (x.float() if x.is_floating_point() else x for x in correlation_case((2, 130, 8)))
    for run, make in _flex_peers().items():
        traced = torch.compile(run, backend="aot_eager", dynamic=False, fullgraph=True)
        mask = torch.compile(make, backend="aot_eager", dynamic=False, fullgraph=True)(hole)
        exact = definitions.masked_correlation(query, key, value, hole, TEMPERATURE)
        torch.testing.assert_close(traced(query, key, value, hole, mask), exact, rtol=1e-4, atol=1e-4)


def test_reasons_for_leaving_out_a_peer():
    assert correlation_peers.why_not("compiled gather, then varlen", "float32", 64) == "it needs half precision"
    assert correlation_peers.why_not("gather, then cuDNN", "bfloat16", 512) == "it takes at most 256 channels"
    assert correlation_peers.why_not("gather, then cuDNN", "bfloat16", 256) is None
    assert correlation_peers.why_not("gather, then memory-efficient", "float32", 512) is None
    assert memory_peers.why_not("sort, then varlen", "pixels", "float32") == "it needs half precision"
    assert memory_peers.why_not("compiled sort, then grouped", "pixels", "float16")
    assert memory_peers.why_not("sort, then grouped", "pixels", "bfloat16") is None


# The memory.

MEMORY_SIZES = [(38, 19, 8, 16), (25, 5, 12, 8)]


def memory_case(sizes: tuple[int, ...], dtype: torch.dtype = torch.float64) -> list[Tensor]:
    """Latents, memory, regions of faces one after another, and an upstream gradient."""
    generator = torch.Generator().manual_seed(2)
    tokens, regions, slots, channels = sizes
    latent, grad = (torch.randn(tokens, channels, generator=generator).to(dtype) for _ in range(2))
    memory = torch.randn(regions, slots, channels, generator=generator).to(dtype)
    return [latent, memory, torch.arange(tokens) % regions, grad]


def read_varlen(latent: Tensor, memory: Tensor, region: Tensor) -> Tensor:
    return memory_peers.varlen_read(latent, memory, region, attention=varlen_by_loop)


ODD = (23, 5, 7, 9)
READS = memory_peers.READS | memory_peers.READS_ON_A_GPU | {"loop": memory_peers.loop_read}
READS = READS | {"sort, then varlen": read_varlen}
WRITES = memory_peers.WRITES | memory_peers.WRITES_ON_A_GPU | {"loop": memory_peers.loop_write}


def memory_tests(names: Iterable[str]) -> list[tuple[str, bool, tuple[int, ...]]]:
    """Peer, whether regions are uneven, and sizes. Grouped products need rows of a multiple of 16 bytes."""
    return [
        (name, uneven, sizes)
        for name in names
        for uneven in (False, True)
        for sizes in (*MEMORY_SIZES, ODD)
        if not (name == "batched" and (uneven or sizes == ODD))
        if not (name == "sort, then grouped" and sizes == ODD)
    ]


def memory_tensors(name: str, uneven: bool, sizes: tuple[int, ...]) -> tuple[list[Tensor], float]:
    """The arguments in float64, or float32 for torch's grouped products, and the tolerance of the result."""
    grouped = name == "sort, then grouped"
    latent, memory, region, grad = memory_case(sizes, torch.float32 if grouped else torch.float64)
    if uneven:
        region = (region * region) % (len(memory) - 1)  # some regions have no token
    return [latent, memory, region, grad], 1e-4 if grouped else 1e-8


@pytest.mark.parametrize(("name", "uneven", "sizes"), memory_tests(READS))
def test_memory_reads(name, uneven, sizes):
    (latent, memory, region, grad), tolerance = memory_tensors(name, uneven, sizes)
    tensors = [latent.requires_grad_(), memory.requires_grad_()]
    found = []
    for run in (lambda *args: definitions.memory_read(*args, memory_peers.TEMPERATURE), READS[name]):
        out = run(*tensors, region)
        found.append([out, *torch.autograd.grad(out, tensors, grad)])
    for wanted, got in zip(*found, strict=True):
        torch.testing.assert_close(got, wanted, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize(("name", "uneven", "sizes"), memory_tests(WRITES))
def test_memory_writes(name, uneven, sizes):
    (latent, memory, region, _), tolerance = memory_tensors(name, uneven, sizes)
    exact = definitions.memory_write(latent, memory, region, memory_peers.TEMPERATURE, 0.05)[0]
    out = WRITES[name](latent, memory, region, 0.05)
    torch.testing.assert_close(out, exact, rtol=tolerance, atol=tolerance)


def test_the_kernels_of_a_gpu_take_the_arguments():
    """Shapes, dtypes and gradients of torch's operators, which run here without any data."""
    half = {"dtype": torch.bfloat16, "requires_grad": True}
    with FakeTensorMode():
        images = [torch.empty(4, 256, 64, **half) for _ in range(3)]
        out = correlation_peers.gather_then_varlen(*images, torch.empty(4, 256, dtype=torch.bool))
        assert [x.shape for x in torch.autograd.grad(out, images, torch.empty_like(out))] == [(4, 256, 64)] * 3
        latent, memory = torch.empty(300, 64, **half), torch.empty(19, 32, 64, **half)
        region = torch.empty(300, dtype=torch.int64)
        for read in (memory_peers.varlen_read, memory_peers.grouped_read):
            out = read(latent, memory, region)
            gradients = torch.autograd.grad(out, (latent, memory), torch.empty_like(out))
            assert [x.shape for x in (out, *gradients)] == [(300, 64), (300, 64), (19, 32, 64)]


# The check before the timing.


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_gradients_are_checked_before_the_timing(dtype, monkeypatch):
    """A peer with a wrong gradient, and one that raises, are left out with the reason."""

    def doubled(query: Tensor, key: Tensor, value: Tensor, hole: Tensor) -> Tensor:
        return correlation_peers.eager(query, key, 2 * value - value.detach(), hole)

    def failing(*_: Tensor) -> Tensor:
        raise RuntimeError("no kernel here\nmore")

    peers = {"eager": correlation_peers.eager, "doubled": doubled, "failing": failing}
    monkeypatch.setattr(correlation_cases, "IMPLEMENTATIONS", peers)
    problem = correlation_cases.Problem("blob", 64, 8, 0.3, 2, dtype, "forward and backward")
    checked = correlation_cases.prepare(problem, tuple(peers))
    assert list(checked.runs) == ["eager"]
    assert checked.left_out["failing"] == "RuntimeError: no kernel here"
    assert checked.left_out["doubled"].startswith("AssertionError: ")
    forward = correlation_cases.prepare(correlation_cases.Problem("blob", 64, 8, 0.3, 2, dtype), tuple(peers))
    assert list(forward.runs) == ["eager", "doubled"]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("mode", memory_cases.MODES)
def test_the_memory_peers_are_right_in_half_precision_too(mode, dtype):
    for shape, tokens in (("regions", 38), ("pixels", 150)):
        problem = memory_cases.Problem(shape, tokens, 19, 8, 16, dtype, mode)
        names = memory_cases.implementations(mode, dtype)
        names = [name for name in names if not interleaved.is_ours(name) and "compiled" not in name]
        names = [name for name in names if shape == "regions" or name != "batched"]
        checked = memory_cases.prepare(problem, tuple(names))
        assert not checked.left_out
        assert list(checked.runs) == names


def test_an_error_of_ours_is_raised():
    def failing() -> Any:
        raise ValueError("ours")

    runs = {"peer": failing, "showface cpp": failing}
    with pytest.raises(ValueError, match="ours"):
        interleaved.check_all(runs, lambda _: None)
    checked = interleaved.check_all(runs, lambda _: None, keep_going=True)
    assert checked.left_out == {"peer": "ValueError: ours", "showface cpp": "ValueError: ours"}
