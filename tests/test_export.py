"""Exported files compute what the networks compute: ONNX, torch.export and AOTInductor."""

import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch._inductor import config as inductor_config

import showface
from showface import baselines
from showface.baselines.base import BaselineConfig
from showface.export import export_model, onnx_model
from showface.export.decompositions import correlation_with_lse, read_with_lse
from showface.models.interpolation import save_difference
from showface.nn import fill
from showface.nn.tokens import pool_hole
from showface.ops import definitions

from support.networks import wake

FEW = {"sizes": ((64, 64), (75, 131)), "ratios": (0.0, 0.3, 1.0)}


def write_onnx(network, path, **options):
    pytest.importorskip("onnx")
    pytest.importorskip("onnxscript")
    pytest.importorskip("onnxruntime")
    from showface.export import onnx

    onnx.write_onnx(network, path, **options)
    return onnx


@pytest.mark.parametrize("keys", ["valid", "all"])
def test_dense_correlation_is_the_definition(keys):
    query, key, value = (torch.randn(4, 30, c) for c in (8, 8, 5))
    hole = torch.rand(4, 30) < 0.4
    hole[1], hole[2] = True, False
    out, _ = correlation_with_lse(query, key, value, hole, torch.tensor(3.0), 2.0, keys)
    torch.testing.assert_close(out, definitions.masked_correlation(query, key, value, hole, 6.0, keys))
    _, lse = torch.ops.showface.masked_correlation_with_lse(query, key, value, hole, None, 6.0, keys)
    torch.testing.assert_close(
        correlation_with_lse(query, key, value, hole, None, 6.0, keys)[1].where(
            lse.isfinite() & hole, torch.tensor(0.0)
        ),
        lse.where(lse.isfinite() & hole, torch.tensor(0.0)),
    )


def test_dense_read_is_the_definition():
    latent, memory, region = torch.randn(20, 8), torch.randn(3, 6, 8), torch.randint(-1, 3, (20,))
    out, lse = read_with_lse(latent, memory, region, None, 7.0)
    torch.testing.assert_close(out, definitions.memory_read(latent, memory, region, 7.0))
    expected = torch.ops.showface.memory_read_with_lse(latent, memory, region, None, 7.0)[1]
    torch.testing.assert_close(lse[region >= 0], expected[region >= 0])


class Modules(torch.nn.Module):
    """A network of a user: the memory and the enhancement on the features of one convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.features = torch.nn.Conv2d(3, 8, 4, stride=4)
        self.memory = showface.nn.DisentangledMemory(8, regions=3, slots=4)
        self.enhance = showface.nn.MaskRegionEnhancement(8, memory_channels=8)

    def forward(self, image: torch.Tensor, hole: torch.Tensor) -> torch.Tensor:
        features = self.features(image)
        return self.enhance(features, hole, self.memory(features, features[:, :3].softmax(1)))


def test_a_network_of_ones_own(tmp_path):
    """It becomes a file for any batch and height, without operators of this package."""
    pytest.importorskip("onnxscript")
    onnxruntime = pytest.importorskip("onnxruntime")
    network = wake(Modules()).eval()
    shape = {0: torch.export.Dim("batch", min=1, max=8), 2: 4 * torch.export.Dim("rows", min=2, max=64)}
    example = torch.rand(2, 3, 32, 16), (torch.rand(2, 1, 32, 16) < 0.3).float()
    program = torch.export.export(network, example, dynamic_shapes=(shape, shape))
    session = onnxruntime.InferenceSession(onnx_model(program, ["image", "hole"], ["out"]).SerializeToString())
    for batch, rows in ((2, 32), (3, 20)):
        image, hole = torch.rand(batch, 3, rows, 16), (torch.rand(batch, 1, rows, 16) < 0.3).float()
        (out,) = session.run(None, {"image": image.numpy(), "hole": hole.numpy()})
        torch.testing.assert_close(torch.from_numpy(out), network(image, hole), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("size", [(1, 1), (2, 3), (16, 16), (33, 70), (5, 1)])
def test_exported_push_pull_fills_the_same(size, monkeypatch):
    image, hole = torch.randn(2, 3, *size), (torch.rand(2, 1, *size) < 0.6).float()
    hole[1] = 1
    expected = fill.push_pull_fill(image, hole)
    monkeypatch.setattr(torch.compiler, "is_exporting", lambda: True)
    torch.testing.assert_close(fill.push_pull_fill(image, hole), expected)


def test_pooled_hole():
    hole = (torch.rand(2, 1, 24, 36) < 0.05).float()
    for size in ((6, 9), (5, 9), (24, 36)):
        assert torch.equal(pool_hole(hole, *size), torch.nn.functional.adaptive_max_pool2d(hole, size))


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """A small network that is exported quickly, and its ONNX file with float16 weights."""
    torch.manual_seed(0)
    network = baselines.BASELINES["pconv"](BaselineConfig(channels=8, image_size=64)).eval()
    path = tmp_path_factory.mktemp("onnx") / "small.onnx"
    onnx = write_onnx(network, path, half=True, licence="MIT")
    network.load_state_dict(onnx.rounded(network.state_dict()))
    return network, path, onnx


def test_onnx_computes_what_the_network_computes(exported):
    network, path, onnx = exported
    rows = onnx.check_onnx(network, path, **FEW)
    assert len(rows) == 6
    assert max(row.worst for row in rows) < 1e-4


def test_onnx_says_what_it_is(exported):
    import onnx

    model = onnx.load(exported[1])
    facts = {x.key: x.value for x in model.metadata_props}
    assert facts["weights"] == "float16"
    assert facts["licence"] == "MIT"
    assert {"name", "version", "image", "hole", "filled", "coarse", "largest_side"} <= facts.keys()
    assert [x.version for x in model.opset_import if not x.domain] == [20]
    assert {node.domain for node in model.graph.node} == {""}
    large = [x for x in model.graph.initializer if np.prod(x.dims) >= 64 and x.data_type == onnx.TensorProto.FLOAT]
    assert not large


def test_a_network_that_draws_samples_is_refused(tmp_path):
    network = baselines.BASELINES["ict"]
    network(network.config_type(channels=8, image_size=32)).save_pretrained(tmp_path / "ict")
    with pytest.raises(ValueError, match="ict draws its samples in a loop"):
        export_model(str(tmp_path / "ict.onnx"), str(tmp_path / "ict"))
    assert not (tmp_path / "ict.onnx").exists()


def test_a_wrong_file_is_noticed(exported):
    """The check does fail: other weights give other results."""
    network, path, onnx = exported
    other = type(network)(network.config).eval()
    other.load_state_dict({name: 1.1 * x if x.is_floating_point() else x for name, x in network.state_dict().items()})
    assert max(row.worst for row in onnx.check_onnx(other, path, **FEW)) > 1e-4


@pytest.mark.parametrize("reason", ["wrong", "interrupted"])
def test_a_failing_check_leaves_the_old_file(exported, tmp_path, monkeypatch, reason):
    network, _, onnx = exported

    def check(*_, **__):
        if reason == "interrupted":
            raise KeyboardInterrupt
        return [onnx.Parity(16, 16, 0.3, image=1.0, coarse=0.0)]

    monkeypatch.setattr(onnx, "check_onnx", check)
    network.save_pretrained(tmp_path / "model")
    (tmp_path / "model.onnx").write_text("mine")
    with pytest.raises((ValueError, KeyboardInterrupt)):
        export_model(tmp_path / "model.onnx", str(tmp_path / "model"), overwrite=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model", "model.onnx"]
    assert (tmp_path / "model.onnx").read_text() == "mine"


def test_program_takes_other_sizes(model):
    from showface.export.onnx import example_input
    from showface.export.program import export_program

    fill_in = export_program(model).module()
    for size in ((64, 64), (128, 48), (32, 176)):
        for ratio in (0.0, 0.3, 1.0):
            image, hole = example_input(*size, ratio)
            with torch.no_grad():
                filled, coarse = fill_in(image, hole)
                expected = model(image, hole)
            torch.testing.assert_close(filled, expected.image, atol=1e-5, rtol=0)
            torch.testing.assert_close(coarse, expected.coarse, atol=1e-5, rtol=0)
    with pytest.raises((AssertionError, RuntimeError, ValueError)):
        fill_in(torch.zeros(1, 3, 50, 64), torch.zeros(1, 1, 50, 64))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["-o", "model.txt"], "must end in .onnx, .pt2 or .aoti.pt2"),
        (["-o", "nowhere/model.onnx"], "there is no folder nowhere"),
        (["-o", "model.pt2", "--half"], "--half is for .onnx"),
        (["-o", "model.onnx", "--compile"], "--compile is for .pt2"),
        (["-o", "faces.pt2", "--faces"], "as .onnx only"),
        (["-o", "model.pt2", "--detail-input"], "--detail-input is for .onnx"),
        (["-o", "model.onnx", "--detail-input", "--detail", "0.5"], "either --detail-input or --detail, got both"),
    ],
)
def test_command_refuses(showface, options, message):
    code, _, error = showface("export", *options)
    assert code == 1
    assert message in error


def test_command_does_not_overwrite(showface, tmp_path):
    (tmp_path / "model.onnx").write_text("mine")
    code, _, error = showface("export", "-o", tmp_path / "model.onnx")
    assert code == 1
    assert "--overwrite" in error
    assert (tmp_path / "model.onnx").read_text() == "mine"


def test_detail_is_an_input(tmp_path):
    """The file computes what the network computes with the weights of that `detail`, also where they are float16."""
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxscript")
    pytest.importorskip("onnxruntime")
    from showface.export.onnx import SIZES, example_input

    networks = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        networks.append(baselines.BASELINES["unet"](BaselineConfig(channels=8, image_size=64)).eval())
    networks[0].save_pretrained(tmp_path / "pair")
    with pytest.raises(ValueError, match="detail can't be chosen"):
        export_model(tmp_path / "pair.onnx", str(tmp_path / "pair"), detail_input=True)
    save_difference(tmp_path / "pair", networks[1])
    rows = export_model(tmp_path / "pair.onnx", str(tmp_path / "pair"), half=True, detail_input=True)
    assert {(row.height, row.width) for row in rows} == set(SIZES)
    assert max(row.worst for row in rows) < 1e-4
    model = onnx.load(tmp_path / "pair.onnx")
    assert [x.name for x in model.graph.input] == ["image", "hole", "detail"]
    assert not any(node.metadata_props for node in model.graph.node)
    with torch.no_grad():
        image, hole = example_input(64, 64, 0.3)
        results = [showface.load_model(tmp_path / "pair", detail=detail)(image, hole).image for detail in (0, 1)]
    assert (results[0] - results[1]).abs().max() > 0.01  # so the check of the export compared different weights


@pytest.mark.parametrize("worst", [1.0, float("nan")])
def test_a_wrong_detector_leaves_the_old_file(tmp_path, monkeypatch, worst):
    onnx = pytest.importorskip("onnx")
    from showface.export import faces

    monkeypatch.setattr(torch.export, "export", lambda *_, **__: None)
    for name in ("onnx_model", "_name_sizes", "describe"):
        monkeypatch.setattr(faces, name, lambda *_, **__: None)
    monkeypatch.setattr(onnx.checker, "check_model", lambda _: None)
    monkeypatch.setattr(onnx, "save", lambda _, path: path.write_text("new"))
    monkeypatch.setattr(faces, "_difference", lambda *_: worst)
    (tmp_path / "yunet.onnx").write_text("mine")
    with pytest.raises(ValueError, match=r"differ from PyTorch's by .* pixels, over 0.01"):
        faces.write_faces_onnx(tmp_path / "yunet.onnx")
    assert [path.read_text() for path in tmp_path.iterdir()] == ["mine"]
    monkeypatch.setattr(faces, "_difference", lambda *_: 1e-3)
    assert faces.write_faces_onnx(tmp_path / "yunet.onnx") == 1e-3
    assert (tmp_path / "yunet.onnx").read_text() == "new"


@pytest.mark.long
def test_faces(showface, tmp_path):
    pytest.importorskip("onnxscript")
    code, out, error = showface("export", "--faces", "-o", tmp_path / "yunet.onnx")
    assert code == 0, error
    assert float(out.split("PyTorch: ")[1].split()[0]) < 1e-2


@pytest.mark.long
@pytest.mark.parametrize("half", [False, True])
def test_bundled_model(showface, tmp_path, half):
    pytest.importorskip("onnxscript")
    code, out, error = showface("export", "-o", tmp_path / "model.onnx", *["--half"] * half)
    assert code == 0, error
    assert "256 x 256" in out


@pytest.mark.long
@pytest.mark.parametrize("name", [name for name in sorted(baselines.BASELINES) if name not in ("dsi", "ict")])
def test_baselines(name, tmp_path):
    torch.manual_seed(0)
    network = baselines.BASELINES[name](BaselineConfig(channels=8, image_size=64)).eval()
    onnx = write_onnx(network, tmp_path / "baseline.onnx")
    assert max(row.worst for row in onnx.check_onnx(network, tmp_path / "baseline.onnx", **FEW)) < 1e-4


FRESH = """
import sys, torch
from showface.export.program import load_compiled, load_program
load = {"program": load_program, "compiled": load_compiled}[sys.argv[1]]
image, hole = torch.load(sys.argv[3])
with torch.no_grad():
    torch.save(load(sys.argv[2])(image, hole), sys.argv[4])
"""


@pytest.mark.long
@pytest.mark.parametrize("kind", ["program", "compiled"])
def test_torch_files_in_a_fresh_process(kind, model, tmp_path):
    from showface.export import program

    if kind == "compiled" and not shutil.which("g++"):
        pytest.skip("AOTInductor needs a C++ compiler")
    write = {"program": program.write_program, "compiled": program.write_compiled}[kind]
    path = tmp_path / {"program": "model.pt2", "compiled": "model.aoti.pt2"}[kind]
    # With smaller fused operators, the compiler takes half the time.
    with inductor_config.patch(realize_opcount_threshold=8, realize_reads_threshold=2):
        write(model, path)
    image, hole = torch.rand(3, 3, 48, 80) * 2 - 1, (torch.rand(3, 1, 48, 80) < 0.3).float()
    torch.save((image, hole), tmp_path / "in.pt")
    subprocess.run(
        [sys.executable, "-c", FRESH, kind, str(path), str(tmp_path / "in.pt"), str(tmp_path / "out.pt")],
        check=True,
        cwd=Path(__file__).parents[1],
    )
    filled, coarse = torch.load(tmp_path / "out.pt")
    with torch.no_grad():
        expected = model(image, hole)
    torch.testing.assert_close(filled, expected.image, atol=1e-4, rtol=0)
    torch.testing.assert_close(coarse, expected.coarse, atol=1e-4, rtol=0)
