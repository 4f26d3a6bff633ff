"""Inspecting a memory."""

import pytest
import torch
from PIL import Image

from showface import MDRNets, MDRNetsConfig
from showface.inspection import memory_picture, nearest_images, slot_statistics, slots_used
from showface.nn import DisentangledMemory

from support.pictures import save_faces


@pytest.fixture
def images() -> torch.Tensor:
    return torch.rand(5, 3, 32, 32) * 2 - 1


def test_slots_used_are_what_the_memory_reads(model, images):
    hole = torch.zeros(5, 1, 32, 32)
    hole[:, :, 8:20, 8:20] = 1
    used = slots_used(model, images, hole)
    latent, region, _ = model.parts(images, hole)
    assert used.shape == (*region.shape, 4)
    torch.testing.assert_close(used.sum(-1), (region >= 0).float())
    for b, k in ((region >= 0).nonzero()).tolist():
        block = model.memory.memory[k]
        cosine = torch.nn.functional.cosine_similarity(latent[b, k], block, dim=-1)
        torch.testing.assert_close(used[b, k], torch.softmax(model.memory.temperature * cosine, dim=0))


def test_parts_are_what_the_forward_asks_about(model, images):
    hole = torch.zeros(5, 1, 32, 32)
    hole[:, :, 8:20, 8:20] = 1
    asked = []
    model.memory.register_forward_hook(lambda module, given, out: asked.append(module.pool(*given)))
    model(images, hole)
    latent, region, _ = model.parts(images, hole)
    torch.testing.assert_close(latent.flatten(0, 1), asked[0][0])
    assert torch.equal(region.flatten(), asked[0][1])


def test_slot_statistics():
    memory = DisentangledMemory(3, 2, 4, patience=7)
    memory.memory[0] = torch.tensor([[1.0, 0, 0], [2, 0, 0], [0, 1, 0], [0, 0, 1]])
    memory.idle[0] = torch.tensor([0, 6, 7, 9])
    found = slot_statistics(memory)
    assert found.in_use.tolist() == [0.5, 0.0]
    torch.testing.assert_close(found.nearest[0], torch.tensor([1.0, 1, 0, 0]))
    torch.testing.assert_close(found.similarity[0, 0], torch.tensor([1.0, 1, 0, 0]))


def test_nearest_images_find_the_one_that_was_stored(model, images):
    latent, region, _ = model.parts(images)
    part = int(region[3].argmax())
    model.memory.memory[part, 2] = 5 * latent[3, part]
    index, cosine = nearest_images(model, images.split(2), count=3)
    assert index.shape == cosine.shape == (19, 4, 3)
    assert index[part, 2, 0] == 3
    torch.testing.assert_close(cosine[part, 2, 0], torch.tensor(1.0))
    assert (cosine.diff(dim=-1)[..., 0] <= 0).all()
    absent = (region < 0).all(0)
    assert (index[absent] == -1).all()
    assert torch.equal(index[..., :2], nearest_images(model, [images], count=2)[0])


def test_picture(model, tmp_path):
    folder = save_faces(tmp_path / "faces")
    picture = memory_picture(model, sorted(folder.iterdir()), slots=3)
    assert picture.mode == "RGB"
    assert picture.height > 19 * 72
    assert len(picture.resize((64, 64)).getcolors(4096)) > 50  # the picture is not blank
    assert memory_picture(model, [Image.new("RGB", (50, 40))]).width > picture.width


def test_errors(model, images, tiny):
    with pytest.raises(ValueError, match="at least 1, got 0"):
        nearest_images(model, [images], count=0)
    with pytest.raises(ValueError, match="got 0 and 10"):
        memory_picture(model, [])
    without = MDRNets(MDRNetsConfig(**{**tiny.to_dict(), "use_memory": False}))
    for call in (lambda: slots_used(without, images), lambda: nearest_images(without, [images])):
        with pytest.raises(ValueError, match="no memory"):
            call()
    with pytest.raises(RuntimeError, match="without a memory"):
        without.parts(images)
