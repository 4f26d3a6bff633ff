"""Inspecting a memory."""

import numpy as np
import pytest
import torch
from PIL import Image

from showface import MDRNets, MDRNetsConfig
from showface.data import image_to_tensor
from showface.inspection import memory_picture

from support.pictures import save_faces


def test_picture(model, tmp_path):
    folder = save_faces(tmp_path / "faces")
    picture = memory_picture(model, sorted(folder.iterdir()), slots=3)
    assert picture.mode == "RGB"
    assert picture.height > 19 * 72
    assert len(picture.resize((64, 64)).getcolors(4096)) > 50  # the picture is not blank
    assert memory_picture(model, [Image.new("RGB", (50, 40))]).width > picture.width


@pytest.mark.parametrize("number", [0, 1])
def test_picture_shows_the_photo_that_a_slot_stores(model, number):
    size = model.config.image_size
    noise = np.random.default_rng(0).integers(0, 128, (2, size, size, 3), dtype=np.uint8)
    noise[1] += 128
    photos = [Image.fromarray(pixels) for pixels in noise]
    latent, region, _ = model.parts(torch.stack([image_to_tensor(photo) for photo in photos]))
    shown = (region >= 0).all(0).nonzero().flatten().tolist()
    assert shown
    model.memory.memory.copy_(5 * latent[number][:, None].expand_as(model.memory.memory))
    picture = np.asarray(memory_picture(model, photos, slots=1))
    for k in shown:
        top = 6 + k * (72 + 5 + 6)
        cell = picture[top : top + 72, 190 : 190 + 72]
        assert (cell.mean() > 128) == bool(number)


def test_errors(model, tiny):
    with pytest.raises(ValueError, match="got 0 and 10"):
        memory_picture(model, [])
    without = MDRNets(MDRNetsConfig(**{**tiny.to_dict(), "use_memory": False}))
    with pytest.raises(ValueError, match="no memory"):
        memory_picture(without, [Image.new("RGB", (50, 40))])
