"""The reader of machine code in tools/sass.py, on short listings, and the comparison with recorded issue bounds."""

from collections import Counter

import issue_bounds
import pytest
import sass


def listing(*lines: str) -> str:
    """What cuobjdump prints: each instruction with its address, and the encoding in two comments."""
    return "\n".join(
        f"        /*{16 * i:04x}*/ {line} ;      /* 0x00000a00ff017b82 */\n            /* 0x000fe20000000800 */"
        for i, line in enumerate(lines)
    )


def count(*lines: str, chip: int = 90, trips: int = 1) -> sass.Pass | None:
    return sass.main_loop(sass.parse(listing(*lines)), chip, trips)


HALF = "HMMA.16816.F32.BF16 R4, R8, R12, R4"


def test_instructions_and_branches_are_read():
    code = sass.parse(listing("MOV R1, R2", "@!P0 BRA 0x0", "BRA.U UP0, 0x30", "@P1 EXIT", "BRA 0x0"))
    assert [x.name for x in code] == ["MOV", "BRA", "BRA.U", "EXIT", "BRA"]
    assert [x.target for x in code] == [None, 0, 3, None, 0]
    assert [x.conditional for x in code] == [False, True, True, True, False]


def test_a_loop_is_counted_without_what_is_around_it():
    done = count("MOV R1, R2", HALF, HALF, "FADD R1, R1, R2", "@P0 BRA 0x10", "EXIT")
    assert (done.tensor_cycles, done.issue_cycles) == (8, 4)
    assert done.issued == Counter(HMMA=2, FADD=1, BRA=1)


def test_an_inner_loop_with_products_counts_as_often_as_it_is_passed():
    lines = ["FADD R1, R1, R2", HALF, "@P0 BRA 0x10", HALF, "@P1 BRA 0x0", "EXIT"]
    once, often = count(*lines), count(*lines, trips=4)
    assert (once.tensor_cycles, once.issue_cycles) == (8, 5)
    assert (often.tensor_cycles, often.issue_cycles) == (5 * 4, 3 + 4 * 2)


def test_an_inner_loop_without_products_counts_once():
    lines = ["LDG.E R1, [R2]", "@P0 BRA 0x0", HALF, "@P1 BRA 0x0", "EXIT"]
    assert count(*lines, trips=4) == count(*lines)


def test_of_nested_loops_with_the_same_products_the_inner_one_is_the_main_loop():
    assert count("MOV R1, R2", HALF, "@P0 BRA 0x10", "STG.E [R2], R1", "@P1 BRA 0x0", "EXIT").issue_cycles == 2


def test_a_branch_forward_counts_both_ways():
    assert count(HALF, "@P1 BRA 0x30", "FADD R1, R1, R2", "@P0 BRA 0x0", "EXIT").issue_cycles == 4


def test_code_behind_the_end_counts_where_it_belongs():
    before = ["@P2 BRA 0x70", "MOV R1, R2"]  # the branch goes to a slow path that comes back before the loop
    loop = [HALF, "@P1 BRA 0x90", "@P0 BRA 0x20", "EXIT", "NOP"]
    behind = ["MOV R3, R4", "BRA 0x10", "FADD R1, R1, R2", "BRA 0x40"]
    assert count(*before, *loop, *behind).issued == Counter(HMMA=1, BRA=3, FADD=1)


def test_a_loop_can_be_left_by_a_call():
    lines = ["MOV R1, R2", HALF, "@P0 CALL.REL.NOINC 0x40", "BRA 0x10", HALF, "@P1 BRA 0x0", "EXIT"]
    assert count(*lines, trips=2).issued == Counter(MOV=1, HMMA=3, CALL=2, BRA=3)


def test_a_called_function_does_not_count():
    behind = ["@P0 BRA 0x0", "EXIT", "NOP", "MUFU.RCP R1, R2", "RET.REL.NODEC R2, 0x0"]
    assert count(HALF, "CALL.REL.NOINC 0x50", *behind).issued == Counter(HMMA=1, CALL=1, BRA=1)
    assert count(HALF, "CALL.ABS.NOINC R2", *behind).issued == Counter(HMMA=1, CALL=1, BRA=1)


@pytest.mark.parametrize("lines", [["MOV R1, R2", "EXIT"], [HALF, "EXIT"], ["MOV R1, R2", "@P0 BRA 0x0", "EXIT"]])
def test_there_is_no_main_loop_without_tensor_cores(lines):
    assert count(*lines) is None


@pytest.mark.parametrize(
    ("name", "chip", "cycles"),
    [
        ("HMMA.16816.F32", 80, 8),
        ("HMMA.16816.F32.BF16", 90, 4),
        ("HMMA.1688.F32.TF32", 80, 8),
        ("HMMA.1688.F32.TF32", 90, 4),
        ("HGMMA.64x256x16.F32.BF16", 90, 128),
        ("HGMMA.64x32x8.F32.TF32", 90, 16),
        ("FFMA", 90, 0),
        ("WARPGROUP.ARRIVE", 90, 0),
    ],
)
def test_cycles_of_the_tensor_core(name, chip, cycles):
    assert sass.tensor_cycles(name, chip) == cycles


@pytest.mark.parametrize("name", ["HMMA.9999.F32", "QGMMA.64x64x32.F32.E4M3.E4M3", "UTCHMMA"])
def test_unknown_products_are_not_counted_as_none(name):
    with pytest.raises(ValueError, match=name):
        sass.tensor_cycles(name, 90)


def test_resources_of_several_kernels_are_read(tmp_path):
    tool = tmp_path / "cuobjdump"
    lines = [
        "Resource usage:",
        " Common:",
        "  GLOBAL:28 CONSTANT[4]:16",
        " Function first:",
        "  REG:161 STACK:0 SHARED:1024 LOCAL:0 CONSTANT[0]:640",
        " Function second:",
        "  REG:40 STACK:8 SHARED:0 LOCAL:16 CONSTANT[0]:640",
        "\t\tFunction : second",
        listing("EXIT"),
        "\t\tFunction : first",
        listing("MOV R1, R2", "EXIT"),
    ]
    (tmp_path / "printed").write_text("\n".join(lines))
    tool.write_text(f"#!/bin/sh\ncat '{tmp_path}/printed'\n")
    tool.chmod(0o755)
    found = sass.read(tmp_path / "kernel.cubin", tool)
    first, second = found["first"], found["second"]
    assert (first.registers, first.spilled, first.shared, len(first.instructions)) == (161, 0, 1024, 2)
    assert (second.registers, second.spilled, second.shared, len(second.instructions)) == (40, 24, 0, 1)


def test_bounds_of_other_versions_are_kept(tmp_path):
    path = tmp_path / "bounds.json"
    assert issue_bounds.load(path) == {}
    issue_bounds.save("3.6", {"forward": {"80": 60, "90": 34}}, path)
    issue_bounds.save("3.9", {"forward": {"90": 35}}, path)
    issue_bounds.save("3.9", {"forward": {"90": 36}, "backward": {"90": 40}}, path)
    expected = {"3.6": {"forward": {"80": 60, "90": 34}}, "3.9": {"forward": {"90": 36}, "backward": {"90": 40}}}
    assert issue_bounds.load(path) == expected


def test_what_falls_below_its_bound_is_reported():
    recorded = {"forward": {"80": 60, "90": 34}, "backward": {"90": 40}}
    assert not issue_bounds.shortfalls({"forward": {"80": 59, "90": 50}}, recorded)
    assert issue_bounds.shortfalls({"forward": {"80": 58, "90": 34}}, recorded) == [
        "forward, sm_80: 58% instead of 60%"
    ]
    assert issue_bounds.shortfalls({"other": {"90": 70}}, recorded) == ["other, sm_90: 70%, and no bound is recorded"]
