"""masked_correlation against its definition in float64."""

import pytest
import torch

from showface import ops
from showface.ops import definitions

from support.cuda_on_cpu import build
from support.operator_tests import TEMPERATURE, Case, OperatorTests, on, wide
from support.tolerances import assert_close, gradients

KEYS = ("valid", "all")


def make(batch: int, tokens: int, channels: int, values: int, dtype: torch.dtype = torch.float64) -> Case:
    q, k, v = (torch.randn(batch, tokens, width).to(dtype) for width in (channels, channels, values))
    return q, k, v, torch.rand(batch, tokens) < torch.linspace(0.2, 0.8, batch)[:, None]


class CorrelationTests(OperatorTests):
    op = "masked_correlation"
    keys = "valid"

    def make(self, tokens, channels, dtype=torch.float64):
        # Values are wider or narrower than keys.
        return make(1 if tokens > 500 else 2, tokens, channels, channels * 3 // 2 if channels < 64 else 33, dtype)

    def call(self, *case, temperature=TEMPERATURE, backend="auto"):
        return ops.masked_correlation(*case, temperature=temperature, keys=self.keys, backend=backend)

    def define(self, *case, temperature=TEMPERATURE):
        return definitions.masked_correlation(*case, temperature, self.keys)

    def schema_arguments(self, case, temperature, backend):
        return *case, temperature, 1.0, self.keys, backend

    @pytest.mark.parametrize("corrupted", [[False, False], [True, True], [True, False]], ids=str)
    def test_full_and_empty_holes(self, device, backend, dtype, corrupted):
        case = (*make(2, 9, 5, 6, dtype)[:3], torch.tensor(corrupted)[:, None].expand(2, 9))
        self.check(case, device, backend)
        inputs = [x.requires_grad_() if x.is_floating_point() else x for x in on(device, case)]
        out = self.call(*inputs, backend=backend)
        for grad in torch.autograd.grad(out.float().square().sum(), inputs[:3]):
            assert grad.isfinite().all()
        if self.keys == "valid":
            assert (out == 0).all()

    def test_known_tokens_get_exact_zeros(self, device, backend, dtype):
        case = on(device, make(2, 40, 5, 6, dtype))
        assert (self.call(*case, backend=backend)[~case[3]] == 0).all()

    @pytest.mark.parametrize("shape", [(0, 9), (2, 0), (0, 0)], ids=str)
    def test_nothing(self, device, backend, shape):
        query, key, value, hole = on(device, make(*shape, 5, 6, torch.float32))
        query.requires_grad_()
        out = self.call(query, key, value, hole, backend=backend)
        assert out.shape == (*shape, 6)
        out.sum().backward()
        assert query.grad.shape == query.shape

    def test_tf32_where_torch_allows_it(self, device, backend):
        case = self.make(64, 64, torch.float32)
        torch.set_float32_matmul_precision("high")
        try:
            results = self.call(*on(device, case), backend=backend)
            inputs = [x.requires_grad_() for x in on(device, case[:3])]
            grads = torch.autograd.grad(self.call(*inputs, on(device, case)[3], backend=backend).sum(), inputs)
        finally:
            torch.set_float32_matmul_precision("highest")
        expected = self.define(*wide(case))
        assert_close(results, expected, torch.float16)  # tf32 has as many mantissa bits as float16
        wide_inputs = [x.detach().double().requires_grad_() for x in case[:3]]
        for x, y in zip(grads, torch.autograd.grad(self.define(*wide_inputs, case[3]).sum(), wide_inputs), strict=True):
            assert_close(x, y, torch.float16, gradient=True)

    def split(self, device, backend, monkeypatch, queries=64, keys=16):
        """Split the loops over keys or queries, as on a large GPU. Returns a number of tokens for which that is done.

        queries, keys: sizes of a tile of interpreted Triton kernels. The loop over short ones is split.
        """
        if backend == "triton":
            from showface.kernels import tiles

            monkeypatch.setattr("showface.kernels.launch._slots", lambda *_: 7)
            monkeypatch.setattr(tiles, "INTERPRETED", tiles.INTERPRETED._replace(queries=queries, keys=keys))
        if (backend, device) == ("cuda", "cpu"):
            build.load().cuda_on_cpu_multiprocessors(132)
        return 2000 if device == "cuda" else 300 if backend == "cuda" else 220

    @pytest.mark.parametrize(("queries", "keys"), [(64, 16), (16, 64)])
    def test_gradient_of_splits(self, device, backend, queries, keys, monkeypatch):
        tokens = self.split(device, backend, monkeypatch, queries, keys)
        self.check_gradients(self.make(tokens, 20, torch.float32), device, backend)

    @pytest.mark.parametrize("bits", [0x7FFFFFFF, 0x7FC00000])
    @pytest.mark.parametrize("argument", range(3))
    @pytest.mark.parametrize("split", [False, True])
    def test_nan_is_not_lost(self, device, backend, argument, bits, split, monkeypatch):
        """Not in tf32 either. 0x7fffffff is the NaN that a GPU computes; integer arithmetic can make it -0."""
        tokens = self.split(device, backend, monkeypatch) if split else 40
        case = list(self.make(tokens, 20, torch.float32))
        case[3][:, 0], case[3][:, 1] = True, False
        case[argument].view(torch.int32)[:, 0 if argument == 0 else 1] = bits
        torch.set_float32_matmul_precision("high")
        try:
            out = self.call(*on(device, case), backend=backend)
        finally:
            torch.set_float32_matmul_precision("highest")
        assert out[:, 0].isnan().all()

    @pytest.mark.parametrize("temperature", [8.0, 100.0])
    def test_high_temperature_and_splits(self, device, backend, dtype, temperature, monkeypatch):
        case = self.make(self.split(device, backend, monkeypatch), 20, dtype)
        out = self.call(*on(device, case), temperature=temperature, backend=backend)
        expected = self.define(*wide(case), temperature=temperature)
        if dtype.itemsize == 2 and temperature > 50:
            # The factor amplifies the rounding of unit vectors in half precision. Only check that it is bounded.
            torch.testing.assert_close(out.cpu().double(), expected, rtol=0, atol=0.25)
        else:
            assert_close(out, expected, gradient=temperature > 50)

    @pytest.mark.gpu
    def test_graph_replays_with_another_hole(self, device, backend):
        if backend == "reference":
            pytest.skip("the reference counts tokens on the host")
        case = on(device, self.make(129, 64, torch.float32))
        stream = torch.cuda.Stream()
        with torch.cuda.stream(stream):
            self.call(*case, backend=backend)  # warm up: compile and load
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            out = self.call(*case, backend=backend)
        for share in (0.0, 0.3, 1.0):
            case[3].copy_(torch.rand(case[3].shape, device=device) < share)
            graph.replay()
            assert_close(out, self.define(*wide(tuple(x.cpu() for x in case))))

    @pytest.mark.gpu
    def test_memory_is_linear_in_tokens(self, device, backend):
        query, key, value, hole = on(device, make(1, 16384, 64, 64, torch.float32))
        inputs = [x.requires_grad_() for x in (query, key, value)]
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        self.call(*inputs, hole, backend=backend).sum().backward()
        extra = torch.cuda.max_memory_allocated() - before
        assert extra < 24 * query.numel() * 4, f"{extra / 2**20:.0f} MiB"  # 1 GiB would hold all correlations


class TestAllKeys(CorrelationTests):
    keys = "all"


class TestValidKeys(CorrelationTests):
    def test_what_is_not_asked_does_not_matter(self, device, backend):
        query, key, value, hole = on(device, make(2, 40, 5, 6, torch.float32))
        expected = self.call(query, key, value, hole, backend=backend)
        nan = torch.full((), torch.nan, device=device)
        known, corrupted = ~hole[..., None], hole[..., None]
        poisoned = (torch.where(known, nan, query), *(torch.where(corrupted, nan, x) for x in (key, value)))
        assert torch.equal(self.call(*poisoned, hole, backend=backend), expected)


def test_rows_by_hand():
    """Each row of a small case, written out without the definition."""
    query, key, value, hole = make(1, 6, 3, 2)
    hole[0] = torch.tensor([True, False, True, False, False, True])
    out = ops.masked_correlation(query, key, value, hole, temperature=5.0)[0]
    for i in range(6):
        if not hole[0, i]:
            assert (out[i] == 0).all()
            continue
        known = [j for j in range(6) if not hole[0, j]]
        cosines = [torch.cosine_similarity(query[0, i], key[0, j], dim=0) for j in known]
        weights = torch.tensor([(5 * c).exp() for c in cosines], dtype=torch.float64)
        expected = sum(w * value[0, j] for w, j in zip(weights / weights.sum(), known, strict=True))
        torch.testing.assert_close(out[i], expected)


@pytest.mark.parametrize("keys", KEYS)
def test_chunks_do_not_change_results(monkeypatch, keys):
    case = make(2, 50, 5, 6)
    weight = torch.randn(2, 50, 6).double()

    def run():
        def correlate(*x):
            return ops.masked_correlation(*x, temperature=8.0, keys=keys, backend="reference")

        return [correlate(*case), *gradients(correlate, case, [weight])]

    whole = run()
    for chunk in (1, 77):  # one row at a time, and rows that don't divide evenly
        monkeypatch.setattr("showface.ops.backends.reference._CHUNK", chunk)
        for x, y in zip(run(), whole, strict=True):
            assert_close(x, y)


GOOD = make(2, 4, 5, 3, torch.float32)
NAMES = ("query", "key", "value", "hole")
ERRORS = {
    "query is no tensor": ({"query": None}, TypeError, r"query must be .*got NoneType"),
    "query is bool": ({"query": GOOD[3]}, TypeError, r"query .*got torch.bool"),
    "query shape": ({"query": GOOD[0][0]}, ValueError, r"query must have shape \(B, N, C\), got .*\(4, 5\)"),
    "key dtype": ({"key": GOOD[1].half()}, TypeError, r"key must be torch.float32 .*got torch.float16"),
    "key device": ({"key": GOOD[1].to("meta")}, ValueError, r"key must be on cpu .*on meta"),
    "key batch": ({"key": GOOD[1][:1]}, ValueError, r"key must have the batch of query = 2 .*\(1, 4, 5\)"),
    "key tokens": ({"key": GOOD[1][:, :3]}, ValueError, r"key must have the tokens of query = 4 .*\(2, 3, 5\)"),
    "key channels": ({"key": GOOD[1][..., :4]}, ValueError, r"key must have the channels of query = 5 .*\(2, 4, 4\)"),
    "value dtype": ({"value": GOOD[2].double()}, TypeError, r"value must be torch.float32 .*got torch.float64"),
    "value tokens": ({"value": GOOD[2][:, :3]}, ValueError, r"value must have the tokens of query = 4"),
    "value shape": ({"value": GOOD[2][0]}, ValueError, r"value must have shape \(B, N, Cv\)"),
    "hole dtype": ({"hole": GOOD[3].float()}, TypeError, r"hole must be torch.bool .*got torch.float32"),
    "hole shape": ({"hole": GOOD[3][..., None]}, ValueError, r"hole must have shape \(B, N\), got .*\(2, 4, 1\)"),
    "hole tokens": ({"hole": GOOD[3][:, :3]}, ValueError, r"hole must have the tokens of query = 4"),
    "hole device": ({"hole": GOOD[3].to("meta")}, ValueError, r"hole must be on cpu .*on meta"),
    "keys": ({"keys": "known"}, ValueError, r"keys must be 'valid' or 'all', got 'known'"),
    "temperature": ({"temperature": 0}, ValueError, r"temperature must be positive and finite, got 0"),
    "temperature tensor": ({"temperature": torch.tensor(-1.0)}, ValueError, r"temperature .*got -1.0"),
    "temperature bool": ({"temperature": True}, TypeError, r"temperature .*got bool True"),
    "backend": ({"backend": "gpu"}, ValueError, r"backend must be 'auto' or one of .*got 'gpu'"),
    "backend absent": ({"backend": "cuda"}, RuntimeError, r"masked_correlation: backend 'cuda' can't run here: "),
}


@pytest.mark.parametrize("case", ERRORS)
def test_errors(case):
    changes, error, message = ERRORS[case]
    with pytest.raises(error, match=message):
        ops.masked_correlation(**{**dict(zip(NAMES, GOOD, strict=True)), "temperature": 8.0, **changes})


def test_second_derivative_says_that_there_is_none():
    query, key, value, hole = make(1, 6, 3, 2)
    out = ops.masked_correlation(query.requires_grad_(), key, value, hole, temperature=8.0)
    (grad,) = torch.autograd.grad(out.square().sum(), query, create_graph=True)
    with pytest.raises(RuntimeError, match="masked_correlation is differentiable once"):
        grad.sum().backward()


def test_meta_tensors_give_shapes():
    out = ops.masked_correlation(*(x.to("meta") for x in GOOD), temperature=8.0)
    assert (out.shape, out.device.type) == ((2, 4, 3), "meta")
