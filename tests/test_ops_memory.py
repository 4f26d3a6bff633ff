"""memory_read, memory_write and its two halves, against their definitions in float64."""

import pytest
import torch

from showface import ops
from showface.ops import checks, definitions, dispatch

from support.operator_tests import TEMPERATURE, Case, OperatorTests, flat, on, wide
from support.tolerances import assert_close


def make(tokens: int, blocks: int, slots: int, channels: int, dtype: torch.dtype = torch.float64) -> Case:
    latent, memory = torch.randn(tokens, channels), torch.randn(blocks, slots, channels)
    return latent.to(dtype), memory.to(dtype), torch.randint(-1, blocks, (tokens,))


# Blocks and slots for (tokens, channels).
BLOCKS_AND_SLOTS = {
    (1, 1): (1, 1),
    (7, 3): (2, 1025),
    (63, 8): (7, 129),
    (64, 20): (3, 100),
    (100, 64): (19, 63),
    (129, 128): (19, 64),
    (1023, 256): (19, 7),
    (64, 320): (2, 100),
    (7, 512): (3, 65),
    (64, 64): (3, 100),
    (129, 17): (5, 70),
}


class MemoryTests(OperatorTests):
    def make(self, tokens, channels, dtype=torch.float64):
        # Blocks and slots vary around the sizes of tiles too. The product of all three is small, because each block
        # needs at least one program, and interpreting a program is slow.
        blocks, slots = BLOCKS_AND_SLOTS.get((tokens, channels), (min(tokens, 4), 5))
        return make(tokens, blocks, slots, channels, dtype)

    def test_no_tokens(self, device, backend):
        latent, memory, region = on(device, make(0, 2, 3, 4, torch.float32))
        out = flat(self.call(latent.requires_grad_(), memory.requires_grad_(), region, backend=backend))
        for x, y in zip(out, flat(self.define(latent, memory, region)), strict=True):
            assert_close(x, y)
        sum(x.sum() for x in out).backward()
        assert latent.grad.shape == (0, 4)
        assert memory.grad.isfinite().all()

    def test_temperature_kinds(self, device, backend):
        case = on(device, make(9, 2, 3, 4, torch.float32))
        expected = flat(self.call(*case, temperature=3.0, backend=backend))
        kinds = (3, *(torch.tensor(3.0, device=device, dtype=d) for d in sorted(dispatch.FLOATS, key=str)))
        for tau in kinds:
            for x, y in zip(flat(self.call(*case, temperature=tau, backend=backend)), expected, strict=True):
                assert_close(x, y)

    @pytest.mark.parametrize(("tokens", "blocks"), [(1500, 19), (5000, 3), (40, 300)])
    def test_many_tokens_and_blocks(self, device, backend, tokens, blocks):
        """Sizes at which tokens are sorted in other ways. Half of the tokens share a region; one region is empty."""
        if backend == "triton" and device == "cpu":
            # Few for the interpreter, but (with 19 blocks) more tokens than one span sorts.
            tokens, blocks = min(tokens, 1100), min(blocks, 33)
        latent, memory, region = make(tokens, blocks, 3, 8, torch.float32)
        region[region == 1] = -1
        region[: tokens // 2] = 2
        self.check((latent, memory, region), device, backend)
        self.check_gradients((latent, memory, region), device, backend)

    @pytest.mark.parametrize("tokens", [40, 1100])
    def test_a_region_out_of_range_counts_as_none(self, device, backend, tokens, monkeypatch):
        """As on a GPU, where the values of regions are not checked. On a CPU they raise before a backend is called."""
        monkeypatch.setattr(checks, "check_regions", lambda *_: None)
        latent, memory, region = on(device, make(tokens, 3, 5, 7, torch.float32))
        odd = region.clone()
        odd[::8] = -1
        expected = self.run_with_gradients(latent, memory, odd, backend)
        for place, value in enumerate((3, 4, -2, 2**31, 2**32, 2**32 + 1, -(2**40), 2**63 - 1)):
            odd[8 * place :: 64] = value
        for x, y in zip(self.run_with_gradients(latent, memory, odd, backend), expected, strict=True):
            assert torch.equal(x, y)

    def run_with_gradients(self, latent, memory, region, backend):
        inputs = latent.clone().requires_grad_(), memory.clone().requires_grad_()
        out = flat(self.call(*inputs, region, backend=backend))
        return [*out, *torch.autograd.grad(sum(x.square().sum() for x in out), inputs)]

    @pytest.mark.gpu
    @pytest.mark.parametrize("tokens", [129, 5000])
    def test_graph_replays_with_other_regions(self, device, backend, tokens):
        if backend == "reference":
            pytest.skip("the reference counts tokens on the host")
        case = on(device, make(tokens, 19, 40, 64, torch.float32))
        stream = torch.cuda.Stream()
        with torch.cuda.stream(stream):
            self.call(*case, backend=backend)  # warm up: compile and load
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            results = flat(self.call(*case, backend=backend))
        for low, high in ((-1, 19), (-1, 0), (3, 4)):
            case[2].copy_(torch.randint(low, high, case[2].shape, device=device))
            graph.replay()
            for x, y in zip(results, flat(self.define(*wide(tuple(x.cpu() for x in case)))), strict=True):
                assert_close(x, y)


class TestRead(MemoryTests):
    op = "memory_read"

    def call(self, *case, temperature=TEMPERATURE, backend="auto"):
        return ops.memory_read(*case, temperature=temperature, backend=backend)

    def define(self, *case, temperature=TEMPERATURE):
        return definitions.memory_read(*case, temperature)

    def schema_arguments(self, case, temperature, backend):
        return *case, temperature, 1.0, backend

    def test_no_region_reads_zeros(self, device, backend, dtype):
        latent, memory, _ = on(device, make(9, 2, 3, 4, dtype))
        region = torch.full((9,), -1, device=device)
        assert (self.call(latent, memory, region, backend=backend) == 0).all()

    def test_one_block_for_all(self, device, backend):
        latent, memory, region = make(20, 4, 6, 10, torch.float32)
        self.check((latent, memory[:1].expand_as(memory), region), device, backend)


class TestWrite(MemoryTests):
    op = "memory_write"

    @classmethod
    def is_long(cls, test, case):
        # In Triton it consists of memory_accumulate and memory_blend, which are tested in all sizes.
        composed = case["backend"][1] == "triton" and case["device"] == "cpu"
        kept = {"test_definition": (7, 64, 1023), "test_gradient": (64,), "test_many_tokens_and_blocks": (1500,)}
        return super().is_long(test, case) or (composed and test in kept and case["tokens"] not in kept[test])

    def call(self, *case, temperature=TEMPERATURE, backend="auto"):
        return ops.memory_write(*case, temperature=temperature, rate=0.1, backend=backend)

    def define(self, *case, temperature=TEMPERATURE):
        return definitions.memory_write(*case, temperature, 0.1)

    def schema_arguments(self, case, temperature, backend):
        return *case, temperature, 1.0, 0.1, backend

    def autocast_dtype(self, dtype):
        return torch.float32

    def test_dtypes(self, device, backend, dtype):
        memory, rho = self.call(*on(device, make(9, 2, 3, 4, dtype)), backend=backend)
        assert (memory.dtype, rho.dtype) == (dtype, torch.float64 if dtype == torch.float64 else torch.float32)

    @pytest.mark.parametrize("temperature", [43.0, 60.0, 100.0, 1000.0])
    def test_slots_with_almost_no_mass(self, device, backend, temperature):
        """1 / rho would be infinite in float32 for slots that are opposite to the latent."""
        latent, memory = torch.ones(1, 3), torch.ones(1, 6, 3)
        memory[:, 2::2] = -1
        case = latent, memory, torch.tensor([0])
        after, _ = self.call(*on(device, case), temperature=temperature, backend=backend)
        assert_close(after, self.define(*wide(case), temperature=temperature)[0])

    def test_untouched_slots_keep_their_bits(self, device, backend, dtype):
        latent, memory, region = on(device, make(20, 4, 5, 7, dtype))
        region[region == 2] = 1
        after, rho = self.call(latent, memory, region, backend=backend)
        assert (rho[2] == 0).all()
        assert torch.equal(after[2], memory[2])
        assert not torch.equal(after[1], memory[1])
        after, rho = self.call(latent, memory, torch.full_like(region, -1), backend=backend)
        assert torch.equal(after, memory)
        assert (rho == 0).all()

    def test_halves_make_the_whole(self, device, backend):
        latent, memory, region = on(device, make(40, 3, 5, 7, torch.float32))
        rho, total = ops.memory_accumulate(latent, memory, region, temperature=TEMPERATURE, backend=backend)
        whole, whole_rho = self.call(latent, memory, region, backend=backend)
        assert_close(ops.memory_blend(memory, rho, total, rate=0.1, backend=backend), whole)
        assert_close(rho, whole_rho)

    def test_sums_over_parts_of_a_batch(self, device, backend):
        latent, memory, region = on(device, make(40, 3, 5, 7, torch.float32))
        parts = [
            ops.memory_accumulate(latent[s], memory, region[s], temperature=8.0, backend=backend)
            for s in (slice(0, 13), slice(13, 40))
        ]
        whole = ops.memory_accumulate(latent, memory, region, temperature=8.0, backend=backend)
        for left, right, both in zip(*parts, whole, strict=True):
            assert_close(left + right, both)


class TestAccumulate(MemoryTests):
    op = "memory_accumulate"

    def call(self, *case, temperature=TEMPERATURE, backend="auto"):
        return ops.memory_accumulate(*case, temperature=temperature, backend=backend)

    def define(self, *case, temperature=TEMPERATURE):
        return definitions.memory_accumulate(*case, temperature)

    def schema_arguments(self, case, temperature, backend):
        return *case, temperature, 1.0, backend

    def autocast_dtype(self, dtype):
        return torch.float32

    def test_many_tokens_of_one_region(self, device, backend):
        """Several tasks share the sums."""
        tokens = 1100 if backend == "triton" and device == "cpu" else 9000  # interpreting is slow
        latent, memory, region = make(tokens, 2, 3, 4, torch.float32)
        region[: tokens - 100] = 1
        self.check((latent, memory, region), device, backend)
        self.check_gradients((latent, memory, region), device, backend)
        after, rho = ops.memory_write(
            *on(device, (latent, memory, region)), temperature=8.0, rate=1e-3, backend=backend
        )
        expected = definitions.memory_write(latent.double(), memory.double(), region, 8.0, 1e-3)
        assert_close(after, expected[0])
        assert_close(rho, expected[1])


class TestBlend(OperatorTests):
    op = "memory_blend"
    has_temperature = False

    def make(self, tokens, channels, dtype=torch.float64):
        shape = (min(tokens, 5), max(tokens // 5, 1))
        memory, rho, total = torch.randn(*shape, channels), torch.rand(shape) + 0.1, torch.randn(*shape, channels)
        return memory.to(dtype), rho.to(dtype), total.to(dtype)

    def call(self, *case, temperature=None, backend="auto"):
        return ops.memory_blend(*case, rate=0.1, backend=backend)

    def define(self, *case, temperature=None):
        return definitions.memory_blend(*case, 0.1)

    def schema_arguments(self, case, temperature, backend):
        return *case, 0.1, backend

    @pytest.mark.parametrize("factor", [0.0, 1e4, 1e-8], ids=["zero", "huge", "tiny"])
    def test_extreme_vectors(self, device, backend, dtype, factor):
        memory, rho, total = self.make(30, 5, dtype)
        memory[::2] *= factor
        total[:, ::2] *= factor
        rho[1::2] *= factor if dtype == torch.float64 else 1
        total[1::2] *= rho[1::2, :, None]  # a mean of latents, independent of the mass
        self.check((memory, rho, total), device, backend)
        if dtype == torch.float64:
            self.check_gradients((memory, rho, total), device, backend)

    def test_autocast(self, device, backend):
        """Autocast changes nothing, because the memory is a state that accumulates small steps."""
        case = on(device, self.make(20, 6, torch.float32))
        expected = self.call(*case, backend=backend)
        with torch.autocast(device, torch.bfloat16):
            assert torch.equal(self.call(*case, backend=backend), expected)

    def test_slots_without_mass(self, device, backend, dtype):
        """They stay bit for bit the same, and their gradient is that of a copy."""
        memory, rho, total = on(device, self.make(20, 6, dtype))
        rho[1] = 0
        total[1] = torch.nan
        memory.requires_grad_()
        out = self.call(memory, rho, total, backend=backend)
        assert torch.equal(out[1], memory[1])
        (grad,) = torch.autograd.grad(out.sum(), memory)
        assert (grad[1] == 1).all()


def test_write_is_an_average_of_rate_per_unit_of_mass():
    memory, latent = torch.zeros(1, 1, 2, dtype=torch.float64), torch.ones(3, 2, dtype=torch.float64)
    region = torch.zeros(3, dtype=torch.int64)
    after, rho = ops.memory_write(latent, memory, region, temperature=8.0, rate=0.5)
    # One slot gets all three units of mass. Each unit halves the remaining distance.
    torch.testing.assert_close(rho, torch.full((1, 1), 3.0, dtype=torch.float64))
    torch.testing.assert_close(after, torch.full((1, 1, 2), 1 - 0.5**3, dtype=torch.float64))


def test_one_write_is_as_strong_as_two_of_half_the_batch():
    latent, region = torch.ones(8, 2), torch.zeros(8, dtype=torch.int64)
    memory = torch.zeros(1, 1, 2)
    once, _ = ops.memory_write(latent, memory, region, temperature=8.0, rate=0.05)
    for half in (slice(0, 4), slice(4, 8)):
        memory, _ = ops.memory_write(latent[half], memory, region[half], temperature=8.0, rate=0.05)
    torch.testing.assert_close(once, memory)


def test_write_leaves_its_arguments_alone():
    case = make(12, 2, 3, 4)
    before = [x.clone() for x in case]
    ops.memory_write(*case, temperature=8.0, rate=0.1)
    for x, y in zip(case, before, strict=True):
        assert torch.equal(x, y)


GOOD = make(4, 3, 2, 5, torch.float32)


def bad(**changes):
    return {**dict(zip(("latent", "memory", "region"), GOOD, strict=True)), "temperature": 8.0, **changes}


ERRORS = {
    "latent is no tensor": (bad(latent=[1.0]), TypeError, r"latent must be .*got list"),
    "latent is int": (bad(latent=torch.ones(4, 5, dtype=torch.int64)), TypeError, r"latent .*got torch.int64"),
    "latent shape": (bad(latent=torch.ones(4)), ValueError, r"latent must have shape \(T, C\), got .*\(4,\)"),
    "memory dtype": (bad(memory=GOOD[1].double()), TypeError, r"memory must be torch.float32 .*got torch.float64"),
    "memory shape": (bad(memory=GOOD[1][0]), ValueError, r"memory must have shape \(K, S, C\), got .*\(2, 5\)"),
    "memory device": (bad(memory=GOOD[1].to("meta")), ValueError, r"memory must be on cpu .*on meta"),
    "memory channels": (bad(memory=torch.ones(3, 2, 4)), ValueError, r"memory .*channels.* = 5 .*\(3, 2, 4\)"),
    "memory empty": (bad(memory=torch.ones(3, 0, 5)), ValueError, r"memory must have at least .*\(3, 0, 5\)"),
    "region dtype": (bad(region=GOOD[2].int()), TypeError, r"region must be torch.int64 .*got torch.int32"),
    "region shape": (bad(region=GOOD[2][None]), ValueError, r"region must have shape \(T,\), got .*\(1, 4\)"),
    "region length": (bad(region=GOOD[2][:3]), ValueError, r"region .*tokens.* = 4 .*\(3,\)"),
    "region device": (bad(region=GOOD[2].to("meta")), ValueError, r"region must be on cpu .*on meta"),
    "region high": (bad(region=torch.tensor([0, 1, 2, 3])), ValueError, r"region .*0 to 2, got values from 0 to 3"),
    "region low": (bad(region=torch.tensor([0, 1, 2, -2])), ValueError, r"region .*got values from -2 to 2"),
    "temperature 0": (bad(temperature=0.0), ValueError, r"temperature must be positive and finite, got 0.0"),
    "temperature -1": (bad(temperature=-1), ValueError, r"temperature .*got -1"),
    "temperature nan": (bad(temperature=float("nan")), ValueError, r"temperature .*got nan"),
    "temperature inf": (bad(temperature=float("inf")), ValueError, r"temperature .*got inf"),
    "temperature bool": (bad(temperature=True), TypeError, r"temperature .*got bool True"),
    "temperature text": (bad(temperature="8"), TypeError, r"temperature .*got str '8'"),
    "temperature (1,)": (bad(temperature=torch.ones(1)), ValueError, r"temperature .*shape \(\), got .*\(1,\)"),
    "temperature int": (bad(temperature=torch.tensor(8)), TypeError, r"temperature .*got torch.int64"),
    "temperature meta": (bad(temperature=torch.ones((), device="meta")), ValueError, r"temperature must be on cpu"),
    "temperature tensor 0": (bad(temperature=torch.zeros(())), ValueError, r"temperature .*positive.* got 0.0"),
    "temperature tensor nan": (bad(temperature=torch.tensor(torch.nan)), ValueError, r"temperature .*got nan"),
    "backend": (bad(backend="fast"), ValueError, r"backend must be 'auto' or one of .*got 'fast'"),
    "backend absent": (bad(backend="cuda"), RuntimeError, r"backend 'cuda' can't run here: "),
}


@pytest.mark.parametrize("name", ["memory_read", "memory_write", "memory_accumulate"])
@pytest.mark.parametrize("case", ERRORS)
def test_errors(name, case):
    arguments, error, message = ERRORS[case]
    rate = {"rate": 0.1} if name == "memory_write" else {}
    with pytest.raises(error, match=message):
        getattr(ops, name)(**arguments, **rate)


@pytest.mark.parametrize(
    ("rate", "error"),
    [(0.0, ValueError), (1, ValueError), (torch.nan, ValueError), (True, TypeError), ("1", TypeError)],
)
def test_rate_errors(rate, error):
    with pytest.raises(error, match=f"rate must .*{rate}"):
        ops.memory_write(**bad(), rate=rate)
    with pytest.raises(error, match=f"rate must .*{rate}"):
        ops.memory_blend(GOOD[1], torch.ones(3, 2), torch.ones(3, 2, 5), rate=rate)


def test_blend_errors():
    memory = GOOD[1]
    with pytest.raises(ValueError, match=r"rho and total .*\(3, 2, 5\), got \(2, 3\)"):
        ops.memory_blend(memory, torch.ones(2, 3), torch.ones_like(memory), rate=0.1)
    with pytest.raises(TypeError, match=r"total must be a floating-point tensor .*int64"):
        ops.memory_blend(memory, torch.ones(3, 2), torch.ones_like(memory, dtype=torch.int64), rate=0.1)
    with pytest.raises(ValueError, match=r"rho must have shape \(K, S\)"):
        ops.memory_blend(memory, torch.ones(3), torch.ones_like(memory), rate=0.1)


@pytest.mark.parametrize("to_tensor", [False, True])
@pytest.mark.parametrize("name", ["read", "accumulate"])
def test_second_derivative_says_that_there_is_none(name, to_tensor):
    latent, memory, region = make(5, 2, 3, 4)
    tau = torch.tensor(3.0, dtype=torch.float64) if to_tensor else 3.0
    out = getattr(ops, f"memory_{name}")(latent.requires_grad_(), memory, region, temperature=tau)
    out = out if name == "read" else out[1]
    (grad,) = torch.autograd.grad(out.square().sum(), latent, create_graph=True)
    with pytest.raises(RuntimeError, match=f"memory_{name} is differentiable once"):
        grad.sum().backward()


def test_meta_tensors_give_shapes():
    latent, memory, region = (x.to("meta") for x in GOOD)
    after, rho = ops.memory_write(latent, memory, region, temperature=8.0, rate=0.1)
    assert (after.shape, rho.shape, after.device.type) == ((3, 2, 5), (3, 2), "meta")
    assert ops.memory_read(latent, memory, region, temperature=8.0).shape == (4, 5)
