"""The weights that the package carries."""

from pathlib import Path

import numpy as np
import pytest
import torch

import showface
from showface.data import image_to_tensor, mask_to_tensor, read_image, read_mask
from showface.nn import push_pull_fill

ASSETS = Path(showface.__file__).parent / "assets"


@pytest.fixture(scope="module")
def portrait() -> tuple[torch.Tensor, torch.Tensor]:
    image = image_to_tensor(read_image(ASSETS / "demo" / "portrait.png"))[None]
    return image, mask_to_tensor(read_mask(ASSETS / "demo" / "mask.png"))[None]


def test_every_part_is_there_and_small() -> None:
    config = showface.MDRNets.from_pretrained().config
    assert config.use_memory
    assert config.use_enhancement
    assert config.use_refinement
    assert sum(path.stat().st_size for path in (ASSETS / "default").iterdir()) < 25e6


def test_a_portrait_it_never_saw_comes_out_better_than_a_smooth_fill(portrait) -> None:
    image, hole = portrait
    with torch.inference_mode():
        output = showface.MDRNets.from_pretrained()(image, hole)

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
