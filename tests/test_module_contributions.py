"""The experiment that removes one module at a time from a trained model."""

import numpy as np
import torch
from module_contributions import CHANGES, table, variants
from PIL import Image

from support.pictures import save_faces


def test_each_change_changes_the_result(model):
    image, hole = torch.rand(1, 3, 32, 32) * 2 - 1, torch.zeros(1, 1, 32, 32)
    hole[..., 8:24, 8:24] = 1
    with torch.inference_mode():
        before = model(image, hole)
        results = {name: network(image, hole).image for name, network in variants(model).items()}
        assert torch.equal(model(image, hole).image, before.image)  # only copies are changed
    assert torch.equal(results.pop("whole network"), before.image)
    assert torch.equal(results["coarse image only"], before.coarse)
    for name, result in results.items():
        assert not torch.equal(result, before.image), name


def test_table(model, tmp_path):
    save_faces(tmp_path / "faces", 2)
    (tmp_path / "masks").mkdir()
    mask = np.zeros((64, 64), np.uint8)
    mask[10:40, 10:40] = 255
    Image.fromarray(mask).save(tmp_path / "masks" / "1.png")
    lines = table(model, [tmp_path / "faces"], tmp_path / "masks", limit=2).splitlines()
    assert [line.split(" | ")[0].strip("| ") for line in lines[2:]] == list(CHANGES)
    assert lines[2].endswith("| +0.000 ± 0.000 |")
