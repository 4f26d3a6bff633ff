"""The ready-made systems: saved models, and OpenCV's classical methods."""

import sys

import numpy as np
import pytest
from PIL import Image

import showface
from showface.evaluation import CLASSICAL, classical_system, model_system


class TestModels:
    def test_a_network_and_its_folder_give_what_inpaint_gives(self, model, tmp_path):
        image = np.random.default_rng(0).integers(0, 256, (32, 40, 3), dtype=np.uint8)
        hole = np.zeros((32, 40), dtype=bool)
        hole[8:20, 10:25] = True
        expected = np.asarray(showface.inpaint(Image.fromarray(image), hole, model=model, faces=False))
        model.save_pretrained(tmp_path)
        for given in (model, tmp_path, str(tmp_path)):
            result = model_system(given)(image, hole)
            assert result.dtype == np.uint8
            assert np.abs(result.astype(int) - expected).max() <= 1

    def test_errors(self, tmp_path):
        with pytest.raises(FileNotFoundError, match=r"no config\.json"):
            model_system(tmp_path)


class TestClassical:
    @pytest.mark.parametrize("name", CLASSICAL)
    def test_fills_a_gradient(self, name):
        pytest.importorskip("cv2")
        row = np.linspace(0, 255, 32).astype(np.uint8)
        image = np.broadcast_to(row[None, :, None], (32, 32, 3)).copy()
        hole = np.zeros((32, 32), dtype=bool)
        hole[12:18, 12:18] = True
        spoilt = np.where(hole[..., None], 0, image).astype(np.uint8)
        result = classical_system(name)(spoilt, hole)
        assert result.dtype == np.uint8
        assert np.array_equal(result[~hole], image[~hole])
        assert np.abs(result[hole].astype(int) - image[hole]).max() < 40

    def test_errors(self, monkeypatch):
        with pytest.raises(ValueError, match="must be one of telea, navier-stokes, got 'patchmatch'"):
            classical_system("patchmatch")
        monkeypatch.setitem(sys.modules, "cv2", None)
        with pytest.raises(ModuleNotFoundError, match=r"telea needs OpenCV: install 'showface\[evaluate\]'"):
            classical_system("telea")
