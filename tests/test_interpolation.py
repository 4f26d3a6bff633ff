"""Models with a choice between smooth and sharp weights: `detail`."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import showface
from showface import MDRNets, MDRNetsConfig, load_model
from showface.models import network as network_module
from showface.models.find import DIFFERENCE_FILE, WEIGHTS_FILE
from showface.models.interpolation import read_weights, save_difference
from showface.models.network import saved_detail

CONFIG = MDRNetsConfig(coarse_channels=8, channels=8, refinement_channels=8, slots=4)
PORTRAIT, MASK = (Path(showface.__file__).parent / "assets" / "demo" / f"{name}.png" for name in ("portrait", "mask"))


def a_network(seed: int) -> MDRNets:
    torch.manual_seed(seed)
    network = MDRNets(CONFIG)
    for x in network.buffers():
        if x.is_floating_point():
            x.normal_()
    return network.eval()


@pytest.fixture(scope="module")
def networks() -> tuple[MDRNets, MDRNets]:
    return a_network(0), a_network(1)


@pytest.fixture
def folder(networks, tmp_path: Path) -> Path:
    """A model whose usual detail is 0.25."""
    smooth, sharp = networks
    smooth.save_pretrained(tmp_path / "pair")
    save_difference(tmp_path / "pair", sharp)
    set_detail(tmp_path / "pair", 0.25)
    return tmp_path / "pair"


def set_detail(folder: Path, detail: object) -> None:
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"detail": detail}))


@pytest.mark.parametrize("detail", [0, 0.25, 1, 1.0, np.float32(0.5), np.int64(1), None])
def test_weights_lie_between_both(networks, folder, detail) -> None:
    smooth, sharp = (network.state_dict() for network in networks)
    found = load_model(folder, detail=detail).state_dict()
    share = 0.25 if detail is None else detail
    for name, weight in found.items():
        if not weight.is_floating_point():
            assert torch.equal(weight, smooth[name])
            continue
        change = sharp[name] - smooth[name]
        bound = change.abs().flatten(1).amax(1) / 254 if change.dim() > 1 else change.abs() / 254
        error = (weight - torch.lerp(smooth[name], sharp[name], share)).abs()
        error = error.flatten(1).amax(1) if change.dim() > 1 else error
        assert (error <= share * bound + 1e-6).all(), name


def test_it_takes_a_quarter_of_the_space(folder) -> None:
    assert (folder / DIFFERENCE_FILE).stat().st_size < 0.35 * (folder / WEIGHTS_FILE).stat().st_size


def test_without_a_usual_detail_it_is_sharp(folder) -> None:
    file = folder / "config.json"
    file.write_text(json.dumps({name: x for name, x in json.loads(file.read_text()).items() if name != "detail"}))
    assert saved_detail(folder) == 1


def test_what_is_saved_again_has_one_set_of_weights(folder) -> None:
    model = load_model(folder, detail=0.5)
    model.save_pretrained(folder)
    assert not (folder / DIFFERENCE_FILE).exists()
    again = load_model(folder)
    assert all(torch.equal(x, again.state_dict()[name]) for name, x in model.state_dict().items())
    with pytest.raises(ValueError, match=r"detail can't be chosen for .*pair, which has no difference.safetensors"):
        load_model(folder, detail=0.5)


def test_a_failing_save_leaves_both(folder, monkeypatch) -> None:
    before = {path.name: path.read_bytes() for path in folder.iterdir()}

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(network_module, "save_file", full)
    with pytest.raises(OSError, match="No space left"):
        load_model(folder, detail=0.5).save_pretrained(folder)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


@pytest.mark.parametrize("detail", [-0.1, 1.5, float("nan"), True, "0.5"])
def test_a_detail_out_of_range(folder, detail) -> None:
    with pytest.raises(ValueError, match=r"detail must be a number from 0 \(smooth\) to 1 \(sharp\), got "):
        load_model(folder, detail=detail)
    set_detail(folder, detail)
    with pytest.raises(ValueError, match=r"config.json is not a configuration of a model: detail must be a number"):
        load_model(folder)


def test_a_difference_that_does_not_fit(networks, folder) -> None:
    path = folder / DIFFERENCE_FILE
    stored = load_file(path)
    name = next(name for name in stored if stored[name].dim() == 4)
    for change in ({name: stored[name][:1]}, {name: stored[name].float()}, {"other": stored[name].clone()}):
        save_file(stored | change, path)
        with pytest.raises(ValueError, match=r"difference.safetensors does not fit model.safetensors: it has other"):
            load_model(folder)
    path.write_bytes(b"nonsense")
    with pytest.raises(ValueError, match=r"difference.safetensors .*can't be read"):
        load_model(folder)
    with pytest.raises(ValueError, match="must have the tensors and shapes"):
        save_difference(folder, networks[1].coarse)


def test_integers_stay(tmp_path) -> None:
    smooth, sharp = torch.nn.BatchNorm2d(2), torch.nn.BatchNorm2d(2)
    sharp.bias.data.add_(1)
    sharp.num_batches_tracked += 1
    save_file(smooth.state_dict(), tmp_path / WEIGHTS_FILE)
    save_difference(tmp_path, sharp)
    found = read_weights(tmp_path, 0.5)
    assert found["bias"].tolist() == pytest.approx([0.5, 0.5])
    assert found["num_batches_tracked"].item() == 0


def test_psnr_is_the_bundled_model_without_detail() -> None:
    smooth = load_model(detail=0).state_dict()
    assert all(torch.equal(x, smooth[name]) for name, x in load_model("psnr").state_dict().items())
    stored = load_file(Path(showface.__file__).parent / "assets" / "default" / WEIGHTS_FILE)
    assert all(torch.equal(x, stored[name].float()) for name, x in smooth.items() if x.is_floating_point())


def test_more_detail_gives_sharper_fills() -> None:
    def gradient(detail: float) -> float:
        result = showface.inpaint(PORTRAIT, MASK, detail=detail)
        grey, hole = np.asarray(result.convert("L"), dtype=float), np.asarray(showface.data.read_mask(MASK))
        steps = np.abs(np.diff(grey, axis=1))
        return float(steps[hole[:, 1:] & hole[:, :-1]].mean())

    values = [gradient(detail) for detail in (0, 0.5, 1)]
    assert values[0] < values[1] < values[2]


def test_a_network_has_its_weights_already() -> None:
    with pytest.raises(ValueError, match="can't be chosen for a network that is loaded: give it to"):
        showface.Inpainter(load_model("psnr"), detail=0.5)


def test_from_the_command_line(showface, folder, networks, tmp_path) -> None:
    shutil.copy(PORTRAIT, "photo.png")
    for detail, name in ((None, "usual"), ("0.25", "same"), ("1", "sharp")):
        options = [] if detail is None else ["--detail", detail]
        code, _, err = showface("inpaint", "photo.png", MASK, "-o", f"{name}.png", "--model", folder, *options)
        assert code == 0, err
    usual, same, sharp = (Path(f"{name}.png").read_bytes() for name in ("usual", "same", "sharp"))
    assert usual == same != sharp
    networks[0].save_pretrained(tmp_path / "plain")
    for model, detail, problem in (
        (folder, "2", "detail must be a number from 0 (smooth) to 1 (sharp), got 2.0"),
        (tmp_path / "plain", "1", "which has no difference.safetensors"),
    ):
        code, _, err = showface("inpaint", "photo.png", MASK, "-o", "x.png", "--model", model, "--detail", detail)
        assert code == 1
        assert problem in err
        assert not Path("x.png").exists()


def test_read_weights_without_a_difference(networks, tmp_path) -> None:
    networks[0].save_pretrained(tmp_path, torch.float16)
    assert all(x.dtype == torch.float16 for x in read_weights(tmp_path, 0.5).values() if x.is_floating_point())
