"""Read the machine code (SASS) of a kernel, and count what one pass of a warp through its main loop issues.

The counts give the issue bound of a kernel. Each of the four parts of a multiprocessor has one scheduler and one tensor
core, and issues one instruction of one warp per cycle. So a pass takes a warp as many issue cycles as it has
instructions. In the same pass the tensor core is busy for as many cycles as the products take at its peak rate:

    issue bound = tensor cycles / issue cycles

Below 100%, it is the largest share of the peak rate that the loop can reach, whatever the memory does. Above, issue
slots are not what limits it. The warps of a scheduler share both, so the ratio does not depend on their number.
"""

import math
import re
import subprocess
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

# Dense multiply-adds per cycle of one tensor core at peak rate, by chip and kind of operands. By NVIDIA's white papers
# a multiprocessor of the A100 does 1024 in half precision with its four tensor cores, and one of the H100 2048,
# which makes the 989 TFLOP/s of 132 multiprocessors at 1.83 GHz. tf32 has half that rate.
# On sm_90, mma.sync (HMMA) reaches about 62% of the peak in published measurements; only wgmma (HGMMA) reaches all.
# sm_100 is not here: the name of its instruction (UTCHMMA) does not tell the shape, which is in a descriptor.
RATES = {80: {"half": 256, "tf32": 128}, 90: {"half": 512, "tf32": 256}}
# Rows, columns and depth of a warp's product. A wgmma has 64 rows for four warps, 16 for each.
SHAPES = {"16816": (16, 8, 16), "1688": (16, 8, 8), "1684": (16, 8, 4)}
TENSOR = re.compile(r"(?:HMMA\.(?P<digits>\d+)|HGMMA\.64x(?P<columns>\d+)x(?P<depth>\d+))\.F32(?P<kind>\.\w+)?")
INSTRUCTION = re.compile(r"^\s*/\*([0-9a-f]{4,})\*/\s+(?:(@!?U?P\w+)\s+)?([A-Z][\w.]*)\s*([^;]*?)\s*;", re.MULTILINE)
BRANCHES = ("BRA", "JMP", "CALL")  # the compiler leaves some loops with a conditional call that never returns
ENDS = ("EXIT", "RET", "BRX", "JMX", "KILL")
RESOURCES = re.compile(r"^ *Function (\S+):\s+REG:(\d+) STACK:(\d+) SHARED:(\d+) LOCAL:(\d+)", re.MULTILINE)


@dataclass(frozen=True)
class Instruction:
    """One machine instruction. target: where a branch goes, as an index in the list of instructions; else None."""

    name: str
    conditional: bool = False
    target: int | None = None

    @property
    def base(self) -> str:
        return self.name.split(".")[0]


@dataclass(frozen=True)
class Code:
    """The resources of a compiled kernel, and its machine code."""

    registers: int
    spilled: int  # bytes per thread
    shared: int  # bytes per block that the compiler knows of
    instructions: list[Instruction]  # empty if they were not asked for


@dataclass(frozen=True)
class Pass:
    """What a warp issues in one pass through the main loop."""

    tensor_cycles: float
    issue_cycles: int
    issued: Counter[str]  # by the instructions' names up to the first dot


def cuobjdump() -> Path:
    """NVIDIA's disassembler, which Triton's wheel brings."""
    import triton

    return Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"


def read(cubin: Path, tool: Path, code: bool = True) -> dict[str, Code]:
    """The kernels of a file, by their names. Without `code` their instructions are left out, which is much faster."""
    command = [tool, "-res-usage", *["-sass"] * code, cubin]
    text = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    _, *parts = re.split(r"^\s*Function : (\S+)$", text, flags=re.MULTILINE)
    listings = dict(zip(parts[::2], parts[1::2], strict=True))
    kernels = {}
    for name, *numbers in RESOURCES.findall(text):
        registers, stack, shared, local = map(int, numbers)
        kernels[name] = Code(registers, stack + local, shared, parse(listings[name]) if code else [])
    return kernels


def parse(listing: str) -> list[Instruction]:
    """The instructions of one kernel, from what cuobjdump prints."""
    found = INSTRUCTION.findall(listing)
    index = {int(address, 16): i for i, (address, *_) in enumerate(found)}
    instructions = []
    for _, guard, name, operands in found:
        target, conditional = None, bool(guard)
        if name.split(".")[0] in BRANCHES and not name.startswith("CALL.ABS"):
            *conditions, address = operands.split(",")
            target = index[int(address, 16)]
            conditional = conditional or bool(conditions) or name.startswith("CALL")
        instructions.append(Instruction(name, conditional, target))
    return instructions


def loops(instructions: Sequence[Instruction]) -> list[frozenset[int]]:
    """The loops, as sets of indices of instructions.

    A loop is all that can lie between its head and a branch back to the head, so code that the compiler moved out of
    line still counts as part of its loop. Called functions, such as the slow path of a division, count nowhere,
    because no branch leads from them into the loop.
    """
    before: list[list[int]] = [[] for _ in instructions]
    for i, one in enumerate(instructions):
        if one.target is not None:
            before[one.target].append(i)
        goes_on = one.conditional or (one.target is None and one.base not in ENDS)
        if goes_on and i + 1 < len(instructions):
            before[i + 1].append(i)
    found = []
    for head in {one.target for one in instructions if one.target is not None}:
        loop = {head}
        for tail in before[head]:
            body, waiting = {head}, [tail]
            while waiting:
                i = waiting.pop()
                if i not in body:
                    body.add(i)
                    waiting += before[i]
            # If the way back leads to the start of the kernel, it can be gone without the head: this is no loop.
            if head == 0 or 0 not in body:
                loop |= body
        if len(loop) > 1:
            found.append(frozenset(loop))
    return found


def tensor_cycles(name: str, chip: int) -> float:
    """Cycles for which an instruction keeps the tensor core of a warp busy at its peak rate; 0 for all other ones."""
    if not name.split(".")[0].endswith("MMA"):
        return 0
    found = TENSOR.match(name)
    if found is None or (found["digits"] and found["digits"] not in SHAPES):
        raise ValueError(f"unknown tensor-core instruction {name}")
    shape = SHAPES[found["digits"]] if found["digits"] else (16, int(found["columns"]), int(found["depth"]))
    return math.prod(shape) / RATES[chip]["tf32" if found["kind"] == ".TF32" else "half"]


def main_loop(instructions: Sequence[Instruction], chip: int, trips: int = 1) -> Pass | None:
    """What a warp issues in a pass through the innermost loop with the most tensor-core instructions.

    All branches of the loop count as taken. Loops inside it that use tensor cores count `trips` times, other ones once.

    Returns:
        the counts, or None if no loop uses tensor cores.
    """
    every = tensor_loops(instructions)
    if not every:
        return None
    main, _ = max(every, key=lambda one: (one[1], -len(one[0])))
    times = Counter(main)
    for inner, _ in every:
        if inner < main:
            times.update({i: (trips - 1) * times[i] for i in inner})
    return passed(instructions, chip, times)


def product_loop(instructions: Sequence[Instruction], chip: int) -> Pass | None:
    """The same for the loop with the most tensor-core instructions among those that have no such loop inside."""
    every = tensor_loops(instructions)
    innermost = [one for one in every if not any(other < one[0] for other, _ in every)]
    return passed(instructions, chip, Counter(max(innermost, key=lambda one: one[1])[0])) if innermost else None


def tensor_loops(instructions: Sequence[Instruction]) -> list[tuple[frozenset[int], int]]:
    """The loops that use tensor cores, with the number of tensor-core instructions in each."""
    tensor = {i for i, one in enumerate(instructions) if one.base.endswith("MMA")}
    return [(loop, len(loop & tensor)) for loop in loops(instructions) if loop & tensor]


def passed(instructions: Sequence[Instruction], chip: int, times: Counter[int]) -> Pass:
    """The counts, where times says how often each instruction is issued."""
    cycles, issued = 0.0, Counter[str]()
    for i, count in times.items():
        cycles += count * tensor_cycles(instructions[i].name, chip)
        issued[instructions[i].base] += count
    return Pass(cycles, times.total(), issued)
