"""Compile check of the CUDA kernels: none spills registers, and the loops of products are found."""

from importlib.util import find_spec

import pytest

pytestmark = [
    pytest.mark.long,
    pytest.mark.shared("cuda_compile"),
    pytest.mark.skipif(
        not all(map(find_spec, ("triton", "ninja", "pybind11", "setuptools"))),
        reason="triton, ninja, pybind11 or setuptools is not installed",
    ),
]


@pytest.fixture(scope="module")
def compiled(tmp_path_factory):
    import build_script
    import cuda_compile

    setup = build_script.load()
    try:
        setup.find_nvcc(), setup.find_compiler()
    except setup.UnavailableError as why:
        pytest.skip(str(why))
    return cuda_compile.report(cuda_compile.compile_sources(tmp_path_factory.mktemp("objects"), 90), 90)


def test_nothing_spills(compiled):
    assert compiled
    assert not [x for x in compiled if x.spilled]


def test_kernels_on_tensor_cores_have_a_loop_of_products(compiled):
    wanted = [x for x in compiled if "true" in x.name]  # the template argument TensorCores
    assert len(wanted) == 10
    assert wanted == [x for x in compiled if x.issue_bound is not None]
    # Above 1, the loads from shared memory would limit the kernel even more than they do.
    assert all(x.loads <= 1 for x in wanted)
