"""The models that are bundled with the package."""

from pathlib import Path

import numpy as np
import pytest
import torch

import showface
from showface.data import image_to_tensor, mask_to_tensor, read_image, read_mask
from showface.models import BUNDLED
from showface.nn import push_pull_fill

ASSETS = Path(showface.__file__).parent / "assets"


@pytest.fixture(scope="module", params=sorted(BUNDLED))
def model(request: pytest.FixtureRequest) -> showface.MDRNets:
    return showface.MDRNets.from_pretrained(request.param)


@pytest.fixture(scope="module")
def portrait() -> tuple[torch.Tensor, torch.Tensor]:
    image = image_to_tensor(read_image(ASSETS / "demo" / "portrait.png"))[None]
    return image, mask_to_tensor(read_mask(ASSETS / "demo" / "mask.png"))[None]


def test_every_part_is_there_and_small(model) -> None:
    config = model.config
    assert config.use_memory
    assert config.use_enhancement
    assert config.use_refinement
    assert sum(path.stat().st_size for path in ASSETS.rglob("*")) < 30e6


def test_their_names_stand_for_their_folders(tmp_path, monkeypatch) -> None:
    default, psnr = (showface.load_model(name) for name in ("default", "psnr"))
    assert torch.equal(showface.MDRNets.from_pretrained().coarse.to_image.conv.bias, default.coarse.to_image.conv.bias)
    assert not torch.equal(psnr.coarse.to_image.conv.bias, default.coarse.to_image.conv.bias)
    monkeypatch.chdir(tmp_path)
    psnr.save_pretrained("psnr")
    (tmp_path / "psnr" / "config.json").unlink()
    assert showface.load_model("psnr").config == psnr.config
    with pytest.raises(FileNotFoundError, match=r"no config.json in psnr: .*, or one of default, psnr"):
        showface.load_model(Path("psnr"))


def test_the_device_is_chosen(device) -> None:
    model = showface.load_model("psnr", device=device)
    weight = model.coarse.to_image.conv.weight
    assert weight.device.type == device
    assert weight.is_contiguous(memory_format=torch.channels_last)
    assert next(showface.load_model("psnr").parameters()).device.type == "cpu"


@pytest.mark.parametrize("name", ["nonsense", "cuda:99"])
def test_a_device_that_is_not_there(name) -> None:
    with pytest.raises(ValueError, match=f"device {name} can't be used: "):
        showface.load_model("psnr", device=name)


def test_training_starts_from_them(tmp_path) -> None:
    pytest.importorskip("accelerate")
    from showface.training import Trainer, load_config

    overrides = [f"data.folders=[{ASSETS / 'demo'}]", "data.size=32", "init=psnr", "device=cpu"]
    start = Trainer(load_config(overrides=overrides), tmp_path / "run").model.state_dict()
    for name, weight in showface.load_model("psnr").state_dict().items():
        assert torch.equal(start[name], weight), name


def test_a_portrait_it_never_saw_comes_out_better_than_a_smooth_fill(model, portrait) -> None:
    image, hole = portrait
    with torch.inference_mode():
        output = model(image, hole)

    def error(result: torch.Tensor) -> float:
        return float(((result - image).square() * hole).sum() / hole.sum())

    assert error(output.image) < 0.9 * error(push_pull_fill(image, hole))
    assert torch.equal(output.image[:, :, hole[0, 0] == 0], image[:, :, hole[0, 0] == 0])


def test_inpaint_takes_it(portrait) -> None:
    folder = ASSETS / "demo"
    result = np.asarray(showface.inpaint(folder / "portrait.png", folder / "mask.png"))
    photo, hole = np.asarray(read_image(folder / "portrait.png")), read_mask(folder / "mask.png")
    assert np.array_equal(result[~hole], photo[~hole])
    assert not np.array_equal(result[hole], photo[hole])
